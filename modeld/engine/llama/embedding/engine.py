# SPDX-License-Identifier: GPL-3.0-only
"""The engine of an embedding model: one decode of whole inputs per step, for as many requests as fit.

These models read an input as a whole (attention looks both ways, or llama.cpp pools over one physical
batch), so an input has no more tokens than a batch: `llama_ubatch`. Nothing is kept between decodes.
"""

from __future__ import annotations

import ctypes
from collections import deque
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from modeld.domain.request import EmbedRequest, Pooling, Request, VocabularyRequest
from modeld.domain.request_events import FinishReason, Usage
from modeld.engine.llama.embedding.job import EmbedJob, Part, pack_whole, prepare_embedding
from modeld.engine.llama.footprint import EMBED_SEQUENCES, embed_tokens
from modeld.engine.llama.kv.layout import Layout
from modeld.engine.llama.native.batch import Batch
from modeld.engine.llama.native.library import last_lines, lib, logger
from modeld.engine.llama.native.load_abort import abortable
from modeld.engine.llama.native.model import Model
from modeld.engine.llama.native.vocab import Vocab
from modeld.engine.llama.prompts.renderer import PromptRenderer
from modeld.engine.llama.request_queue import answer, prepare_or_fail
from modeld.engine.protocol import (
    AnswerOutput,
    EngineInfo,
    LoadSpec,
    OnProgress,
    Output,
    RequestAdmitted,
    RequestDone,
    RequestFailed,
)
from modeld.errors import EngineFailed, InvalidRequest, ModelFailed

_OK, _ABORTED = 0, 2
_MOST_FAULTS = 3
"""Failed decodes in a row after which the engine as a whole counts as broken."""
_POOLINGS = {"mean": lib.LLAMA_POOLING_TYPE_MEAN, "cls": lib.LLAMA_POOLING_TYPE_CLS}
_POOLINGS["last"] = lib.LLAMA_POOLING_TYPE_LAST


class EmbeddingModel(Model):
    """A loaded embedding model, whose context pools by sequence."""

    def _refuse(self, spec: LoadSpec) -> None:
        if lib.llama_model_has_encoder(self.pointer) and lib.llama_model_has_decoder(self.pointer):
            raise ModelFailed(f"{spec.model_id} has an encoder and a decoder; modeld serves no such models")

    def _find_memory(self) -> int:
        """Return the KV cache, 0 for a model without."""
        return lib.llama_get_memory(self.context) or 0

    def _params(self, layout: Layout) -> Any:
        """Return llama.cpp's parameters. It aborts if the sequences do not divide the tokens of a batch."""
        params = super()._params(layout)
        params.n_ctx = params.n_batch = params.n_ubatch = embed_tokens(self._options)
        params.kv_unified = True
        params.n_seq_max = EMBED_SEQUENCES
        params.n_outputs_max = params.n_outputs_max_per_seq = 0
        params.embeddings = True
        params.pooling_type = _POOLINGS[self.pooling]
        return params


