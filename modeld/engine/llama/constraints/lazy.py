# SPDX-License-Identifier: GPL-3.0-only
"""Sample freely until a trigger appears, and under a grammar from the trigger on.

llama.cpp has lazy grammars of its own (`llama_sampler_init_grammar_lazy_patterns`). They are not used: after
each token they search the whole text so far with `std::regex`, which recurses once a character, and an
expression that does not compile, or a trigger with which the grammar does not begin, is a C++ exception
that ends the process. So triggers are words and tokens here, found in constant time a byte, and the
grammar is asked before it is given anything: at the beginning whether it begins with each trigger, and
later whether it goes on as the token that completes a word does. A token with which it does not is not
drawn. Some words are triggers only at the beginning of the text.

In a grammar of calls nothing that is written within a thought is a trigger: `dialects/common/tool_reader.py`
finds
no call in there either.
"""

from __future__ import annotations

import time
from collections.abc import Collection

import numpy as np

from modeld.domain.tool_calls import THOUGHTS
from modeld.engine.llama.constraints import matcher as constrained
from modeld.engine.llama.constraints.grammar import Grammar
from modeld.engine.llama.constraints.matcher import NO_TOKEN, check_time, draw_of
from modeld.engine.llama.native.library import lib
from modeld.engine.llama.native.vocab import Vocab
from modeld.errors import InvalidGrammar

MAX_TRIGGERS = 16
MAX_WORD_BYTES = 200
_THOUGHTS = {begin.encode(): end.encode() for begin, end in THOUGHTS.items()}
_TRIES = 16
"""Draws for one token, each without those before, that complete a trigger as the grammar does not go on."""


class LazyDraw:
    """The state of one lazy grammar in one text. `close` frees it.

    Raises: InvalidGrammar if llama.cpp does not take the grammar, or if it does not begin with each trigger.
    """

    def __init__(self, vocab: Vocab, grammar: Grammar) -> None:
        self._vocab = vocab
        self._begun = False
        self._tail = b""
        self._words, self._tokens = _triggers(vocab, grammar)
        self._openings = tuple(word.encode() for word in grammar.opening_words)
        self._may_open = bool(self._openings)
        """Whether nothing was written but blanks and thoughts, or else the beginning of an opening."""
        knows_thoughts = grammar.thought is not None
        self._thoughts = _THOUGHTS if knows_thoughts else {}
        self._spelled = vocab.tool_tokens if knows_thoughts else frozenset[int]()
        self._end = _THOUGHTS[grammar.thought.encode()] if grammar.thought else b""
        """The end of the thought that the text is in; empty: in none."""
        self._longest = max(map(len, (*self._words, *self._thoughts, b" ")))
        self._names_tokens = bool(grammar.tokens)
        self._bound = draw_of(vocab, grammar)
        try:
            self._check_beginnings()
        except BaseException:  # whatever it is: the grammar of llama.cpp is freed
            self.close()
            raise

    def draw(self, chain: int, context: int, row: int, banned: Collection[int]) -> int:
        """Choose the token after this row of the last batch, and take note of it.

        Returns: a token, or NO_TOKEN when none is left that the grammar allows and that is not banned.
        Raises: InvalidGrammar when the grammar takes too much time.
        """
        if self._begun:
            return self._bound.draw(chain, context, row, banned)
        until = time.thread_time() + constrained.MAX_DRAW
        candidates = self._bound.candidates
        left_out: set[int] = set()
        for _ in range(_TRIES):
            candidates.fill(context, row)
            candidates.leave_out(left_out)
            token = candidates.choose(chain)
            if token < 0 or token in left_out:
                return NO_TOKEN
            if self._may_follow(token):
                lib.llama_sampler_accept(chain, token)
                return token
            left_out.add(token)
            check_time(until)
        return NO_TOKEN

    def close(self) -> None:
        """Free what C holds. Idempotent."""
        self._bound.close()

    def _may_follow(self, token: int) -> bool:
        """Take note of a token, unless it completes a trigger and the grammar does not go on like that."""
        end, may_open = self._end, self._may_open
        if token in self._tokens and not end:
            return self._begin([token])
        spell = self._vocab.spelling if token in self._spelled else self._vocab.piece
        text = self._tail + spell(token)
        while True:
            if end:
                _, ended, rest = text.partition(end)
                if not ended:
                    kept = len(end) - 1
                    break
                text, end = rest, b""
            if may_open and (opening := text.lstrip()).startswith(self._openings):
                return self._begin(_spelled(self._vocab, opening))
            words = (*self._words, *self._thoughts)
            found = min(((place, word) for word in words if (place := text.find(word)) >= 0), default=None)
            if found is None:
                begun = text.lstrip()
                may_open = may_open and any(word.startswith(begun) for word in (*self._openings, *words))
                kept = len(begun) if may_open else self._longest - 1
                break
            place, word = found
            if word not in self._thoughts:
                return self._begin(_spelled(self._vocab, text[place:]))
            may_open = may_open and not text[:place].strip()
            text, end = text[place + len(word) :], self._thoughts[word]
        self._tail = text[max(0, len(text) - kept) :]
        self._end, self._may_open = end, may_open
        return True

    def _begin(self, tokens: list[int] | None) -> bool:
        if tokens is None or not self._bound.feed(tokens):
            return False
        self._begun = True
        if not self._names_tokens:
            # llama.cpp lets a grammar match the spelling of a control token, which is no text; but for
            # those that mark calls, whose spelling is shown (`Job.spelled`)
            hidden = set(self._vocab.control_tokens) - self._vocab.end_tokens - self._vocab.tool_tokens
            self._bound.candidates.hidden = np.array(sorted(hidden), dtype=np.intp)
        return True

    def _check_beginnings(self) -> None:
        words = self._words  # not the openings, of which there may be hundreds: they are our own
        beginnings = [(repr(word.decode()), _spelled(self._vocab, word)) for word in words]
        beginnings += [(f"token {token}", [token]) for token in self._tokens]
        for name, tokens in beginnings:
            if tokens is None:
                raise InvalidGrammar(f"the trigger {name} cannot be written with the tokens of this model")
            if not self._bound.feed(tokens):
                raise InvalidGrammar(
                    f"the grammar does not begin with its trigger {name}, which is part of what it binds"
                )
            self._bound.restart()


