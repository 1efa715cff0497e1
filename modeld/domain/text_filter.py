# SPDX-License-Identifier: GPL-3.0-only
"""Turn bytes of tokens into text to show: hold back partial UTF-8 and stop sequences.

A token may be half a character, and a stop sequence may be spread over many tokens. `TextFilter`
holds back what is not yet certain, never shows any part of the stop sequence that ended the text,
and yields the same text however the bytes were split. Work per character is constant for each
stop sequence (Knuth, Morris and Pratt 1977), and nearly nothing where no stop could begin.
"""

from __future__ import annotations

import codecs
from array import array
from collections.abc import Iterable


class _StopMatcher:
    """Finds one stop sequence in a stream of characters.

    `matched` is the length of the longest prefix of the stop sequence that the stream ends with.
    The failure table is built only as far as a match ever came, so that a long stop sequence
    which never occurs costs nothing.
    """

    __slots__ = ("_failure", "matched", "stop")

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0
        self._failure = array("l", [0, 0])

    def feed(self, text: str) -> int:
        """Read `text`; return the index just after the first complete match in it, or -1.

        After a match the matcher must not be fed again.
        """
        stop = self.stop
        start = 0
        if self.matched == 0:
            start = text.find(stop[0])
            if start < 0:
                return -1
        matched = self.matched
        for index in range(start, len(text)):
            character = text[index]
            while matched and stop[matched] != character:
                matched = self._failure[matched]
            if stop[matched] == character:
                matched += 1
                if matched == len(stop):
                    return index + 1
                if matched == len(self._failure):
                    self._extend()
        self.matched = matched
        return -1

    def _extend(self) -> None:
        """Add one entry: the longest proper border of the stop's first `len(table)` characters."""
        stop, table = self.stop, self._failure
        last = len(table) - 1
        border = table[last]
        while border and stop[border] != stop[last]:
            border = table[border]
        table.append(border + 1 if stop[border] == stop[last] else 0)


class TextFilter:
    """Turns the bytes of one generation into text that may be shown, and watches for its end.

    The text ends before the stop sequence whose last character comes first; of several that end
    at the same character, before the one that begins first. Bytes that are not UTF-8 become
    U+FFFD, as `bytes.decode(errors="replace")` has it.

    Attributes:
      stopped: whether a stop sequence was found; from then on nothing more is shown.
      stop: that stop sequence.
    """

    def __init__(self, stops: Iterable[str] = ()) -> None:
        self.stopped = False
        self.stop = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._matchers = [_StopMatcher(stop) for stop in dict.fromkeys(stops) if stop]
        self._held = ""

    def push(self, data: bytes) -> str:
        """Take the bytes of the next token; return what may be shown now, often all of it."""
        if self.stopped:
            return ""
        text = self._decoder.decode(data)
        return self._filter(text) if self._matchers and text else text

    def flush(self) -> str:
        """Say that no bytes follow; return what was still held back."""
        if self.stopped:
            return ""
        text = self._decoder.decode(b"", final=True)
        if self._matchers and text:
            text = self._filter(text)
        if self.stopped:
            return text
        text += self._held
        self._held = ""
        return text

    def _filter(self, text: str) -> str:
        end, stop = -1, ""
        for matcher in self._matchers:
            found = matcher.feed(text)
            if found >= 0 and (end < 0 or (found, -len(matcher.stop)) < (end, -len(stop))):
                end, stop = found, matcher.stop
        seen = self._held + text
        if end >= 0:
            self.stopped = True
            self.stop = stop
            cut = len(self._held) + end - len(stop)
            self._held = ""
            return seen[:cut]
        hold = max(matcher.matched for matcher in self._matchers)
        split = len(seen) - hold
        self._held = seen[split:]
        return seen[:split]
