# SPDX-License-Identifier: GPL-3.0-only
"""A deterministic scripted engine, for tests of time and faults and for load tests.

It keeps the contract of `protocol.Engine` without llama.cpp. A prompt of n words has n tokens; the
answer repeats the prompt's words, one token a word. Text never depends on neighbours. To those who
only ask for tokens, a byte is a token. Embeddings are four numbers made of the input's checksum.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable

from msgspec.structs import replace

from modeld.domain.request import AS_MANY_AS_FIT, ConstraintKind, EmbedRequest, GenerateRequest, Request
from modeld.domain.request_events import FinishReason, Usage
from modeld.domain.text_filter import TextFilter
from modeld.domain.tool_calls import ends_in_thought
from modeld.engine.fake_script import FakeScript, answer_to, logprobs_of, parse_script, vector_of, words_of
from modeld.engine.protocol import (
    AnswerOutput,
    EngineInfo,
    LoadAborted,
    LoadSpec,
    OnProgress,
    Output,
    RequestAdmitted,
    RequestDone,
    RequestFailed,
    TokenOutput,
    VectorOutput,
)
from modeld.errors import (
    EngineFailed,
    InvalidGrammar,
    InvalidRequest,
    ModeldError,
    ModelFailed,
    PromptTooLong,
)

VOCABULARY = 32_000
LOAD_STEP_S = 0.1
"""A load asks so often whether to go on."""
Pause = Callable[[float], None]
"""Lets so many seconds pass; may return early when the engine is interrupted."""


def load(spec: LoadSpec, on_progress: OnProgress, pause: Pause | None = None) -> FakeEngine:
    """Pretend to load a model: steps of progress over `load_s`.

    Raises: LoadAborted; ModelFailed when the script says so.
    """
    script = parse_script(spec.fake)
    engine = FakeEngine(spec, script, pause)
    parts = max(10, math.ceil(script.load_s / LOAD_STEP_S))
    for part in range(parts):
        if not on_progress(part / parts):
            raise LoadAborted
        engine.pause(script.load_s / parts)
    if script.abort_load:
        _abort("in its load")
    if script.fail_load:
        raise ModelFailed(script.fail_load.replace("_", " "))
    if not on_progress(1.0):
        raise LoadAborted
    return engine


def _abort(where: str) -> None:
    """End the process as llama.cpp does when an assertion fails."""
    os.write(2, f"fake.c:1: GGML_ASSERT(false) {where}\n".encode())
    os.abort()


class _Job:
    """One request in the fake engine."""

    def __init__(self, request_id: int, request: GenerateRequest, words: list[str], room: int) -> None:
        self.id = request_id
        self.request = request
        self.words = words
        self.budget = min(request.max_tokens, room)
        self.prefilled = 0
        self.produced = 0
        self.filter = TextFilter(request.stop)

    @property
    def cells(self) -> int:
        """KV cells it needs at most."""
        return len(self.words) + self.budget

    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(prompt_tokens=len(self.words), completion_tokens=self.produced)


class _EmbedJob(_Job):
    """A request for embeddings: ready when all its words are prefilled."""

    def __init__(self, request_id: int, request: EmbedRequest) -> None:
        words = [str(word) for given in request.inputs for word in words_of(given)]
        super().__init__(request_id, GenerateRequest(max_tokens=1), words, 0)
        self.vectors = tuple(vector_of(given) for given in request.inputs)


class FakeEngine:
    """See the module's docstring and `protocol.Engine`."""

    def __init__(self, spec: LoadSpec, script: FakeScript, pause: Pause | None = None) -> None:
        cells = min(spec.options.ctx, spec.options.slots * script.context)
        self.info = EngineInfo(
            slots=spec.options.slots,
            cells=cells,
            context=min(script.context, cells),
            trained_context=script.context,
            vocabulary=VOCABULARY,
            description="fake",
            has_chat_template=True,
        )
        self.threads = spec.options.threads
        self.pause: Pause = pause or self._wait
        self._script = script
        self._interrupted = threading.Event()
        self._queue: deque[_Job] = deque()
        self._slots: dict[int, _Job] = {}
        self._outputs: list[Output] = []
        self._steps = 0

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._queue or self._slots or self._outputs)

    def submit(self, request_id: int, request: Request) -> None:
        """Take a request."""
        try:
            match request:
                case GenerateRequest():
                    self._queue.append(self._job(request_id, request))
                case EmbedRequest():
                    self._queue.append(_EmbedJob(request_id, request))
                case _:
                    self._outputs.append(AnswerOutput(request_id, answer_to(request)))
        except ModeldError as error:
            self._outputs.append(RequestFailed(request_id, error.as_problem()))

    def cancel(self, request_id: int) -> None:
        """End a request wherever it is."""
        job = self._slots.pop(request_id, None)
        if job is None:
            job = next((waiting for waiting in self._queue if waiting.id == request_id), None)
            if job is None:
                return
            self._queue.remove(job)
        self._outputs.append(RequestDone(request_id, FinishReason.CANCELLED, job.usage()))

    def step(self) -> list[Output]:
        """Admit what fits, prefill one chunk, and give each running request one token."""
        self._admit()
        if self._outputs:  # What is known is told before a decode, which may take long.
            return self._take_outputs()
        self._steps += 1
        if self._steps == self._script.die_at:
            raise EngineFailed(f"the script lets this engine die in its step {self._steps}")
        if self._steps == self._script.abort_at:
            _abort(f"in its step {self._steps}")
        if self._script.spam:
            os.write(2, b"".join(b"spam %d\n" % number for number in range(self._script.spam)))
        prefilling = [job for job in self._slots.values() if job.prefilled < len(job.words)]
        chunks = self._chunks(prefilling)
        seconds = self._script.step_s if len(prefilling) < len(self._slots) else 0.0
        seconds += self._script.prefill_s * sum(chunks.values())
        if self._steps == self._script.stall_at:
            seconds = math.inf
        if self._slots and seconds > 0:
            self.pause(seconds)
        if self._interrupted.is_set():
            self._interrupted.clear()
        else:
            self._advance(chunks)
        return self._take_outputs()

    def interrupt(self) -> None:
        """Make a running step return now, without what it would have brought."""
        self._interrupted.set()

    def set_threads(self, threads: int) -> None:
        """Remember the number; nothing gets faster."""
        self.threads = threads

    def close(self) -> None:
        """Forget everything."""
        self._queue.clear()
        self._slots.clear()
        self._outputs.clear()

    def _wait(self, seconds: float) -> None:
        self._interrupted.wait(None if math.isinf(seconds) else seconds)

    def _job(self, request_id: int, request: GenerateRequest) -> _Job:
        text = (
            " ".join(message.content for message in request.messages) if request.messages else request.prompt
        )
        words = (text or "").split()
        if not words:
            raise InvalidRequest("the prompt is empty: it has no tokens")
        room = self.info.context - len(words)
        if room < 1:
            raise PromptTooLong(
                f"the prompt has {len(words)} tokens, and the context has room for {self.info.context}",
                details={"prompt_tokens": len(words), "context": self.info.context},
            )
        for token, _ in request.sampling.logit_bias:
            if isinstance(token, int) and not 0 <= token < VOCABULARY:
                raise InvalidRequest(
                    f"logit_bias names token {token}, the vocabulary ends at {VOCABULARY - 1}"
                )
        for token in request.stop_tokens:
            if not 0 <= token < VOCABULARY:
                raise InvalidRequest(
                    f"stop_token_ids names token {token}, the vocabulary ends at {VOCABULARY - 1}"
                )
        constraint = request.constraint
        if (
            constraint is not None
            and constraint.kind is ConstraintKind.GRAMMAR
            and "root" not in constraint.text
        ):
            raise InvalidGrammar("the grammar has no rule named root")
        if request.max_tokens == AS_MANY_AS_FIT:
            share = min(self.info.context, self.info.cells // self.info.slots)
            room = min(room, share - len(words) if len(words) < share else share)
            return _Job(request_id, replace(request, max_tokens=room), words, room)
        return _Job(request_id, request, words, room)

    def _take_outputs(self) -> list[Output]:
        outputs, self._outputs = self._outputs, []
        return outputs

    def _admit(self) -> None:
        while self._queue and len(self._slots) < self.info.slots:
            held = sum(job.cells for job in self._slots.values())
            if held + self._queue[0].cells > self.info.cells:
                return
            job = self._queue.popleft()
            self._slots[job.id] = job
            thought = ends_in_thought(job.words[-1])
            self._outputs.append(RequestAdmitted(job.id, len(job.words), thought=thought))

    def _chunks(self, prefilling: list[_Job]) -> dict[int, int]:
        left = self._script.chunk
        chunks: dict[int, int] = {}
        for job in prefilling:
            chunks[job.id] = min(left, len(job.words) - job.prefilled)
            left -= chunks[job.id]
        return chunks

    def _advance(self, chunks: dict[int, int]) -> None:
        for job in list(self._slots.values()):
            job.prefilled += chunks.get(job.id, 0)
            if job.prefilled < len(job.words):
                continue
            if isinstance(job, _EmbedJob):
                del self._slots[job.id]
                self._outputs += [
                    VectorOutput(job.id, 0, job.vectors),
                    RequestDone(job.id, FinishReason.STOP, job.usage()),
                ]
            else:
                self._token(job)

    def _token(self, job: _Job) -> None:
        word = job.words[job.produced % len(job.words)]
        text = word if job.produced == 0 else f" {word}"
        job.produced += 1
        shown = job.filter.push(text.encode())
        reason: FinishReason | None = None
        if job.filter.stopped or (job.produced == self._script.eos_after and not job.request.ignore_eos):
            reason = FinishReason.STOP
        elif job.produced >= job.budget:
            reason = FinishReason.LENGTH
        if reason is not None:
            shown += job.filter.flush()
        self._outputs.append(TokenOutput(job.id, shown, logprobs=logprobs_of(job.request, text)))
        if reason is not None:
            del self._slots[job.id]
            self._outputs.append(RequestDone(job.id, reason, job.usage(), job.filter.stop))
