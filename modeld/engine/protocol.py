# SPDX-License-Identifier: GPL-3.0-only
"""The contract of an engine: one model in memory, several slots, one `step` at a time.

An engine is synchronous and belongs to one thread: only `interrupt` may be called from another.
It knows neither HTTP nor Trio. `tests/engine/test_contract.py` holds for every implementation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from modeld.domain.model import EngineKind, LoadOptions, ModelFacts
from modeld.domain.request import Request
from modeld.domain.request_events import FinishReason, Logprobs, Usage, VocabularyAnswer
from modeld.errors import Problem


class LoadSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What to load, and how. Everything an engine needs, so that it can cross to a child process."""

    model_id: str
    path: str
    options: LoadOptions = LoadOptions()
    facts: ModelFacts | None = None
    size_bytes: int = 0
    """Of all parts, when they were looked at; 0: that is not known, and any file will do."""
    modified_ns: int = 0
    """Newest modification time of the parts then, ns since the epoch."""
    kind: EngineKind = EngineKind.LLAMA
    fake: str = ""
    """Script of the fake engine, see `modeld.engine.fake`; unused by others."""


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What was loaded, as it really is (llama.cpp may lower what was asked for)."""

    slots: int
    cells: int
    """KV cells shared by all slots."""
    context: int
    """Most tokens, prompt and answer together, that one request may use."""
    trained_context: int
    vocabulary: int
    description: str = ""
    has_chat_template: bool = False


class RequestAdmitted(msgspec.Struct, frozen=True, tag="admitted"):
    """The request has a slot and its KV cells; prefill begins."""

    id: int
    prompt_tokens: int
    cached_tokens: int = 0
    thought: str = ""
    """The marker of a thought (`domain.tool_calls`) that the prompt ends with, so that the text begins in
    there."""
    notices: tuple[str, ...] = ()
    """What of its schema or its functions is not kept, each in a sentence."""


class TokenOutput(msgspec.Struct, frozen=True, tag="tokens"):
    """Tokens of one step for one request. The first one tells that prefill is over.

    `text` is empty while it is held back: an unfinished UTF-8 character, a possible stop sequence.
    """

    id: int
    text: str
    count: int = 1
    logprobs: tuple[Logprobs, ...] = ()


class VectorOutput(msgspec.Struct, frozen=True, tag="vectors"):
    """Embeddings of consecutive inputs of one request, the first of them number `first` (from 0).

    Each is its numbers as 32-bit floats, least significant byte first.
    """

    id: int
    first: int
    vectors: tuple[bytes, ...]


class AnswerOutput(msgspec.Struct, frozen=True, tag="answered"):
    """The whole answer to a request that needs no slot; nothing follows."""

    id: int
    answer: VocabularyAnswer


class RequestDone(msgspec.Struct, frozen=True, tag="done"):
    """The request left its slot. Held-back text that may be shown came in a `TokenOutput` before."""

    id: int
    reason: FinishReason
    usage: Usage
    stop: str = ""
    """The stop sequence that ended its text, if one did."""


class RequestFailed(msgspec.Struct, frozen=True, tag="broken"):
    """The request is refused (bad grammar, prompt too long, ...) or failed; it holds no slot."""

    id: int
    problem: Problem
    usage: Usage = Usage()


Output = RequestAdmitted | TokenOutput | VectorOutput | AnswerOutput | RequestDone | RequestFailed


class LoadAborted(Exception):
    """`on_progress` returned False, and the load was given up."""


OnProgress = Callable[[float], bool]
"""Called during a load with a fraction in [0, 1]; False gives the load up."""


class Engine(Protocol):
    """One loaded model.

    For each submitted id the outputs are `RequestAdmitted TokenOutput* (RequestDone | RequestFailed)`, or
    `RequestFailed` alone, or `RequestDone` alone when it was cancelled before it had a slot. For one that
    asks for embeddings, `VectorOutput*` stand in the place of `TokenOutput*`. Requests get slots in the order
    of submission; a request gets one when cells for its prompt and `max_tokens` (its inputs) are free. One
    that needs no slot (`domain.request.VocabularyRequest`) is answered by the next step: `AnswerOutput`,
    `RequestFailed` or `RequestDone`.
    """

    @property
    def info(self) -> EngineInfo:
        """What was loaded."""
        ...

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        ...

    def submit(self, request_id: int, request: Request) -> None:
        """Take a request. Never raises for what is in it: that comes as `RequestFailed` from `step`."""
        ...

    def cancel(self, request_id: int) -> None:
        """End a request; `step` answers `RequestDone` with reason CANCELLED. Unknown ids are ignored."""
        ...

    def step(self) -> list[Output]:
        """Do one unit of work: one decode over all slots, or less. Returns what came of it.

        What is known without a decode (`RequestAdmitted`, `RequestFailed`, the `RequestDone` of a cancel) is
        returned at once, before the next decode: that one may take long.

        Returns early and without loss after `interrupt`. Raises only when the engine as a whole
        is broken; the owner then closes it and fails what it held.
        """
        ...

    def interrupt(self) -> None:
        """From any thread: make a running `step` return soon. Loses no work but the current one."""
        ...

    def set_threads(self, threads: int) -> None:
        """Use so many CPU threads from the next step on."""
        ...

    def close(self) -> None:
        """Free the model. Idempotent."""
        ...
