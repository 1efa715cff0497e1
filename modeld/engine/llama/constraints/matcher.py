# SPDX-License-Identifier: GPL-3.0-only
"""Draw tokens that a grammar allows: of a schema by llguidance, of GBNF by llama.cpp.

To filter a whole vocabulary through a grammar of llama.cpp takes milliseconds. So the chain draws first, and
only a token that the grammar refuses leads to a second draw, from those it allows. llama.cpp aborts the
process when a grammar must accept a token that it does not allow: it is asked before. A draw that takes
too long ends its request, so that its neighbours go on.
"""

from __future__ import annotations

import ctypes
import math
import re
import time
from collections.abc import Collection, Iterable

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from modeld.engine.llama.constraints.compiler import mask_bits
from modeld.engine.llama.constraints.grammar import Grammar
from modeld.engine.llama.constraints.guidance import reason_of
from modeld.engine.llama.native.library import capture, lib
from modeld.engine.llama.native.vocab import Vocab
from modeld.errors import InvalidGrammar

NO_TOKEN = -1
"""The grammar leaves nothing to say: the text is complete."""

MAX_DRAW = 1.0
"""CPU seconds one draw may take. What llama.cpp does within one call cannot be interrupted; `stacks`
refuses the grammars that would keep it there for ever."""
_SLICE = 4096
"""Tokens filtered in one call, after which the time is looked at."""

_NUMBERED = re.compile(r"<\[[0-9]+\]>")

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


def _check_tokens(vocab: Vocab, names: Iterable[str]) -> None:
    """Refuse a token that there is not. llama.cpp would also write the whole grammar to standard error."""
    for name in names:
        by_number = name.startswith("<[")
        if by_number and _NUMBERED.fullmatch(name):
            continue
        if by_number or len(vocab.tokenize(name, add_special=False, parse_special=True)) != 1:
            raise InvalidGrammar(f"the grammar names {name}, which is no single token of this model")


def draw_of(vocab: Vocab, grammar: Grammar) -> ConstrainedDraw | GuidedDraw:
    """Return the state of a grammar at the beginning of a text. Raises: InvalidGrammar."""
    if grammar.matcher is None:
        return ConstrainedDraw(vocab, grammar)
    return GuidedDraw(vocab, grammar.matcher)


class GuidedDraw:
    """The state of one grammar of llguidance in one text. `close` lets go of it."""

    def __init__(self, vocab: Vocab, matcher: LLMatcher) -> None:
        """`matcher` goes on with this text, and is nobody else's."""
        self._end_tokens = vocab.end_tokens
        self._matcher = matcher
        self._mask = allocate_token_bitmask(1, mask_bits(vocab))
        self.candidates = Candidates(vocab.size)

    def draw(self, chain: int, context: int, row: int, banned: Collection[int]) -> int:
        """Choose the token after this row of the last batch, and take note of it.

        Returns: a token that the grammar allows, or NO_TOKEN when it allows none that is not banned.
        Raises: InvalidGrammar when the text has come to where the limits of llguidance end.
        """
        candidates, matcher = self.candidates, self._matcher
        if matcher.is_stopped():
            return NO_TOKEN
        candidates.fill(context, row)
        token = candidates.choose(chain)
        if not self._allows(token):
            fill_next_token_bitmask(matcher, self._mask)
            self._check()
            candidates.fill(context, row)
            candidates.keep(self._mask)
            if not candidates.any_left(banned):
                return NO_TOKEN
            token = candidates.choose(chain)
            if not self._allows(token):
                return NO_TOKEN
        if not matcher.consume_token(token):
            self._check()
        if token not in self._end_tokens:
            lib.llama_sampler_accept(chain, token)
        return token

    def feed(self, tokens: Iterable[int]) -> bool:
        """Begin the text with these tokens; return False, and start over, if the grammar forbids that."""
        found = list(tokens)
        if self._matcher.validate_tokens(found) != len(found) or not self._matcher.consume_tokens(found):
            self.restart()
            return False
        return True

    def restart(self) -> None:
        """Forget the text so far."""
        self._matcher.reset()

    def close(self) -> None:
        """Let go of the matcher, which keeps the tokenizer. Idempotent."""
        vars(self).pop("_matcher", None)

    def _allows(self, token: int) -> bool:
        return token >= 0 and self._matcher.validate_tokens([token]) == 1

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InvalidGrammar(f"the schema cannot bind this text any longer: {reason_of(self._matcher)}")


