# SPDX-License-Identifier: GPL-3.0-only
"""Compute embeddings on a generating context, between the steps of its streams.

llama.cpp gives the vector of every token of a batch (pooling "none") when `llama_set_embeddings` is on. It
is on for these decodes only, so generation computes what it always did; they take their KV cells and
their sequences from the same accounts as prompts, and need no memory but those. The pooling is done here,
which also lets an input go in pieces. (A second context would pool by itself and save the logits of each
token, a fifth of the work for a small model, but its cells and buffers would have to be reserved with
every model, whether or not anybody asks for embeddings.)
"""

from __future__ import annotations

import ctypes

import numpy as np

from modeld.engine.llama.embedding.job import EmbedJob, Part, Rows, pack
from modeld.engine.llama.footprint import output_rows
from modeld.engine.llama.kv.memory import KvMemory
from modeld.engine.llama.native.batch import Batch
from modeld.engine.llama.native.library import lib
from modeld.engine.llama.native.model import Model


class Embedder:
    """Decodes for embeddings in one context.

    Attributes:
      jobs: those that have a slot; the first is served first, and goes behind the others then.
      rows: most tokens of one decode: llama.cpp computes the logits of each, and has room for so many.
    """

    def __init__(self, model: Model, batch: Batch) -> None:
        self.jobs: list[EmbedJob] = []
        self.rows = min(output_rows(model.sequences), batch.capacity)
        self._model = model
        self._batch = batch
        self._width = model.output_width

    def decode(self, memory: KvMemory, most: int, spare: list[int]) -> tuple[int, list[Part]]:
        """Decode some tokens.

        Args:
          memory: of the layout that the model has now.
          most: tokens.
          spare: sequences that nobody holds; nothing is left in them.

        Returns: what `llama_decode` returned, and what was to be decoded. Unless that is 0 nothing changed.
        """
        batch, context = self._batch, self._model.context
        parts = pack(self.jobs, min(most, self.rows), spare)
        self.jobs.append(self.jobs.pop(0))
        batch.clear()
        for part in parts:
            tokens = part.job.inputs[part.index][part.begin : part.end]
            batch.add_chunk(tokens, part.begin, part.sequence, wants_logits=True)
        batch.want_all()
        lib.llama_set_embeddings(context, True)
        result = lib.llama_decode(context, batch.struct)
        lib.llama_set_embeddings(context, False)
        for part in parts:
            own = part.sequence == part.job.slot
            if not own or (result == 0 and part.end == len(part.job.inputs[part.index])):
                memory.cut(part.sequence, 0)
            elif result and not memory.cut(part.sequence, part.begin):
                memory.cut(part.sequence, 0)  # A recurrent state cannot be wound back.
                part.job.restart()
        return result, parts

    def take(self, parts: list[Part]) -> list[EmbedJob]:
        """Pool the vectors of a finished decode; return the jobs whose values are no numbers."""
        data = self._vectors()
        row = 0
        broken: list[EmbedJob] = []
        for part in parts:
            count = part.end - part.begin
            if not part.job.take(part, data[row : row + count]) and part.job not in broken:
                broken.append(part.job)
            row += count
        return broken

    def _vectors(self) -> Rows:
        address = ctypes.cast(lib.llama_get_embeddings(self._model.context), ctypes.c_void_p).value
        array = (ctypes.c_float * (self._batch.size * self._width)).from_address(address or 0)
        return np.frombuffer(memoryview(array), dtype=np.float32).reshape(-1, self._width)
