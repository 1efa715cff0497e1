# SPDX-License-Identifier: GPL-3.0-only
"""Tokenise and detokenise text, and know which tokens are special.

Pieces (the bytes of a token) and the sets of special tokens are read once and kept: in the step
loop a token costs one list lookup.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable, Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt

from modeld.domain.tool_calls import TOOL_MARKERS
from modeld.engine.llama.native.library import lib
from modeld.errors import InvalidRequest

# ----------------------------------------------------------------------
# A regular expression for any of many texts, in time that does not grow with their number.
#
# Some vocabularies have thousands of control tokens that begin alike. Python's `re` tries the branches of
# an alternation one by one: 100,000 characters `<` took 28 s against 6,000 of them, and 0.02 s this way.

_DEPTH = 40
"""Groups within groups, after which texts are listed: `re` compiles by recursion."""


def prefix_regex(texts: Iterable[str]) -> str:
    """Return a pattern that matches the longest of these texts that is there. None of them may be empty."""
    return _branches(sorted(set(texts)), 0)


def _branches(texts: list[str], depth: int) -> str:
    """Return the pattern for sorted texts; an empty one among them means that it may also end here."""
    optional = "?" if texts[0] == "" else ""
    texts = texts[1:] if optional else texts
    if not texts:
        return ""
    if depth > _DEPTH:
        branches = list(map(re.escape, sorted(texts, key=len, reverse=True)))
    else:
        branches = [_branch(list(group), depth) for _, group in groupby(texts, key=lambda text: text[0])]
    return branches[0] if len(branches) == 1 and not optional else f"(?:{'|'.join(branches)}){optional}"


def _branch(texts: list[str], depth: int) -> str:
    """Return the pattern for sorted texts that begin alike."""
    first, last = texts[0], texts[-1]
    shared = next((at for at, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), None)
    end = min(len(first), len(last)) if shared is None else shared
    return re.escape(first[:end]) + _branches([text[end:] for text in texts], depth + 1)


# ----------------------------------------------------------------------

TokenArray = npt.NDArray[np.int32]
"""Token ids, one dimension."""

_TURN_MARKER = re.compile(r"<\|.*\|>|</?s>|<(start|end)_of_\w+>|\[/?[A-Z_]+\]", re.DOTALL)
"""How turn markers look that a vocabulary lists as user-defined text instead of as control tokens."""
_PIECE_BYTES = 256
_SEGMENT = 2048
"""Characters after which a long text is cut at the next control token."""
_CHARACTERS_A_TOKEN = 16
"""More than text of any kind has on the average."""
_FEW_CHARACTERS_A_TOKEN = 4
"""What text of most kinds has on the average: with no more than this a text is tokenised at once."""
_PIECE_CHARACTERS = 8192
_MARGIN = 64


class Vocab:
    """The vocabulary of one loaded model.

    Attributes:
      size: number of tokens.
      end_tokens: tokens that end a generation.
      control_tokens: tokens that never stand for text.
      tool_tokens: those of them that mark the call of a function.
      control_texts: texts that must not become tokens when they occur in a message.
      bos: the beginning-of-sequence token, or -1.
    """

    def __init__(self, pointer: int) -> None:
        self.pointer = pointer
        self.size = lib.llama_vocab_n_tokens(pointer)
        self.bos = lib.llama_vocab_bos(pointer)
        self.eos = lib.llama_vocab_eos(pointer)
        self._pieces: list[bytes | None] = [None] * self.size
        self._piece_buffer = ctypes.create_string_buffer(_PIECE_BYTES)
        self._room = (ctypes.c_int32 * 1024)()
        kind = lib.llama_vocab_type(pointer)
        self._prefixes_space = kind == lib.LLAMA_VOCAB_TYPE_SPM
        self._joins_pieces = kind == lib.LLAMA_VOCAB_TYPE_BPE
        tokens = range(self.size)
        is_eog, get_attr = lib.llama_vocab_is_eog, lib.llama_vocab_get_attr
        self.end_tokens = frozenset(token for token in tokens if is_eog(pointer, token))
        hidden = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN
        user = lib.LLAMA_TOKEN_ATTR_USER_DEFINED
        attrs = [get_attr(pointer, token) for token in tokens]
        self.control_tokens = tuple(token for token in tokens if attrs[token] & hidden)
        self.tool_tokens = frozenset(
            token for token in self.control_tokens if self.text(token) in TOOL_MARKERS
        )
        texts = {self.text(token) for token in (*self.control_tokens, *self.end_tokens)}
        texts |= {
            text
            for token in tokens
            if attrs[token] & user and _TURN_MARKER.fullmatch(text := self.text(token))
        }
        self.control_texts = frozenset(text for text in texts if len(text) > 1)
        self._controls = re.compile(prefix_regex(self.control_texts)) if self.control_texts else None

    def text(self, token: int) -> str:
        """Return how the vocabulary spells a token; empty for -1 (no such token)."""
        spelled = lib.llama_vocab_get_text(self.pointer, token) if token >= 0 else None
        return "" if spelled is None else spelled.decode("utf-8", errors="replace")

    def piece(self, token: int) -> bytes:
        """Return the bytes that a token stands for: none for a control token, maybe half a character."""
        piece = self._pieces[token]
        if piece is None:
            piece = self._pieces[token] = self._read_piece(token)
        return piece

    def spelling(self, token: int) -> bytes:
        """Return the bytes of a token; of a control token, the text that stands for it."""
        return self.piece(token) or self._read_piece(token, special=True)

    def check(self, tokens: Iterable[int], name: str) -> None:
        """Refuse tokens that there are not.

        Raises: InvalidRequest that names the first of them, and the key `name`.
        """
        for token in tokens:
            if not 0 <= token < self.size:
                raise InvalidRequest(
                    f"`{name}` has a token {token}, but the vocabulary of this model ends at {self.size - 1}"
                )

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        """Return the bytes that tokens stand for, control tokens spelled out. All must be in the vocabulary.

        What `tokenize` made of a text gives that text again. Vocabularies that put a space before a text or
        fold its case and accents (SentencePiece, WordPiece) have llama.cpp take back what can be taken back.
        """
        if self._joins_pieces:
            return b"".join(map(self.spelling, tokens))
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        size = -lib.llama_detokenize(self.pointer, array, len(tokens), None, 0, False, True)
        buffer = ctypes.create_string_buffer(max(size, 1))
        length = lib.llama_detokenize(self.pointer, array, len(tokens), buffer, size, False, True)
        return buffer.raw[: max(length, 0)]

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> TokenArray:
        """Return the tokens of a text.

        Args:
          text: any text; lone surrogates become "?".
          add_special: add BOS (and EOS) where the model's metadata says so.
          parse_special: let the texts of control tokens become those tokens.
        """
        if not parse_special or len(text) < _SEGMENT:
            return self._tokenize(text, add_special, parse_special)
        first, *rest = self._segments(text)
        tokens = [self._tokenize(first, add_special, parse_special)]
        tokens += [self._tokenize(segment, False, parse_special) for segment in rest]
        return np.concatenate(tokens)

    def excess(self, text: str, most: int) -> int:
        """Return about how many tokens a text has if that is surely more than `most`, else 0.

        Reads no more of a long text than it needs: tokenising a megabyte takes seconds, and streams wait.
        A cut between two pieces may go through a control token, and cost as many tokens as it has letters.
        """
        if len(text) <= _FEW_CHARACTERS_A_TOKEN * most:
            return 0
        count = read = 0
        while read < min(len(text), _CHARACTERS_A_TOKEN * most):
            piece = text[read : read + _PIECE_CHARACTERS]
            count += len(self.tokenize(piece, add_special=False, parse_special=True)) - _MARGIN
            read += len(piece)
            if count > most:
                return count * len(text) // read
        return 0

    def tokenize_parts(self, parts: list[str]) -> TokenArray:
        """Return the tokens of a prompt that is cut where control tokens must not form.

        Each part is tokenised by itself, control tokens parsed, as the continuation of the one
        before; BOS is added as the metadata says, unless the text begins with it already.
        """
        tokens = [self.tokenize(parts[0], add_special=True, parse_special=True)]
        first = tokens[0]
        if len(first) > 1 and first[0] == first[1] == self.bos:
            tokens[0] = first[1:]
        tokens += [self.continuation(part) for part in parts[1:] if part]
        return tokens[0] if len(tokens) == 1 else np.concatenate(tokens)

    def continuation(self, text: str) -> TokenArray:
        """Tokenise text that follows other text; control tokens are parsed.

        SentencePiece vocabularies put a space before a text; behind a line break, which merges
        with nothing, they do not, and the tokens of the line break itself are known.
        """
        if not self._prefixes_space:
            return self.tokenize(text, add_special=False, parse_special=True)
        anchor = self.tokenize("\n", add_special=False, parse_special=True)
        anchored = self.tokenize("\n" + text, add_special=False, parse_special=True)
        if np.array_equal(anchored[: len(anchor)], anchor):
            return anchored[len(anchor) :]
        return self.tokenize(text, add_special=False, parse_special=True)

    def _segments(self, text: str) -> list[str]:
        """Cut a long text behind control tokens, where cutting changes no token.

        For each piece of text between control tokens llama.cpp looks for the next one through all
        of the rest, so that its time grows with the square of their number.
        """
        segments: list[str] = []
        begin = 0
        for match in self._controls.finditer(text) if self._controls else ():
            end = match.end()
            if end - begin >= _SEGMENT and not text[end : end + 1].isspace():
                segments.append(text[begin:end])
                begin = end
        return [*segments, text[begin:]]

    def _tokenize(self, text: str, add_special: bool, parse_special: bool) -> TokenArray:
        data = text.encode("utf-8", errors="replace")
        pointer, call = self.pointer, lib.llama_tokenize
        count = call(pointer, data, len(data), self._room, len(self._room), add_special, parse_special)
        if count < 0:
            self._room = (ctypes.c_int32 * -count)()
            count = call(pointer, data, len(data), self._room, len(self._room), add_special, parse_special)
        if count < 0:
            raise MemoryError(f"llama.cpp could not tokenize {len(data)} bytes")
        return np.array(self._room[:count], dtype=np.int32)

    def _read_piece(self, token: int, *, special: bool = False) -> bytes:
        buffer = self._piece_buffer
        length = lib.llama_token_to_piece(self.pointer, token, buffer, len(buffer), 0, special)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = lib.llama_token_to_piece(self.pointer, token, buffer, len(buffer), 0, special)
        return buffer.raw[: max(length, 0)]