def _triggers(vocab: Vocab, grammar: Grammar) -> tuple[list[bytes], frozenset[int]]:
    """Return the words to look for, and the tokens: words that are a control token among the latter."""
    count = len(grammar.trigger_words) + len(grammar.trigger_tokens)
    if count > MAX_TRIGGERS:
        raise InvalidGrammar(f"the grammar has {count} triggers; the most is {MAX_TRIGGERS}")
    words: list[bytes] = []
    tokens = set(grammar.trigger_tokens)
    for word in grammar.trigger_words:
        data = word.encode("utf-8", errors="replace")
        if not 1 <= len(data) <= MAX_WORD_BYTES:
            raise InvalidGrammar(
                f"a trigger of the grammar has {len(data)} bytes; each word has 1 to {MAX_WORD_BYTES}"
            )
        parsed = vocab.tokenize(word, add_special=False, parse_special=True).tolist()
        if len(parsed) == 1 and parsed[0] in vocab.control_tokens:
            tokens.add(parsed[0])
        else:
            words.append(data)
    for token in tokens:
        if not 0 <= token < vocab.size:
            raise InvalidGrammar(
                f"a trigger of the grammar is token {token}; this model has tokens 0 to {vocab.size - 1}"
            )
        if token in vocab.end_tokens:
            raise InvalidGrammar(
                f"a trigger of the grammar is token {token}, which ends the text: nothing is left to bind"
            )
    return words, frozenset(tokens)


def _spelled(vocab: Vocab, data: bytes) -> list[int] | None:
    """Return tokens, character by character, that stand for exactly these bytes; None if there are none."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    tokens: list[int] = []
    for character in text:
        spelled = vocab.continuation(character).tolist()
        if (
            b"".join(map(vocab.piece, spelled)) != character.encode()
        ):  # SentencePiece may lack a token for a blank
            spelled = [token for token in range(vocab.size) if vocab.piece(token) == character.encode()][:1]
        if not spelled:
            return None
        tokens += spelled
    return tokens
