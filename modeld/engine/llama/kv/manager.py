# SPDX-License-Identifier: GPL-3.0-only
"""Manage the KV cache: layout, slots, prefixes, and llama.cpp's memory.

The engine asks for a place for a job, and gives it back; what that means for cells is decided by
`PrefixCache` or `SplitCache` and performed here, between decodes.
"""

from __future__ import annotations

from collections.abc import Sequence

from modeld.domain.model import LoadOptions
from modeld.engine.llama.embedding.job import EmbedJob
from modeld.engine.llama.job import Job
from modeld.engine.llama.kv.memory import KvMemory
from modeld.engine.llama.kv.prefix_cache import Move, NoSlotReason, PrefixCache, retention_cap
from modeld.engine.llama.kv.slots import Slots
from modeld.engine.llama.kv.split_cache import SplitCache
from modeld.engine.llama.native.batch import Batch
from modeld.engine.llama.native.library import logger
from modeld.engine.llama.native.model import Model


class KvManager:
    """The places of one engine.

    Attributes:
      memory, cache: of the layout that the model has now.
      context: most tokens that one request may use, prompt and answer together.
      shifts: at the end of the context a generation goes on without its middle.
    """

    def __init__(self, model: Model, options: LoadOptions, batch: Batch, probe_token: int) -> None:
        self._model = model
        self._options = options
        self._batch = batch
        self._probe_token = probe_token
        fixed = model.layout.unified or options.kv_unified is False or options.context_shift
        room = model.layout.share if fixed else model.unified_layout.share
        self.context = min(model.trained_context or room, room)
        self._open()
        self.shifts = options.context_shift and not model.recurrent and self.memory.can_shift
        if options.context_shift and not self.shifts:
            logger.warning(
                "%s: llama_context_shift is on, but the memory of this model cannot be shifted; generations "
                "end with the context",
                model.id,
            )

    def admit(self, job: Job | EmbedJob, running: Sequence[Job | EmbedJob]) -> NoSlotReason | None:
        """Give a job its slot and cells; return why it has to wait, or None.

        Raises: ModelFailed when the cache had to be made again, and could not.
        """
        if job.cells > self._model.layout.share:  # the layout is split, and may be left
            if running:
                return NoSlotReason.ROOM
            self._unify(job)
        if self.memory.windowed:
            self._forget_holes()
        decoded = {
            other.slot: other.lends
            for other in running
            if not self.memory.windowed or self.memory.is_whole(other.slot)
        }
        admission = self.cache.admit(job.prompt, job.cells, decoded)
        if isinstance(admission, NoSlotReason):
            return admission
        self.memory.perform(admission.moves)
        job.begin(admission.sequence, admission.cached)
        return None

    def finish(self, job: Job) -> None:
        """Take back the slot of a job that ended; its cells may stay for others to begin with."""
        whole = not self.memory.windowed or self.memory.is_whole(job.slot)
        self._perform(self.cache.finish(job.slot, job.decoded if whole else job.decoded[:0]))

    def make_room(self, job: Job) -> None:
        """Shift the context of a job that is at its end: half of what follows its prompt goes.

        Of a prompt that fills more than half of the context, the first half of the context stays.
        """
        keep = min(job.prompt_length, job.context // 2)
        discard = (job.kept - keep) // 2
        self.memory.shift(job.slot, keep, discard)
        job.kept -= discard
        job.intact = keep

    def drop(self, job: Job | EmbedJob) -> None:
        """Take back the slot of a job of which nothing may be kept."""
        self._perform(self.cache.drop(job.slot))

    def forget_all(self) -> None:
        """Give up all that is retained."""
        for sequence in self.cache.retained:
            self._perform(self.cache.forget(sequence))

    def _perform(self, moves: tuple[Move, ...]) -> None:
        self.memory.perform(moves)

    def _forget_holes(self) -> None:
        """Give up retained sequences whose windowed layers lost their beginning to others."""
        for sequence in self.cache.retained:
            if not self.memory.is_whole(sequence):
                self._perform(self.cache.forget(sequence))

    def _unify(self, job: Job | EmbedJob) -> None:
        """Make one cache of the shares: from now on a request may have as much as there is."""
        logger.info(
            "%s: a request needs %d KV cells, more than the %d of its share; from now on all slots share one "
            "KV cache (llama_kv_unified: true begins with that)",
            self._model.id,
            job.cells,
            self._model.layout.share,
        )
        self._model.unify()
        self._batch.reach(self._model.layout.sequences)
        self._open()

    def _open(self) -> None:
        """Make the accounts of the layout, with room for retained cells if the model can share them."""
        model, options, layout = self._model, self._options, self._model.layout
        self.memory = KvMemory(model.memory, windowed=model.windowed, split=not layout.unified)
        cell_bytes = 0
        shared_cells_move = options.context_shift and layout.unified
        able = not model.recurrent and layout.sequences > 1 and not shared_cells_move
        if options.prefix_cells != 0 and able:
            with model.uninterrupted():  # an interrupt that is meant for another request proves nothing
                cell_bytes = self.memory.try_out(model.context, self._batch, self._probe_token)
            if not cell_bytes:
                logger.info("%s: no prefix cache: this model's memory cannot be cut or shared", model.id)
        most = model.cells if cell_bytes else 0
        cap = most if options.prefix_cells is None else min(options.prefix_cells, most)
        self.cache: PrefixCache | SplitCache
        if not layout.unified:
            self.cache = SplitCache(options.slots, layout.share, cap)
            return
        slots = Slots(options.slots, model.cells, layout.sequences)
        yields = options.prefix_cells is None
        if yields and cap:
            cap = retention_cap(model.cells, model.weights_bytes, cell_bytes)
        self.cache = PrefixCache(slots, cap, yields=yields)
