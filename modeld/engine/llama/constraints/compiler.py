# SPDX-License-Identifier: GPL-3.0-only
"""Compile Lark grammars for a model's vocabulary: tried in a confined process, then made in a thread.

llguidance compiles without the interpreter's lock, so streams go on. It recurses once a reference of a
schema, so the thread has a stack of its own size. What the process said is kept: agents offer the same
functions every turn. A matcher is made for each text: copies share their lexer, whose states are bounded, so
that a schema of some patterns would fail for everybody after ten texts.
"""

from __future__ import annotations

import ctypes
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

import msgspec
from llguidance import LLMatcher, LLTokenizer

from modeld.engine.llama.constraints.guidance import Trial, compile_grammar
from modeld.engine.llama.native.library import lib
from modeld.errors import InvalidGrammar

if TYPE_CHECKING:
    from modeld.engine.llama.native.vocab import Vocab

KEPT = 1024
"""Trials that are kept, each of some hundred bytes."""
_STACK_BYTES = 64 * 2**20
"""8 MiB overflow at a chain of 1,000 references."""
_PIECE_BYTES = 4096
_NO_TEXT = b"\xff"
"""llguidance takes tokens that begin with this byte as special: no text matches them."""


class StillCompiling(Exception):
    """The grammar is not there yet: ask again, for the same."""


class Compiled(msgspec.Struct, frozen=True):
    """A matcher at the beginning of a text, for one text alone; and how the one that was chosen was tried."""

    matcher: LLMatcher
    trial: Trial


class GrammarCompiler:
    """Compiles for one vocabulary. Use it from one thread, and `close` it before the model is freed.

    Its tokenizer is made with the first grammar: it takes 0.3 s for 49,000 tokens and 2 s for 262,000 with
    the lock held, and 21 or 110 MiB, which most models never need.
    """

    def __init__(self, vocab: Vocab, try_grammars: Callable[[Sequence[str]], Trial]) -> None:
        """`try_grammars` raises what says that it is not done yet, and InvalidGrammar."""
        self._vocab = vocab
        self._try = try_grammars
        self._trials: OrderedDict[bytes, Trial | InvalidGrammar] = OrderedDict()
        self._asked: tuple[str, ...] = ()
        """What is tried."""
        self._grammars: tuple[str, ...] = ()
        """Of which the first that compiles is made, or was made last."""
        self._future: Future[LLMatcher] | None = None
        self._made: Compiled | InvalidGrammar | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._tokenizer: LLTokenizer | None = None

    def try_out(self, grammars: tuple[str, ...]) -> Trial:
        """Return which of these is the first that compiles for bytes. Raises: as `try_grammars`."""
        key = hashlib.sha256("\0".join(grammars).encode()).digest()
        found = self._trials.get(key)
        if found is None:
            if grammars != self._asked:
                self._asked = grammars  # The process knows what it was asked by this very tuple.
            try:
                found = self._try(self._asked)
            except InvalidGrammar as error:
                found = InvalidGrammar(error.message)  # Without the frames that it came through.
            self._asked = ()
            self._trials[key] = found
            if len(self._trials) > KEPT:
                self._trials.popitem(last=False)
        self._trials.move_to_end(key)
        if isinstance(found, InvalidGrammar):
            raise found
        return found

    def of(self, grammars: tuple[str, ...], patience_s: float) -> Compiled | InvalidGrammar:
        """Return the first of these that compiles, or why none does; the same until `forget`.

        Raises: StillCompiling when that takes longer than `patience_s`; what `try_grammars` raises but
          InvalidGrammar.
        """
        if grammars != self._grammars:
            self.forget()
            self._grammars = grammars
        if self._made is None:
            self._made = self._compiled(patience_s)
        return self._made

    def forget(self) -> None:
        """Let go of what was made last: its text has begun, or its request has left."""
        if self._future is not None:
            self._future.cancel()  # One under way goes on for a second at most, and is dropped.
        self._future = self._made = None
        self._grammars = ()

    def close(self) -> None:
        """Wait for the thread, and let go of the vocabulary. Idempotent."""
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=True, cancel_futures=True)
        self.forget()
        self._tokenizer = None
        self._asked = ()

    def _compiled(self, patience_s: float) -> Compiled | InvalidGrammar:
        try:
            trial = self.try_out(self._grammars)
        except InvalidGrammar as error:
            return InvalidGrammar(error.message)
        if trial.chosen is None:
            return InvalidGrammar(trial.reasons[0] if trial.reasons else "there is no grammar")
        if self._future is None:
            self._future = self._thread().submit(self._compile, self._grammars[trial.chosen])
        if not wait((self._future,), timeout=patience_s).done:
            raise StillCompiling
        try:
            return Compiled(self._future.result(), trial)
        except InvalidGrammar as error:
            return InvalidGrammar(error.message)

    def _thread(self) -> ThreadPoolExecutor:
        if self._threads is None:
            before = threading.stack_size(_STACK_BYTES)
            try:
                self._threads = ThreadPoolExecutor(1, "grammars")
                self._threads.submit(int).result()  # The thread starts here, with that stack.
            finally:
                threading.stack_size(before)
        return self._threads

    def _compile(self, grammar: str) -> LLMatcher:
        if self._tokenizer is None:
            self._tokenizer = tokenizer_of(self._vocab)
        return compile_grammar(self._tokenizer, grammar)


def tokenizer_of(vocab: Vocab) -> LLTokenizer:
    """Return llguidance's view of a vocabulary. It keeps the vocabulary's pointer.

    Control tokens are no text, but for those that mark calls: they are shown as text (`Job.spelled`).
    """
    special = (vocab.end_tokens | set(vocab.control_tokens)) - vocab.tool_tokens
    buffer = ctypes.create_string_buffer(_PIECE_BYTES)  # Of this thread: `Vocab` has one of the engine's.
    tokens: list[bytes] = []
    for token in range(vocab.size):
        length = lib.llama_token_to_piece(vocab.pointer, token, buffer, _PIECE_BYTES, 0, True)
        piece = ctypes.string_at(buffer, max(length, 0))
        tokens.append(_NO_TEXT + piece if token in special or not piece else piece)
    ends = sorted(vocab.end_tokens)
    if not ends:  # llguidance needs one: a token that no model has, see `mask_bits`
        ends = [len(tokens)]
        tokens.append(_NO_TEXT + b"end")
    address = ctypes.cast(lib._lib.llama_tokenize, ctypes.c_void_p).value  # noqa: SLF001  # the bindings give it out by no other name
    # Not in its stubs, but what `llguidance.llamacpp` calls: that module takes each <...> for special.
    make: Callable[..., LLTokenizer] = getattr(LLTokenizer, "from_llamacpp")  # noqa: B009  # typed as not there
    return make(
        tokens=tokens,
        vocab_ptr=vocab.pointer,
        tokenize_fptr=address,
        eos_token=ends,
        slices=LLTokenizer.json_slices(),
    )


def mask_bits(vocab: Vocab) -> int:
    """Return how many tokens llguidance's view of a vocabulary has."""
    return vocab.size if vocab.end_tokens else vocab.size + 1
