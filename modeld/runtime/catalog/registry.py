# SPDX-License-Identifier: GPL-3.0-only
"""Watch the models folder, and publish its catalogue when it changes.

A look blocks on the disk, so it runs in a thread; never more than one, whatever the disk does. A
mount that does not answer (a dead NFS server) holds that one thread in the kernel, where nothing
can reach it. So nobody waits for it without end:
- who asked for a look gets, after `PATIENCE_S`, what was known before, and `error` says why;
- on shutdown the thread has `GRACE_S` to come back, then it is left behind, with a line in the log.
  It is a daemon thread, so it does not hold the process up. All it can still do is return.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import msgspec
import structlog
import trio

from modeld.config.model_settings import ModelSettings
from modeld.config.settings import Settings
from modeld.domain.model import MIB, Catalog
from modeld.memory.space import Capacity
from modeld.runtime.catalog.scan import Scanner, ScanResult

INTERVAL_S = 2.0
"""Seconds between two looks."""
PATIENCE_S = 5.0
"""Seconds that a look may take before those who wait for it are sent on."""
GRACE_S = 1.0
"""Seconds that a look may take when the daemon stops."""

_log = structlog.stdlib.get_logger("modeld.registry")


class ModelRegistry:
    """The models folder, as known from the last look.

    Attributes:
      scanned: all that the last look found.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        on_change: Callable[[Catalog], None] | None = None,
        scan: Callable[[], ScanResult] | None = None,
    ) -> None:
        """`on_change` is called in the event loop with each catalogue that differs from the last.

        `scan` looks at the folder, in a thread (default: a `Scanner` of `settings`).
        """
        self.scanned = ScanResult()
        self._folder = settings.models_dir
        self._scanner = Scanner(settings)
        self._scan = self._scanner.scan if scan is None else scan
        self._on_change = on_change
        self._limiter = trio.CapacityLimiter(1)
        self._wanted = trio.Event()
        self._done = trio.Event()
        self._age_from = -math.inf  # when the last finished look began
        self._stalled = False

    @property
    def catalog(self) -> Catalog:
        """The models known now; empty before the first look."""
        return self.scanned.catalog

    @property
    def error(self) -> str | None:
        """Why the folder cannot be read, as a sentence; None when all is well."""
        if self._stalled:
            return (
                f"the models folder {self._folder} has not answered for {PATIENCE_S:g} s; what is shown was "
                "known before: see whether its disk or mount is well"
            )
        return self.scanned.error

    @property
    def ignored(self) -> Mapping[str, str]:
        """Files that are no models by themselves: name to kind (`projector`, `adapter`, ...)."""
        return self.scanned.ignored

    @property
    def unmatched(self) -> tuple[str, ...]:
        """Keys of the setting `models` that name no model."""
        return self.scanned.unmatched

    def size_by(self, space: Capacity) -> None:
        """Have sizes that are `auto` follow from this space for models. Before it runs."""
        self._scanner.space = space

    def settings_of(self, model_id: str) -> ModelSettings:
        """Return the entry of the setting `models` that applies to this model, united from all that do."""
        return self.scanned.entries.get(model_id, ModelSettings())

    async def refresh(self, max_age_s: float = 0.0) -> Catalog:
        """Return a catalogue from a look that began at most `max_age_s` seconds ago.

        All who wait share one look. Needs `run` to be running. Waits `PATIENCE_S` at most, and then
        returns what was known. Cancellation: leaves the look to the others.
        """
        oldest = trio.current_time() - max_age_s
        await trio.lowlevel.checkpoint()
        while self._age_from < oldest and not self._stalled:
            self._wanted.set()
            await self._done.wait()
        return self.catalog

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look now, then every `INTERVAL_S` and when asked. `started()` after the first look.

        Never returns. Cancellation: see the module's own words on threads.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._rescan_loop)
                await self._done.wait()
                task_status.started()
        finally:
            with trio.move_on_after(GRACE_S, shield=True) as grace:
                async with self._limiter:  # its one token is free when no thread looks
                    pass
            if grace.cancelled_caught:
                _log.error(
                    "a thread that looks at the models folder does not come back and is left behind",
                    folder=str(self._folder),
                    seconds=GRACE_S,
                )

    async def _rescan_loop(self) -> None:
        while True:
            await self._look()
            with trio.move_on_after(INTERVAL_S):
                await self._wanted.wait()

    async def _look(self) -> None:
        """Have the folder looked at once, and publish what was found."""
        self._wanted = trio.Event()
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._report_slow_scan)
            # Abandoned on cancel, so that a dead mount cannot stop the shutdown; `run` sees to the rest.
            scanned = await trio.to_thread.run_sync(
                self._guarded_scan, abandon_on_cancel=True, limiter=self._limiter
            )
            nursery.cancel_scope.cancel()
        self._stalled = False
        self._publish(scanned)
        self._age_from = began
        self._wake()

    def _guarded_scan(self) -> ScanResult:
        """Look, in the thread. A defect of ours costs what is new, not the models that are known."""
        try:
            return self._scan()
        except Exception as error:  # noqa: BLE001  # the wall: told in /status, and what was known is served on
            _log.exception("the look at the models folder broke")
            return msgspec.structs.replace(
                self.scanned, error=f"the look at the models folder broke: {error!r}"
            )

    async def _report_slow_scan(self) -> None:
        await trio.sleep(PATIENCE_S)
        self._stalled = True
        _log.error("the models folder does not answer", folder=str(self._folder), seconds=PATIENCE_S)
        self._wake()

    def _publish(self, scanned: ScanResult) -> None:
        before, self.scanned = self.scanned, scanned
        if scanned is before:
            return
        _report(before, scanned)
        if scanned.catalog != before.catalog and self._on_change is not None:
            self._on_change(scanned.catalog)

    def _wake(self) -> None:
        self._done.set()
        self._done = trio.Event()


def _report(before: ScanResult, now: ScanResult) -> None:
    """Log what is new about a look: once when it appears, not at every look."""
    if now.error != before.error:
        if now.error is not None:
            _log.error(now.error)
        else:
            _log.info("the models folder can be read again")
    for problem in set(now.problems) - set(before.problems):
        _log.warning(problem)
    if now.unmatched != before.unmatched and now.unmatched:
        _log.warning("entries of the setting `models` name no model", names=", ".join(now.unmatched))
    known = before.catalog.models
    for spec in now.catalog.models.values():
        error = known[spec.id].error if spec.id in known else None
        if spec.error is not None and spec.error != error:
            _log.warning("a model cannot be served", model=spec.id, reason=spec.error)
        if spec.sizing and spec != known.get(spec.id):
            _log.info(
                "a model's size was chosen",
                model=spec.id,
                cells=spec.options.ctx,
                slots=spec.options.slots,
                need_mb=spec.footprint.total // MIB,
                reason=spec.sizing,
            )