class ConstrainedDraw:
    """The state of one GBNF grammar in one text. `close` frees it.

    Raises: InvalidGrammar if llama.cpp does not take the grammar.
    """

    def __init__(self, vocab: Vocab, grammar: Grammar) -> None:
        self._end_tokens = vocab.end_tokens
        _check_tokens(vocab, grammar.tokens)
        text = grammar.gbnf.encode("utf-8", errors="replace")
        with capture() as log:
            pointer = lib.llama_sampler_init_grammar(vocab.pointer, text, b"root")
        if not pointer:
            reason = log.tell(1) or "a rule refers to itself"
            raise InvalidGrammar(f"the grammar cannot be compiled; llama.cpp says: {reason}")
        self._grammar = pointer
        self.candidates = Candidates(vocab.size)

    def draw(self, chain: int, context: int, row: int, banned: Collection[int]) -> int:
        """Choose the token after this row of the last batch, and take note of it.

        Returns: a token that the grammar allows, or NO_TOKEN when it allows none that is not banned.
        Raises: InvalidGrammar when the grammar takes too much time.
        """
        candidates, grammar = self.candidates, self._grammar
        until = time.thread_time() + MAX_DRAW
        candidates.fill(context, row)
        token = candidates.choose(chain)
        if not candidates.allows(grammar, token):
            candidates.fill(context, row)
            candidates.filter(grammar, until)
            if not candidates.any_left(banned):
                return NO_TOKEN
            token = candidates.choose(chain)
            if not candidates.allows(grammar, token):
                return NO_TOKEN
        if token not in self._end_tokens:
            lib.llama_sampler_accept(grammar, token)
            lib.llama_sampler_accept(chain, token)
        check_time(until)
        return token

    def feed(self, tokens: Iterable[int]) -> bool:
        """Begin the text with these tokens; return False, and start over, if the grammar forbids that."""
        for token in tokens:
            if not self.candidates.allows(self._grammar, token):
                self.restart()
                return False
            lib.llama_sampler_accept(self._grammar, token)
        return True

    def restart(self) -> None:
        """Forget the text so far."""
        lib.llama_sampler_reset(self._grammar)

    def close(self) -> None:
        """Free what C holds. Idempotent."""
        pointer, self._grammar = self._grammar, 0
        if pointer:
            lib.llama_sampler_free(pointer)


def logits_of(context: int, row: int, size: int) -> npt.NDArray[np.float32]:
    """Return a view of the logits of a row of the last batch; valid until the next decode."""
    address = ctypes.addressof(lib.llama_get_logits_ith(context, row).contents)
    return np.frombuffer(memoryview((ctypes.c_float * size).from_address(address)), dtype=np.float32)


def check_time(until: float) -> None:
    """Raise InvalidGrammar when this thread has used its time for one draw before the end."""
    if time.thread_time() > until:
        raise InvalidGrammar(
            f"the grammar is too ambiguous: to choose one token with it took more than {MAX_DRAW:g} s; let "
            f"alternatives that begin alike share their beginning"
        )


class Candidates:
    """All tokens with their logits, in memory that C reads and writes.

    Attributes:
      hidden: tokens that are left out of every draw from now on.
    """

    def __init__(self, size: int) -> None:
        self.hidden: npt.NDArray[np.intp] | None = None
        self._data = np.zeros(size, dtype=_CANDIDATE)
        self._ids = np.arange(size, dtype=np.int32)
        self._array = lib.llama_token_data_array()
        self._reference = ctypes.byref(self._array)
        self._one = lib.llama_token_data_array()
        self._one_token = lib.llama_token_data()
        self._one_reference = ctypes.byref(self._one)

    def fill(self, context: int, row: int) -> None:
        """Take the logits of a row of the last batch."""
        self._data["id"] = self._ids
        self._data["logit"] = logits_of(context, row, len(self._ids))
        if self.hidden is not None:
            self._data["logit"][self.hidden] = -math.inf
        array = self._array
        array.data = ctypes.cast(self._data.ctypes.data, lib.llama_token_data_p)
        array.size, array.selected, array.sorted = len(self._ids), -1, False

    def keep(self, mask: npt.NDArray[np.int32]) -> None:
        """Leave out the tokens whose bit is 0 in a mask of llguidance, 32 tokens a number."""
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[: len(self._data)]
        self._data["logit"][bits == 0] = -math.inf

    def leave_out(self, tokens: Collection[int]) -> None:
        """Leave these tokens out of the draw that comes."""
        self._data["logit"][list(tokens)] = -math.inf

    def choose(self, chain: int) -> int:
        """Run the chain and return the token it selected."""
        lib.llama_sampler_apply(chain, self._reference)
        return self._array.data[self._array.selected].id if self._array.selected >= 0 else NO_TOKEN

    def filter(self, grammar: int, until: float) -> None:
        """Give the tokens that the grammar does not allow a logit of minus infinity.

        Raises: InvalidGrammar when this thread has used its time before the end.
        """
        part = self._one
        for begin in range(0, len(self._data), _SLICE):
            address = self._data.ctypes.data + begin * _CANDIDATE.itemsize
            part.data = ctypes.cast(address, lib.llama_token_data_p)
            part.size, part.selected, part.sorted = min(_SLICE, len(self._data) - begin), -1, False
            lib.llama_sampler_apply(grammar, self._one_reference)
            check_time(until)

    def allows(self, grammar: int, token: int) -> bool:
        """Ask the grammar about one token."""
        if token < 0:
            return False
        self._one_token.id, self._one_token.logit = token, 0.0
        self._one.data = ctypes.pointer(self._one_token)
        self._one.size, self._one.selected, self._one.sorted = 1, -1, False
        lib.llama_sampler_apply(grammar, self._one_reference)
        return self._one_token.logit != -math.inf

    def any_left(self, banned: Collection[int]) -> bool:
        """Whether a token is allowed that is not banned."""
        allowed = self._data["logit"] > -math.inf
        allowed[list(banned)] = False
        return bool(allowed.any())
