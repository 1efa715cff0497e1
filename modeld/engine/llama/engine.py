# SPDX-License-Identifier: GPL-3.0-only
"""The llama.cpp engine: one model, several slots, one `llama_decode` per step for all of them.

A step receives (cancels, new requests, free slots), schedules (the next token of each running slot,
then a chunk of the prompts in prefill), forwards (one decode) and processes (samples, text, ends).

Same seed, same text holds for a request that runs alone in a fresh engine. Alongside others, or when the
beginning of its prompt is retained, batches have another shape and the cache has other cells. With
flash attention on (`llama_flash_attn: true`) a CPU then gives the same bits, as long as it takes
the same kernel (there is one for tiles of 64 rows and more, and one for a single row over 512 cells and
more), and as long as the cells of a request lie in the order of its tokens: values are summed, in 16
bits, in the order of the cells, and llama.cpp fills the gaps that others left. With it off llama.cpp
multiplies one row by another kernel than several; logits differ by some tenths, and texts part after some
tens of tokens (SmolLM2-135M, 64 tokens alongside three others: 3 of 8 greedy texts were the same, none of 8
sampled ones; with flash attention all of them).
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from operator import attrgetter
from pathlib import Path

import numpy as np

from modeld.domain.request import Request
from modeld.domain.request_events import FinishReason
from modeld.engine.llama.active_requests import ActiveRequests
from modeld.engine.llama.constraints.matcher import logits_of
from modeld.engine.llama.embedding.decode import Embedder
from modeld.engine.llama.embedding.engine import EmbeddingEngine
from modeld.engine.llama.gguf.facts import GgufError, read_facts
from modeld.engine.llama.job import Job
from modeld.engine.llama.kv.manager import KvManager
from modeld.engine.llama.kv.split_cache import order
from modeld.engine.llama.native.batch import Batch
from modeld.engine.llama.native.library import last_lines, lib, logger
from modeld.engine.llama.native.load_abort import abortable
from modeld.engine.llama.native.model import Model
from modeld.engine.llama.native.vocab import Vocab
from modeld.engine.llama.prefill import ChunkRule, shares
from modeld.engine.llama.prompts.renderer import PromptRenderer
from modeld.engine.llama.request_queue import ContextLimits, RequestQueue
from modeld.engine.llama.token_step import DecodeFailures, TokenStep, without_numbers
from modeld.engine.protocol import Engine, EngineInfo, LoadSpec, OnProgress, Output
from modeld.errors import EngineFailed, ModelFailed

_SLOT = attrgetter("slot")
_OK, _NO_CELLS, _ABORTED = 0, 1, 2
"""What `llama_decode` returns; below zero it failed."""


def load(spec: LoadSpec, on_progress: OnProgress) -> Engine:
    """Load a model.

    Raises: LoadAborted when `on_progress` returns False; ModelFailed.
    """
    pooling = _pooling_of(spec)
    return EmbeddingEngine(spec, on_progress, pooling) if pooling else LlamaEngine(spec, on_progress)


def _in_order(members: list[Job]) -> list[Job]:
    """Return streams and prompts as they are best written into one batch."""
    by_slot = {job.slot: job for job in members}
    streams = [job.slot for job in members if job.pending >= 0]
    prompts = [job.slot for job in members if job.pending < 0]
    return [by_slot[slot] for slot in order(streams, prompts)]


def _pooling_of(spec: LoadSpec) -> str:
    """Return how an embedding model pools, empty for any other, and for a file that cannot be read."""
    if spec.facts is not None:
        return spec.facts.pooling
    try:
        return read_facts(Path(spec.path)).pooling
    except (GgufError, OSError):
        return ""


class LlamaEngine:
    """See `modeld.engine.protocol.Engine`, whose contract this keeps."""

    def __init__(self, spec: LoadSpec, on_progress: OnProgress) -> None:
        self._id = spec.model_id
        self._model = model = Model(spec, on_progress)
        self._closed = False
        self._flag = model.flag
        self._vocab = vocab = Vocab(model.vocab)
        self._template = PromptRenderer(
            model.chat_template,
            bos=vocab.text(vocab.bos),
            eos=vocab.text(vocab.eos),
            controls=vocab.control_texts,
        )
        self._batch = Batch(model.batch_tokens, model.sequences)
        self._cancelled: set[int] = set()
        self._shifting = False
        self._guessed = 0
        self._faults = DecodeFailures(self._id)
        try:
            with abortable(self._flag, on_progress, self._id):
                began = time.perf_counter()
                self._warm_up()
                self._chunks = ChunkRule(model.batch_tokens, time.perf_counter() - began)
            self._places = KvManager(model, spec.options, self._batch, max(vocab.bos, 0))
        except BaseException:  # whatever it is: what llama.cpp holds is freed
            self._template.close()
            model.close()
            raise
        can_guess = not (model.recurrent or model.windowed)
        self._intake = RequestQueue(self._id, vocab, self._template, can_guess=can_guess)
        self._embedder = Embedder(model, self._batch)
        cells = max(model.cells, self._places.context)
        self._seats = ActiveRequests(model, self._places, self._embedder, cells)
        self._running = self._seats.running
        self._draw = TokenStep(model, vocab, self._places, self._seats)
        self._info = EngineInfo(
            slots=spec.options.slots,
            cells=cells,
            context=self._places.context,
            trained_context=model.trained_context,
            vocabulary=vocab.size,
            description=model.description,
            has_chat_template=self._template.usable,
        )

    @property
    def info(self) -> EngineInfo:
        """What was loaded."""
        return self._info

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        return self._seats.busy or self._intake.busy

    def submit(self, request_id: int, request: Request) -> None:
        """Take a request; `step` refuses it if it is bad."""
        self._intake.submit(request_id, request)

    def cancel(self, request_id: int) -> None:
        """End a request in the next step."""
        self._cancelled.add(request_id)

    def interrupt(self) -> None:
        """Make a running step return soon, from any thread."""
        self._flag.up()

    def set_threads(self, threads: int) -> None:
        """Use so many CPU threads from the next step on."""
        self._model.set_threads(threads)

    def close(self) -> None:
        """Free the model and all requests. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._template.close()
        self._intake.close()
        self._seats.close()
        self._model.close()

    def step(self) -> list[Output]:
        """Receive, schedule, forward, process.

        The flag of `interrupt` goes down at the end: a cancel that it announces was put into the
        owner's inbox before, and the owner looks there before the next step.
        """
        outputs: list[Output] = []
        self._receive(outputs)
        if not self._intake.tells_first(known=bool(outputs)):
            batch = self._schedule()
            if batch:
                self._forward(batch, outputs)
            if self._embedder.jobs:
                self._embed(outputs)
        self._flag.down()
        return outputs

    # receive

    def _receive(self, outputs: list[Output]) -> None:
        if self._cancelled:
            if self._intake.cancel(self._cancelled, outputs):
                self._seats.recheck()
            self._seats.cancel(self._cancelled, outputs)
            self._cancelled.clear()
        if self._intake.busy:
            streams = self._seats.streams > 0
            self._intake.prepare(self._room, outputs, busy=bool(self._running), streams=streams)
            self._seats.admit(self._intake.waiting, outputs)

    @property
    def _room(self) -> ContextLimits:
        """What a request may have, in the layout that the model has now."""
        layout = self._model.layout
        context = self._info.context
        share = min(context, layout.share // self._info.slots if layout.unified else layout.share)
        return ContextLimits(context, share, self._places.shifts)

    # schedule

    def _schedule(self) -> list[Job]:
        """Write the batch, in the order of `split.order`; return the jobs in it, the oldest first."""
        prompts = [job for job in self._running if job.pending < 0]
        if prompts:
            budget = self._chunks.budget(len(self._running) - len(prompts), len(prompts))
            granted = shares([job.prompt_length - job.kept for job in prompts], budget)
            for job, tokens in zip(prompts, granted, strict=True):
                job.upto = job.kept + tokens
            members = [job for job in self._running if job.pending >= 0 or job.upto > job.kept]
        else:
            members = self._running.copy()
        batch = self._batch
        batch.clear()
        self._guessed = 0
        for job in members:
            if job.kept >= job.context:
                self._places.make_room(job)
                self._shifting = True
        for job in _in_order(members) if prompts else sorted(members, key=_SLOT):
            if job.pending >= 0:
                job.row = batch.add_token(job.pending, job.kept, job.slot)
                job.upto = job.kept + 1
                if job.lookup is not None and not prompts:
                    self._add_guess(job)
            else:
                last = job.upto == job.prompt_length
                row = batch.add_chunk(job.prompt[job.kept : job.upto], job.kept, job.slot, wants_logits=last)
                job.row = row if last else -1
        return members

    def _add_guess(self, job: Job) -> None:
        """Let the batch compute ahead what may follow in a text, in rows behind that of its next token.

        There are only so many rows of logits. Not while prompts are in prefill: they need the time more.
        """
        rows = min(self._model.rows, self._batch.capacity) - len(self._running) - self._guessed
        for position, token in enumerate(job.take_guess(rows), job.upto):
            self._batch.add_token(token, position, job.slot)
        self._guessed += len(job.guess)

    # forward

    def _forward(self, members: list[Job], outputs: list[Output]) -> None:
        began = time.perf_counter()
        with self._model.uninterrupted() if self._shifting else nullcontext():
            result = lib.llama_decode(self._model.context, self._batch.struct)
        self._shifting = False
        if result != _OK:
            self._recover(members, result, outputs)
            return
        self._faults.passed()
        streams = sum(job.pending >= 0 for job in members)
        prompt_tokens = self._batch.size - streams - self._guessed
        for job in members:
            job.kept = job.upto
            if job.guess:
                self._draw.verify_draft(job, outputs)
            elif job.row >= 0:
                self._draw.advance(job, outputs)
        self._chunks.learn(streams, prompt_tokens, time.perf_counter() - began)

    def _recover(self, members: list[Job], result: int, outputs: list[Output]) -> None:
        """After a decode that did not finish: send again what was lost, give up what cannot be decoded.

        An interrupt only costs the work of this step. Any other fault ends the newest request of the
        batch, so that the rest can go on, and faults in a row come to an end.
        """
        for job in members:
            self._read_back(job)
        if result == _ABORTED:
            return
        newest = members[-1]
        if result == _NO_CELLS:
            fault = self._faults.given_up(f"no KV cells were left for a batch of {self._batch.size} tokens")
        else:
            fault = self._faults.failed(f"llama_decode failed with {result} ({_said()})")
        logger.warning("%s", fault)
        self._seats.fail(newest, fault, outputs)

    def _read_back(self, job: Job) -> None:
        """Take what the cache holds of a job as its state; a row whose logits are lost comes out again."""
        job.guess = []
        kept = self._places.memory.length(job.slot)
        if job.row >= 0 and kept >= job.upto:
            kept = job.upto - 1
            if not self._places.memory.cut(job.slot, kept):
                raise EngineFailed(
                    f"{self._id}: the KV cache of this model cannot be wound back; load it again"
                )
        job.kept = kept

    def _embed(self, outputs: list[Output]) -> None:
        """Decode for embeddings, as much as the streams alongside it allow, and give out what is ready."""
        streams = self._seats.streams
        most = self._chunks.budget(streams, 1) if streams else self._embedder.rows
        result, parts = self._embedder.decode(self._places.memory, most, self._places.cache.spare)
        if result == _ABORTED:
            return
        if result != _OK:
            fault = self._faults.failed(f"llama_decode failed with {result} for an embedding ({_said()})")
            logger.warning("%s", fault)
            self._seats.fail(parts[-1].job, fault, outputs)
            return
        self._faults.passed()
        for job in self._embedder.take(parts):
            self._seats.fail(job, without_numbers(self._model), outputs)
        for job in [job for job in self._embedder.jobs if job.index > job.told]:
            outputs.append(job.tell())
            if job.ended:
                self._seats.end_embedding(job, FinishReason.STOP, outputs)

    def _warm_up(self) -> None:
        """Decode one token: reads the weights into memory, and shows whether the model computes."""
        token = max(self._vocab.bos, 0)
        self._batch.clear()
        row = self._batch.add_token(token, 0, 0)
        result = lib.llama_decode(self._model.context, self._batch.struct)
        if result != _OK:
            raise ModelFailed(f"{self._id} was loaded, but its first decode failed with {result}")
        if not np.isfinite(logits_of(self._model.context, row, self._vocab.size)).all():
            raise ModelFailed(f"{self._id} computes values that are no numbers; its file is damaged")
        lib.llama_memory_clear(self._model.memory, False)


def _said() -> str:
    """Return the last word of llama.cpp."""
    return last_lines[-1] if last_lines else "no reason given"
