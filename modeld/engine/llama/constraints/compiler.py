# SPDX-License-Identifier: GPL-3.0-only
"""Compile Lark grammars for a model's vocabulary: tried in a confined process, then made in a thread.

llguidance compiles without the interpreter's lock, so streams go on. It recurses once a reference of a
schema, so the thread has a stack of its own size. What was made is kept: agents offer the same functions
every turn.
"""

from __future__ import annotations

import ctypes
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

KEPT = 32
"""Compiled grammars that are kept, each some MiB at most."""
_STACK_BYTES = 64 * 2**20
"""8 MiB overflow at a chain of 1,000 references."""
_PIECE_BYTES = 4096
_NO_TEXT = b"\xff"
"""llguidance takes tokens that begin with this byte as special: no text matches them."""


class StillCompiling(Exception):
    """The grammar is not there yet: ask again, for the same."""


class Compiled(msgspec.Struct, frozen=True):
    """A matcher that nobody consumes (copy it), and how the one that was chosen was tried."""

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
        self._kept: OrderedDict[tuple[str, ...], Compiled | InvalidGrammar] = OrderedDict()
        self._asked: tuple[str, ...] = ()
        self._trial: Trial | None = None
        self._future: Future[LLMatcher] | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._tokenizer: LLTokenizer | None = None

    def try_out(self, grammars: tuple[str, ...]) -> Trial:
        """Return which of these is the first that compiles for bytes. Raises: as `try_grammars`."""
        if grammars != self._asked:
            self._asked, self._trial = grammars, None
            self._forget_future()
        if self._trial is None:
            self._trial = self._try(self._asked)
        return self._trial

    def of(self, grammars: tuple[str, ...], patience_s: float) -> Compiled | InvalidGrammar:
        """Return the first of these that compiles, or why none does.

        Raises: StillCompiling when that takes longer than `patience_s`; what `try_grammars` raises but
          InvalidGrammar.
        """
        found = self._kept.get(grammars)
        if found is None:
            found = self._made(grammars, patience_s)
            self._kept[grammars] = found
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(grammars)
        return found

    def close(self) -> None:
        """Wait for the thread, and let go of the vocabulary. Idempotent."""
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=True, cancel_futures=True)
        self._future = self._trial = self._tokenizer = None
        self._asked = ()
        self._kept.clear()

    def _made(self, grammars: tuple[str, ...], patience_s: float) -> Compiled | InvalidGrammar:
        try:
            trial = self.try_out(grammars)
        except InvalidGrammar as error:
            return InvalidGrammar(error.message)  # Without the frames that it came through.
        if trial.chosen is None:
            return InvalidGrammar(trial.reasons[0] if trial.reasons else "there is no grammar")
        if self._future is None:
            self._future = self._thread().submit(self._compile, grammars[trial.chosen])
        if not wait((self._future,), timeout=patience_s).done:
            raise StillCompiling
        future, self._future, self._asked = self._future, None, ()
        try:
            return Compiled(future.result(), trial)
        except InvalidGrammar as error:
            return InvalidGrammar(error.message)

    def _forget_future(self) -> None:
        if self._future is not None:
            self._future.cancel()  # One under way goes on for a second at most, and is dropped.
            self._future = None

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
    address = ctypes.cast(lib._lib.llama_tokenize, ctypes.c_void_p).value  # noqa: SLF001  # the bindings give it out by no other name
    # Not in its stubs, but what `llguidance.llamacpp` calls: that module takes each <...> for special.
    make: Callable[..., LLTokenizer] = getattr(LLTokenizer, "from_llamacpp")  # noqa: B009  # typed as not there
    return make(
        tokens=tokens,
        vocab_ptr=vocab.pointer,
        tokenize_fptr=address,
        eos_token=sorted(vocab.end_tokens),
        slices=LLTokenizer.json_slices(),
    )
