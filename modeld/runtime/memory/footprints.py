# SPDX-License-Identifier: GPL-3.0-only
"""Give every model of a catalogue its best memory estimate, and improve the estimates.

A look at the folder estimates by formula, at once. Models that are new are then asked for one after
another, by a dry run in a child process (`worker.oneshot`), while no request is inside; and each load teaches
(`memory.calibration`). What changes goes to the scheduler as a new catalogue, so a decision never waits for
any of
this. Models that are to run in a thread are not asked for: there may be no second process.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import msgspec
import structlog
import trio
from msgspec.structs import replace

from modeld.domain.model import MIB, Catalog, DryRun, FootprintSource, Isolation, ModelSpec
from modeld.engine.llama.footprint import repacked_types
from modeld.engine.protocol import LoadSpec
from modeld.errors import Problem
from modeld.memory.calibration import NOTABLE, Calibration, after_load, after_measurement, calibrated
from modeld.worker.oneshot import run_dry_run

# ----------------------------------------------------------------------
# What is remembered of footprints between runs: dry runs, and what loads have taught. A file in `state_dir`.
#
# It is a convenience: what cannot be read or written is told once, and never stops anything.

FILE = "footprints.json"
MOST_ENTRIES = 1000
"""The oldest are forgotten beyond that."""
_MOST_BYTES = 16 << 20
_FORMAT = 1

_store_log = structlog.stdlib.get_logger("modeld.footprints")


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one file with certain options."""

    model: str
    """Its id, for people who read the file."""
    run: DryRun | None = None
    learned: Calibration | None = None


class _File(msgspec.Struct, frozen=True, kw_only=True):
    format: int = _FORMAT
    entries: dict[str, Entry] = {}


class FootprintStore:
    """The entries, in the order of their last change. `load` and `save` block on the disk."""

    def __init__(self, folder: Path | None) -> None:
        """`folder`: None remembers nothing."""
        self._path = None if folder is None else folder.expanduser() / FILE
        self._entries: dict[str, Entry] = {}
        self._told = False
        engine = version("llama-cpp-python")
        self._machine = f"{engine} {','.join(sorted(repacked_types()))}"

    def key(self, spec: ModelSpec) -> str:
        """Return what stands for this file with these options, on this machine."""
        options = replace(spec.options, threads=0)  # They come and go with the load of the machine.
        facts = (spec.path, spec.size_bytes, spec.modified_ns, options, self._machine)
        return hashlib.sha256(msgspec.json.encode(facts)).hexdigest()[:32]

    def find(self, key: str) -> Entry | None:
        """Return what is known."""
        return self._entries.get(key)

    def put(self, key: str, entry: Entry) -> None:
        """Remember; `save` makes it last."""
        self._entries.pop(key, None)
        self._entries[key] = entry
        while len(self._entries) > MOST_ENTRIES:
            del self._entries[next(iter(self._entries))]

    def load(self) -> None:
        """Read the file. A file that cannot be used is ignored, with a warning."""
        if self._path is None:
            return
        try:
            self._entries = _read(self._path)
        except FileNotFoundError:
            return
        except (OSError, ValueError, RecursionError) as error:
            _store_log.warning(
                "what was learned of footprints is ignored", file=str(self._path), reason=str(error)
            )

    def frozen(self) -> bytes:
        """Return what `save` is to write."""
        return msgspec.json.format(msgspec.json.encode(_File(entries=self._entries)), indent=1)

    def save(self, content: bytes) -> None:
        """Write the file as a whole: a reader sees the old one or the new one. Never raises."""
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{FILE}.")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                Path(name).replace(self._path)
            except BaseException:  # whatever it is: no half-written file stays
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            if not self._told:
                self._told = True
                reason = error.strerror or str(error)
                _store_log.warning(
                    "what is learned of footprints cannot be kept", file=str(self._path), reason=reason
                )


def _read(path: Path) -> dict[str, Entry]:
    """Return the entries of a file. Raises: OSError, ValueError."""
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES >> 20} MiB")
    found = msgspec.json.decode(path.read_bytes(), type=_File)
    if found.format != _FORMAT:
        raise ValueError(f"its format is {found.format}, and {_FORMAT} is known here")
    return dict(list(found.entries.items())[-MOST_ENTRIES:])


# ----------------------------------------------------------------------

SETTLE_S = 2.0
"""A catalogue that changes settles for so long before its models are asked for."""
PATIENCE_S = 2.0
"""The store is not waited for longer: a disk that does not answer holds no start up."""
RETRY_S = 300.0
"""A dry run that did not end in time is tried again after so many seconds, or with the next change."""
SAVE_S = 1.0
"""What changes within so many seconds is written at once."""

_log = structlog.stdlib.get_logger("modeld.footprints")

DryRunner = Callable[[LoadSpec], Awaitable[DryRun | Problem]]
Disk = Callable[[Callable[[], None]], Awaitable[None]]


async def _in_thread(work: Callable[[], None]) -> None:
    await trio.to_thread.run_sync(work, abandon_on_cancel=True)


class MemoryObserver(Protocol):
    """Who hears what models really take."""

    def ready(self, spec: ModelSpec, held: int) -> None:
        """A worker became ready, and held so many bytes."""
        ...

    def measured(self, spec: ModelSpec, held: int) -> None:
        """A worker that serves holds so many bytes."""
        ...

    def out_of_memory(self, spec: ModelSpec) -> None:
        """Memory ran out while this model was loaded."""
        ...


