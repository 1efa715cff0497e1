# SPDX-License-Identifier: GPL-3.0-only
"""Guess the next tokens from what followed the same tokens before (prompt lookup). Pure.

Answers often repeat their prompt or themselves: summaries, edits, code, tables, lists. Where the last few
tokens occurred before, what followed them then is a guess at what follows now. A decode of several tokens
of one text takes little longer than that of one, so a guess that comes true saves steps, and a wrong one
costs some time, but never changes a text: each token is drawn from its own logits as ever, and a guess only
says for which tokens the logits are computed ahead.

How many are guessed follows from how the last guesses did: twice as many after all came true, half as many
after none did, and then none for a while, which doubles each time.
Source: A. Saxena, "Prompt Lookup Decoding", 2023.
"""

from __future__ import annotations

from collections.abc import Iterable

LONGEST, SHORTEST = 4, 2
"""Tokens at the end of a text that are looked for: the longest that occurred before decide."""
FIRST_GUESS = 4
"""Tokens of the first guess."""
LONGEST_REST = 32
"""Steps without a guess, at most, after guesses that did not come true."""


class PromptLookup:
    """The tokens of one text, and where each few of them occurred last."""

    def __init__(self, tokens: Iterable[int], most: int) -> None:
        """Take the text so far, and the most tokens that may be guessed at once."""
        self._most = most
        self._length = min(FIRST_GUESS, most)
        self._rest = 0
        self._next_rest = 1
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        """Place behind the last occurrence of some tokens, the end of the text left out."""
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        """Take note of the next token."""
        tokens = self._tokens
        end = len(tokens)
        for length in range(SHORTEST, min(LONGEST, end) + 1):
            self._after[tuple(tokens[end - length :])] = end
        tokens.append(token)

    def guess(self, most: int) -> list[int]:
        """Return what may follow: at most so many tokens, often none.

        A guess that reaches the end of the text goes on with its own beginning, as repetitions do.
        """
        if self._rest:
            self._rest -= 1
            return []
        count = min(most, self._length)
        place = self._place() if count > 0 else None
        if place is None:
            return []
        known = self._tokens[place : place + count]
        return [known[number % len(known)] for number in range(count)]

    def learn(self, guessed: int, accepted: int) -> None:
        """Take in how many of the tokens guessed last came true."""
        if accepted == guessed:
            self._length = min(2 * self._length, self._most)
        if accepted:
            self._next_rest = 1
            return
        self._length = max(1, self._length // 2)
        self._rest = self._next_rest
        self._next_rest = min(2 * self._next_rest, LONGEST_REST)

    def _place(self) -> int | None:
        """Return the place behind the last earlier occurrence of the longest end of the text."""
        tokens = self._tokens
        end = len(tokens)
        for length in range(min(LONGEST, end), SHORTEST - 1, -1):
            place = self._after.get(tuple(tokens[end - length :]))
            if place is not None:
                return place
        return None
