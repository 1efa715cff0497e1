# SPDX-License-Identifier: GPL-3.0-only
"""The real engine: one model in llama.cpp, several slots, one `llama_decode` a step for all of them.

A step receives (cancels, new requests, free slots), schedules (the next token of each running slot,
then a chunk of the prompts in prefill), forwards (one decode) and processes (samples, text, ends).

Same seed, same text holds for a request that runs alone in a fresh engine. Beside others, or when the
beginning of its prompt is retained, batches have another shape and the cache has other cells. With
flash attention on (`llama_flash_attn: true`) a CPU then gives the same bits, as long as it takes
the same kernel (there is one for tiles of 64 rows and more, and one for a single row over 512 cells and
more), and as long as the cells of a request lie in the order of its tokens: values are summed, in 16
bits, in the order of the cells, and llama.cpp fills the gaps that others left. With it off llama.cpp
multiplies one row by another kernel than several; logits differ by some tenths, and texts part after some
tens of tokens (SmolLM2-135M, 64 tokens beside three others: 3 of 8 greedy texts were the same, none of 8
sampled ones; with flash attention all of them).
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import nullcontext
from operator import attrgetter
from pathlib import Path

import numpy as np

from modeld.core.events import FinishReason, Usage
from modeld.core.request import Aside, EmbedRequest, Request
from modeld.engine.llama.aside import answer
from modeld.engine.llama.batch import Batch
from modeld.engine.llama.constrained import NO_TOKEN, logits_of
from modeld.engine.llama.embedder import Embedder
from modeld.engine.llama.embedding import EmbedJob, prepare_embedding
from modeld.engine.llama.embedding_engine import EmbeddingEngine
from modeld.engine.llama.gguf import GgufError, read_facts
from modeld.engine.llama.job import Job, prepare
from modeld.engine.llama.library import last_lines, lib, logger
from modeld.engine.llama.model import Model
from modeld.engine.llama.patience import abortable
from modeld.engine.llama.prefill import ChunkRule, shares
from modeld.engine.llama.prefix import Wait
from modeld.engine.llama.renderer import Renderer, StillRendering
from modeld.engine.llama.residency import Residency
from modeld.engine.llama.split import order
from modeld.engine.llama.turns import Turns
from modeld.engine.llama.vocab import Vocab
from modeld.engine.protocol import (
    Admitted,
    Answered,
    Broken,
    Done,
    Engine,
    EngineInfo,
    LoadSpec,
    OnProgress,
    Output,
    Tokens,
)
from modeld.errors import EngineFailed, InvalidGrammar, ModeldError, ModelFailed

_SLOT = attrgetter("slot")
_OK, _NO_CELLS, _ABORTED = 0, 1, 2
"""What `llama_decode` returns; below zero it failed."""
_MOST_FAULTS = 3
"""Failed decodes in a row after which the engine as a whole counts as broken."""
_RENDER_PATIENCE = 0.003
"""Seconds that streams wait for the prompt of a chat: a usual one is there by then."""
_IDLE_RENDER_PATIENCE = 0.02
"""The same when nobody streams. After it the owner looks for messages."""


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
        self._template = Renderer(
            model.chat_template,
            bos=vocab.text(vocab.bos),
            eos=vocab.text(vocab.eos),
            controls=vocab.control_texts,
        )
        self._batch = Batch(model.batch_tokens, model.sequences)
        self._embedder = Embedder(model, self._batch)
        self._submitted: deque[tuple[int, Request]] = deque()
        self._waiting: deque[Job | EmbedJob] = deque()
        self._running: list[Job] = []
        self._cancelled: set[int] = set()
        self._turns = Turns()
        self._full = False
        self._shifting = False
        self._faults = 0
        self._guessed = 0
        self._can_guess = not (model.recurrent or model.windowed)
        try:
            with abortable(self._flag, on_progress, self._id):
                began = time.perf_counter()
                self._warm_up()
                self._chunks = ChunkRule(model.batch_tokens, time.perf_counter() - began)
            self._places = Residency(model, spec.options, self._batch, max(vocab.bos, 0))
        except BaseException:
            self.close()
            raise
        self._info = EngineInfo(
            slots=spec.options.slots,
            cells=max(model.cells, self._places.context),
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
        return bool(self._running or self._waiting or self._submitted or self._embedder.jobs)

    @property
    def _share(self) -> int:
        """The KV cells of a slot, where all have as many."""
        layout = self._model.layout
        return min(self._info.context, layout.share // self._info.slots if layout.unified else layout.share)

    def submit(self, request_id: int, request: Request) -> None:
        """Take a request; `step` refuses it if it is bad."""
        self._submitted.append((request_id, request))

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
        for job in (*self._running, *self._waiting):
            if isinstance(job, Job):
                job.sampler.close()
        self._running.clear()
        self._embedder.jobs.clear()
        self._waiting.clear()
        self._submitted.clear()
        self._model.close()

    def step(self) -> list[Output]:
        """Receive, schedule, forward, process.

        The flag of `interrupt` goes down at the end: a cancel that it announces was put into the
        owner's inbox before, and the owner looks there before the next step.
        """
        outputs: list[Output] = []
        self._receive(outputs)
        if not self._turns.tells_first(known=bool(outputs)):  # A decode may take long.
            batch = self._schedule()
            if batch:
                self._forward(batch, outputs)
            if self._embedder.jobs:
                self._embed(outputs)
        self._flag.down()
        return outputs

    # receive

    def _receive(self, outputs: list[Output]) -> None:
        if self._submitted:
            self._prepare_submitted(outputs)
        if self._cancelled:
            self._end_cancelled(outputs)
        while self._waiting and not self._full and self._admit(outputs):
            pass

    def _admit(self, outputs: list[Output]) -> bool:
        """Give the first waiting job a slot, or note that until one ends there is no room for it."""
        job = self._waiting[0]
        if isinstance(job, EmbedJob):
            job.reserve(self._embedder.rows, self._model.layout, self._info.cells)
        wait = self._places.admit(job, [*self._running, *self._embedder.jobs])
        if wait is not None:
            self._full = wait is Wait.ROOM
            return False
        self._waiting.popleft()
        if isinstance(job, EmbedJob):
            self._embedder.jobs.append(job)
        else:
            self._running.append(job)
        outputs.append(Admitted(id=job.id, prompt_tokens=job.prompt_length, cached_tokens=job.cached))
        return True

    def _prepare_submitted(self, outputs: list[Output]) -> None:
        """Prepare requests in order, as long as it is their turn.

        The first whose prompt is still being rendered holds the others up.
        """
        for entry in [entry for entry in self._submitted if entry[0] in self._cancelled]:
            self._submitted.remove(entry)
            outputs.append(Done(id=entry[0], reason=FinishReason.CANCELLED, usage=Usage()))
        streams = any(job.pending >= 0 for job in self._running)
        if not self._turns.may_prepare(time.perf_counter(), streams=streams):
            return
        self._template.patience_s = _RENDER_PATIENCE if self._running else _IDLE_RENDER_PATIENCE
        while self._submitted:
            request_id, request = self._submitted[0]
            try:
                self._prepare(request_id, request, outputs)
            except StillRendering:
                break
            except ModeldError as error:
                outputs.append(Broken(id=request_id, problem=error.as_problem()))
            except Exception as error:  # noqa: BLE001 - a defect here must not end the neighbours
                logger.exception("%s: a request could not be prepared", self._id)
                fault = EngineFailed(f"{self._id}: this request could not be prepared: {error!r}")
                outputs.append(Broken(id=request_id, problem=fault.as_problem()))
            self._submitted.popleft()
            self._template.patience_s = _RENDER_PATIENCE
            if not self._turns.may_go_on(time.perf_counter()):
                break
        self._turns.prepared(time.perf_counter())

    def _prepare(self, request_id: int, request: Request, outputs: list[Output]) -> None:
        """Let a request wait for a slot, or answer it if it needs none. Raises what is wrong with it."""
        if isinstance(request, Aside):
            outputs.append(Answered(request_id, answer(request, self._vocab, self._template)))
            return
        if isinstance(request, EmbedRequest):
            embedding = prepare_embedding(
                request_id, request, self._vocab, context=self._info.context, why=", or raise llama_ctx"
            )
            self._waiting.append(embedding)
            return
        job = prepare(
            request_id,
            request,
            vocab=self._vocab,
            template=self._template,
            context=self._info.context,
            share=self._share,
            shifts=self._places.shifts,
        )
        if job.lookup is not None and not self._can_guess:
            logger.info("%s: no prompt lookup: the memory of this model cannot be wound back", self._id)
            job.lookup = None
        self._waiting.append(job)

    def _end_cancelled(self, outputs: list[Output]) -> None:
        for job in [job for job in self._waiting if job.id in self._cancelled]:
            self._waiting.remove(job)
            self._full = False
            if isinstance(job, Job):
                job.sampler.close()
            outputs.append(Done(id=job.id, reason=FinishReason.CANCELLED, usage=Usage()))
        for embedding in [job for job in self._embedder.jobs if job.id in self._cancelled]:
            self._end_embedding(embedding)
            outputs.append(Done(embedding.id, FinishReason.CANCELLED, embedding.usage))
        for job in [job for job in self._running if job.id in self._cancelled]:
            self._finish(job, FinishReason.CANCELLED, job.text.flush(), outputs)
        self._cancelled.clear()

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
        self._faults = 0
        streams = sum(job.pending >= 0 for job in members)
        prompt_tokens = self._batch.size - streams - self._guessed
        for job in members:
            job.kept = job.upto
            if job.guess:
                self._process_guess(job, outputs)
            elif job.row >= 0:
                self._process(job, outputs)
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
            reason = f"no KV cells were left for a batch of {self._batch.size} tokens"
        else:
            self._faults += 1
            reason = (
                f"llama_decode failed with {result} ({last_lines[-1] if last_lines else 'no reason given'})"
            )
        if self._faults >= _MOST_FAULTS:
            raise EngineFailed(f"{self._id}: {reason}, {self._faults} times in a row; load the model anew")
        logger.warning("%s: %s", self._id, reason)
        self._break(newest, EngineFailed(f"{self._id}: {reason}; send the request again"), outputs)

    def _read_back(self, job: Job) -> None:
        """Take what the cache holds of a job as its state; a row whose logits are lost comes out again."""
        job.guess = []
        kept = self._places.memory.length(job.slot)
        if job.row >= 0 and kept >= job.upto:
            kept = job.upto - 1
            if not self._places.memory.cut(job.slot, kept):
                raise EngineFailed(
                    f"{self._id}: the KV cache of this model cannot be wound back; load it anew"
                )
        job.kept = kept

    def _embed(self, outputs: list[Output]) -> None:
        """Decode for embeddings, as much as the streams beside it allow, and give out what is ready."""
        streams = sum(job.pending >= 0 for job in self._running)
        most = self._chunks.budget(streams, 1) if streams else self._embedder.rows
        result, parts = self._embedder.decode(self._places.memory, most, self._places.cache.spare)
        if result == _ABORTED:
            return
        if result != _OK:
            self._embedding_failed(parts[-1].job, result, outputs)
            return
        self._faults = 0
        for job in self._embedder.take(parts):
            fault = EngineFailed(f"{self._id} computes values that are no numbers; its file may be damaged")
            self._end_embedding(job)
            outputs.append(Broken(job.id, fault.as_problem(), job.usage))
        for job in [job for job in self._embedder.jobs if job.index > job.told]:
            outputs.append(job.tell())
            if job.ended:
                self._end_embedding(job)
                outputs.append(Done(job.id, FinishReason.STOP, job.usage))

    def _embedding_failed(self, job: EmbedJob, result: int, outputs: list[Output]) -> None:
        self._faults += 1
        said = last_lines[-1] if last_lines else "no reason given"
        reason = f"llama_decode failed with {result} for an embedding ({said})"
        if self._faults >= _MOST_FAULTS:
            raise EngineFailed(f"{self._id}: {reason}, {self._faults} times in a row; load the model anew")
        logger.warning("%s: %s", self._id, reason)
        self._end_embedding(job)
        fault = EngineFailed(f"{self._id}: {reason}; send the request again")
        outputs.append(Broken(job.id, fault.as_problem(), job.usage))

    def _end_embedding(self, job: EmbedJob) -> None:
        """Give back the slot and the cells of a job."""
        self._embedder.jobs.remove(job)
        self._places.drop(job)
        self._full = False

    # process

    def _process_guess(self, job: Job, outputs: list[Output]) -> None:
        """Sample from row after row, as long as the token that is drawn is the one that was guessed."""
        guess, job.guess = job.guess, []
        job.drafted += len(guess)
        accepted = 0
        while self._process(job, outputs):
            if accepted == len(guess) or job.pending != guess[accepted]:
                break
            accepted += 1
            job.accepted += 1
            job.kept += 1
            job.row += 1
        else:
            return  # Its end has taken out of the cache what is not decoded of it.
        if job.lookup is not None:
            job.lookup.learn(len(guess), accepted)
        if accepted < len(guess) and not self._places.memory.cut(job.slot, job.kept):
            fault = EngineFailed(f"{self._id}: its KV cache cannot be wound back; do without prompt_lookup")
            self._break(job, fault, outputs)

    def _process(self, job: Job, outputs: list[Output]) -> bool:
        """Sample the next token of a job from its row, and end it if that was the last.

        Returns: whether it goes on.
        """
        context = self._model.context
        if not job.generated and not np.isfinite(logits_of(context, job.row, self._vocab.size)).all():
            fault = EngineFailed(f"{self._id} computes values that are no numbers; its file may be damaged")
            self._break(job, fault, outputs)
            self._places.forget_all()  # What it began with may be the cause.
            return False
        try:
            token = job.sampler.sample(context, job.row)
        except InvalidGrammar as error:  # it takes too long, which only shows now
            self._break(job, error, outputs)
            return False
        if token == NO_TOKEN or token in job.ends:
            self._finish(job, FinishReason.STOP, job.text.flush(), outputs)
            return False
        job.choose(token)
        piece = self._vocab.spelling(token) if token in job.spelled else self._vocab.piece(token)
        text = job.text.push(piece)
        reason = None
        if job.generated >= job.limit:
            reason = FinishReason.LENGTH
            text += job.text.flush()
        if job.text.stopped:
            reason = FinishReason.STOP
        logprobs = () if job.logprobs is None else job.logprobs_at(context, token, self._vocab)
        outputs.append(Tokens(id=job.id, text=text, logprobs=logprobs))
        if reason is None:
            return True
        self._finish(job, reason, "", outputs)
        return False

    def _finish(self, job: Job, reason: FinishReason, rest: str, outputs: list[Output]) -> None:
        if rest:
            outputs.append(Tokens(id=job.id, text=rest, count=0))
        self._places.finish(job)
        self._release(job)
        outputs.append(Done(id=job.id, reason=reason, usage=job.usage, stop=job.text.stop))

    def _break(self, job: Job, error: ModeldError, outputs: list[Output]) -> None:
        self._places.drop(job)
        self._release(job)
        outputs.append(Broken(id=job.id, problem=error.as_problem(), usage=job.usage))

    def _release(self, job: Job) -> None:
        """Take note that a slot is free; its sampler ends."""
        self._running.remove(job)
        self._full = False
        job.sampler.close()

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