class EmbeddingEngine:
    """See `modeld.engine.protocol.Engine`, whose contract this keeps."""

    def __init__(self, spec: LoadSpec, on_progress: OnProgress, pooling: str) -> None:
        self._id = spec.model_id
        self._pooling = pooling
        self._model = model = EmbeddingModel(spec, on_progress, pooling)
        self._vocab = vocab = Vocab(model.vocab)
        self._template = PromptRenderer(None, bos="", eos="", controls=())
        self._batch = Batch(model.batch_tokens, EMBED_SEQUENCES)
        self._submitted: deque[tuple[int, Request]] = deque()
        self._waiting: deque[EmbedJob] = deque()
        self._running: list[EmbedJob] = []
        self._cancelled: set[int] = set()
        self._faults = 0
        self._closed = False
        trained = model.trained_context or model.batch_tokens
        most = min(spec.options.ubatch, spec.options.ctx)
        self._why = "" if most >= trained else ", or raise llama_ubatch"
        self.info = EngineInfo(
            slots=spec.options.slots,
            cells=model.batch_tokens,
            context=min(trained, most),
            trained_context=model.trained_context,
            vocabulary=vocab.size,
            description=model.description,
        )
        try:
            with abortable(model.flag, on_progress, self._id):
                self._warm_up()
        except BaseException:  # whatever it is: the model is freed
            self.close()
            raise

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._running or self._waiting or self._submitted)

    def submit(self, request_id: int, request: Request) -> None:
        """Take a request; `step` refuses it if it is bad."""
        self._submitted.append((request_id, request))

    def cancel(self, request_id: int) -> None:
        """End a request in the next step."""
        self._cancelled.add(request_id)

    def interrupt(self) -> None:
        """Make a running step return soon, from any thread."""
        self._model.flag.up()

    def set_threads(self, threads: int) -> None:
        """Use so many CPU threads from the next step on."""
        self._model.set_threads(threads)

    def close(self) -> None:
        """Free the model and all requests. Idempotent."""
        if not self._closed:
            self._closed = True
            self._template.close()
            self._running.clear()
            self._waiting.clear()
            self._submitted.clear()
            self._model.close()

    def step(self) -> list[Output]:
        """Take in what came, or else decode once."""
        outputs: list[Output] = []
        self._receive(outputs)
        if not outputs and self._running:
            self._embed(outputs)
        self._model.flag.down()
        return outputs

    def _receive(self, outputs: list[Output]) -> None:
        while self._submitted:
            request_id, request = self._submitted.popleft()
            if request_id in self._cancelled:
                outputs.append(RequestDone(request_id, FinishReason.CANCELLED, Usage()))
                continue
            prepare_or_fail(
                self._id, request_id, partial(self._prepare, request_id, request, outputs), outputs
            )
        for jobs in (self._waiting, self._running):
            for job in [job for job in jobs if job.id in self._cancelled]:
                jobs.remove(job)
                outputs.append(RequestDone(job.id, FinishReason.CANCELLED, job.usage))
        self._cancelled.clear()
        while self._waiting and len(self._running) < self.info.slots:
            job = self._waiting.popleft()
            self._running.append(job)
            outputs.append(RequestAdmitted(job.id, job.prompt_length))

    def _prepare(self, request_id: int, request: Request, outputs: list[Output]) -> None:
        if isinstance(request, VocabularyRequest):
            outputs.append(AnswerOutput(request_id, answer(request, self._vocab, self._template)))
            return
        if not isinstance(request, EmbedRequest):
            raise InvalidRequest(f"{self._id} is an embedding model: it generates no text")
        if request.pooling not in (None, Pooling(self._pooling)):
            raise InvalidRequest(
                f"{self._id} pools by {self._pooling}; leave out `pooling`, or give that ({request.pooling})"
            )
        job = prepare_embedding(request_id, request, self._vocab, context=self.info.context, why=self._why)
        self._waiting.append(job)

    def _embed(self, outputs: list[Output]) -> None:
        parts = pack_whole(self._running, self._batch.capacity, EMBED_SEQUENCES)
        self._running.append(self._running.pop(0))  # Jobs take turns at being first.
        result = self._decode(parts)
        if result == _ABORTED:
            return
        if result != _OK:
            self._fail(parts, result, outputs)
            return
        self._faults = 0
        for part in parts:
            vector = self._vector(part.sequence)
            if not part.job.found(vector) and part.job in self._running:
                fault = EngineFailed(
                    f"{self._id} computes values that are no numbers; its file may be damaged"
                )
                self._running.remove(part.job)
                outputs.append(RequestFailed(part.job.id, fault.as_problem(), part.job.usage))
        for job in dict.fromkeys(part.job for part in parts):
            if job not in self._running:
                continue
            outputs.append(job.tell())
            if job.ended:
                self._running.remove(job)
                outputs.append(RequestDone(job.id, FinishReason.STOP, job.usage))

    def _decode(self, parts: list[Part]) -> int:
        batch = self._batch
        batch.clear()
        for part in parts:
            batch.add_chunk(part.job.inputs[part.index], 0, part.sequence, wants_logits=True)
        batch.want_all()
        if self._model.memory:
            lib.llama_memory_clear(self._model.memory, False)
        return lib.llama_decode(self._model.context, batch.struct)

    def _fail(self, parts: list[Part], result: int, outputs: list[Output]) -> None:
        """Give up the newest request of the batch, so that the rest can go on; faults in a row end."""
        self._faults += 1
        said = last_lines[-1] if last_lines else "no reason given"
        reason = f"llama_decode failed with {result} ({said})"
        if self._faults >= _MOST_FAULTS:
            raise EngineFailed(f"{self._id}: {reason}, {self._faults} times in a row; load the model again")
        logger.warning("%s: %s", self._id, reason)
        job = parts[-1].job
        self._running.remove(job)
        fault = EngineFailed(f"{self._id}: {reason}; send the request again")
        outputs.append(RequestFailed(job.id, fault.as_problem(), job.usage))

    def _vector(self, sequence: int) -> npt.NDArray[np.float64]:
        pointer = lib.llama_get_embeddings_seq(self._model.context, sequence)
        address = ctypes.cast(pointer, ctypes.c_void_p).value
        array = (ctypes.c_float * self._model.output_width).from_address(address or 0)
        return np.frombuffer(memoryview(array), dtype=np.float32).astype(np.float64)

    def _warm_up(self) -> None:
        """Decode one input: reads the weights into memory, and shows whether the model computes."""
        job = prepare_embedding(0, EmbedRequest(inputs=((0,),)), self._vocab, context=1, why="")
        result = self._decode([Part(job, 0, 0, 1, 0)])
        if result != _OK:
            raise ModelFailed(f"{self._id} was loaded, but its first decode failed with {result}")
        if not np.isfinite(self._vector(0)).all():
            raise ModelFailed(f"{self._id} computes values that are no numbers; its file is damaged")
