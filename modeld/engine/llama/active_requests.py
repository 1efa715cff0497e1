# SPDX-License-Identifier: GPL-3.0-only
"""Requests in slots (streams, prefills, embeddings): admit them, finish them, free their slots."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from modeld.domain.request_events import FinishReason
from modeld.engine.llama.embedding.decode import Embedder
from modeld.engine.llama.embedding.job import EmbedJob
from modeld.engine.llama.job import Job
from modeld.engine.llama.kv.manager import KvManager
from modeld.engine.llama.kv.prefix_cache import NoSlotReason
from modeld.engine.llama.native.model import Model
from modeld.engine.protocol import Output, RequestAdmitted, RequestDone, RequestFailed, TokenOutput
from modeld.errors import ModeldError


class ActiveRequests:
    """The jobs of one engine that have a slot. Whoever leaves gives it back here, and nowhere else.

    Attributes:
      running: those that generate, the oldest first.
    """

    def __init__(self, model: Model, places: KvManager, embedder: Embedder, cells: int) -> None:
        """`cells`: KV cells that one may have at most, in any layout."""
        self.running: list[Job] = []
        self._model = model
        self._cells = cells
        self._places = places
        self._embedder = embedder
        self._full = False
        """Until one leaves there is no room for the first that waits."""

    @property
    def busy(self) -> bool:
        """Whether anybody is in a slot."""
        return bool(self.running or self._embedder.jobs)

    @property
    def streams(self) -> int:
        """How many wait for their next token."""
        return sum(job.pending >= 0 for job in self.running)

    def admit(self, waiting: deque[Job | EmbedJob], outputs: list[Output]) -> None:
        """Give slots to those that wait, in their order, until there is no room for the first."""
        while waiting and not self._full:
            job = waiting[0]
            if isinstance(job, EmbedJob):
                job.reserve(self._embedder.rows, self._model.layout, self._cells)
            wait = self._places.admit(job, [*self.running, *self._embedder.jobs])
            if wait is not None:
                self._full = wait is NoSlotReason.ROOM
                return
            waiting.popleft()
            if isinstance(job, EmbedJob):
                self._embedder.jobs.append(job)
            else:
                self.running.append(job)
            if isinstance(job, EmbedJob):
                outputs.append(RequestAdmitted(job.id, job.prompt_length, job.cached))
            else:
                outputs.append(
                    RequestAdmitted(job.id, job.prompt_length, job.cached, job.thought, job.notices)
                )

    def recheck(self) -> None:
        """Look for room again: another one is the first that waits."""
        self._full = False

    def finish(self, job: Job, reason: FinishReason, rest: str, outputs: list[Output]) -> None:
        """End a generation; `rest` is the text that was held back. What it decoded may serve others."""
        if rest:
            outputs.append(TokenOutput(id=job.id, text=rest, count=0))
        self._places.finish(job)
        self._leave(job)
        outputs.append(RequestDone(id=job.id, reason=reason, usage=job.usage, stop=job.text.stop))

    def fail(self, job: Job | EmbedJob, error: ModeldError, outputs: list[Output]) -> None:
        """End a job that cannot go on; nothing of it is kept."""
        self._places.drop(job)
        self._leave(job)
        outputs.append(RequestFailed(id=job.id, problem=error.as_problem(), usage=job.usage))

    def end_embedding(self, job: EmbedJob, reason: FinishReason, outputs: list[Output]) -> None:
        """End a job for embeddings."""
        self._places.drop(job)
        self._leave(job)
        outputs.append(RequestDone(job.id, reason, job.usage))

    def cancel(self, ids: Collection[int], outputs: list[Output]) -> None:
        """End those of these jobs that have a slot."""
        for embedding in [job for job in self._embedder.jobs if job.id in ids]:
            self.end_embedding(embedding, FinishReason.CANCELLED, outputs)
        for job in [job for job in self.running if job.id in ids]:
            self.finish(job, FinishReason.CANCELLED, job.text.flush(), outputs)

    def close(self) -> None:
        """Let go of all jobs, without a word. Idempotent."""
        for job in self.running:
            job.sampler.close()
        self.running.clear()
        self._embedder.jobs.clear()

    def _leave(self, job: Job | EmbedJob) -> None:
        """Take note that a slot is free."""
        if isinstance(job, EmbedJob):
            self._embedder.jobs.remove(job)
        else:
            self.running.remove(job)
            job.sampler.close()
        self._full = False