class FootprintEstimator:
    """Keeps the contract of `MemoryObserver`."""

    def __init__(
        self,
        store: FootprintStore,
        *,
        publish: Callable[[Catalog], None],
        idle: Callable[[], Awaitable[object]],
        prober: DryRunner = run_dry_run,
        disk: Disk = _in_thread,
        dry_runs: bool = True,
    ) -> None:
        """`publish` takes each catalogue with its estimates; `idle` returns when no request is inside.

        `disk` runs what blocks on the disk. Without `dry_runs` there is the formula, and what loads teach.
        """
        self._disk = disk
        self._dry_runs = dry_runs
        self._store = store
        self._publish = publish
        self._idle = idle
        self._prober = prober
        self._catalog = Catalog()
        self._problems: dict[str, str] = {}
        self._retry: list[str] = []
        self._changed = trio.Event()
        self._dirty = trio.Event()

    def take(self, catalog: Catalog) -> None:
        """Take over what a look at the folder has found, and publish it with what is known."""
        self._catalog = catalog
        keys = {self._store.key(spec) for spec in catalog.models.values()}
        self._problems = {key: text for key, text in self._problems.items() if key in keys}
        self._publish(self._estimated())
        self._changed.set()

    def ready(self, spec: ModelSpec, held: int) -> None:
        """Learn from a worker that became ready."""
        if held:
            self._learn(spec, lambda learned: after_load(learned, spec.scale, held))

    def measured(self, spec: ModelSpec, held: int) -> None:
        """Learn from a worker that holds more than was expected."""
        self._learn(spec, lambda learned: after_measurement(learned, spec.scale, held))

    def out_of_memory(self, spec: ModelSpec) -> None:
        """Raise the estimate."""
        self._learn(spec, lambda learned: replace(learned, raised=True))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read the store, then ask for what is not known. `started()` when the store is read.

        Never returns. Cancellation: ends a dry run.
        """
        with trio.move_on_after(PATIENCE_S):
            await self._disk(self._store.load)
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep)
            while True:
                with trio.move_on_after(RETRY_S if self._retry else math.inf):
                    await self._changed.wait()
                self._changed = trio.Event()
                await trio.sleep(SETTLE_S)
                for key in self._retry:
                    self._problems.pop(key, None)
                self._retry.clear()
                while self._dry_runs and (spec := self._next()) is not None:
                    await self._idle()
                    await self._ask(spec)

    def _next(self) -> ModelSpec | None:
        """Return a model that can be loaded, has a process of its own, and was not asked for."""
        for spec in self._catalog.models.values():
            if spec.error is None and spec.facts is not None and spec.options.isolation is Isolation.PROCESS:
                key = self._store.key(spec)
                entry = self._store.find(key)
                if key not in self._problems and (entry is None or entry.run is None):
                    return spec
        return None

    async def _ask(self, spec: ModelSpec) -> None:
        key = self._store.key(spec)
        load = LoadSpec(model_id=spec.id, path=spec.path, options=spec.options, facts=spec.facts)
        answer = await self._prober(load)
        if isinstance(answer, Problem):
            self._problems[key] = answer.message
            if "within_s" in answer.details:  # The machine may have been busy.
                self._retry.append(key)
            _log.warning("a model's footprint is only a formula's", model=spec.id, reason=answer.message)
        else:
            entry = self._store.find(key) or Entry(model=spec.id)
            # What was learned alongside the formula says nothing of the dry run.
            self._put(key, replace(entry, run=answer, learned=None))
            _log.info(
                "footprint",
                model=spec.id,
                probed_mb=answer.peak.total // MIB,
                formula_mb=spec.footprint.total // MIB,
            )
        self._publish(self._estimated())

    def _learn(self, spec: ModelSpec, how: Callable[[Calibration], Calibration]) -> None:
        key = self._store.key(spec)
        entry = self._store.find(key) or Entry(model=spec.id)
        source = FootprintSource.FORMULA if entry.run is None else FootprintSource.PROBE
        if source is not spec.scale.source or not spec.scale.base.total:
            return  # It was loaded by another estimate than the one that is known by now.
        before = entry.learned or Calibration()
        after = how(before)
        if after == entry.learned:
            return
        self._put(key, replace(entry, learned=after))
        if entry.learned is None or abs(after.ratio - before.ratio) > NOTABLE:
            _log.info(
                "learned", model=spec.id, ratio=round(after.ratio, 3), measured_mb=after.measured // MIB
            )
        self._publish(self._estimated())

    def _put(self, key: str, entry: Entry) -> None:
        self._store.put(key, entry)
        self._dirty.set()

    def _estimated(self) -> Catalog:
        return replace(
            self._catalog,
            models={model_id: self._estimate_dry(spec) for model_id, spec in self._catalog.models.items()},
        )

    def _estimate_dry(self, spec: ModelSpec) -> ModelSpec:
        if spec.error is not None or spec.facts is None:
            return spec
        key = self._store.key(spec)
        entry = self._store.find(key) or Entry(model=spec.id)
        return calibrated(spec, entry.run, entry.learned, self._problems.get(key, ""))

    async def _keep(self) -> None:
        while True:
            await self._dirty.wait()
            await trio.sleep(SAVE_S)
            self._dirty = trio.Event()
            await self._disk(partial(self._store.save, self._store.frozen()))
