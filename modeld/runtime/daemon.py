# SPDX-License-Identifier: GPL-3.0-only
"""The daemon as its HTTP front end sees it: submit requests, and ask for state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import trio

from modeld.domain.instance_state import InstanceState
from modeld.domain.model import Catalog, ModelSpec
from modeld.domain.request import Order
from modeld.domain.status import DaemonStatus
from modeld.engine.llama.gguf.cursor import GgufError
from modeld.engine.llama.gguf.reader import read_header
from modeld.engine.llama.prompts.template import MAX_SOURCE
from modeld.runtime.catalog.registry import ModelRegistry
from modeld.runtime.memory.device_watch import DeviceWatch
from modeld.runtime.reporting.event_log import EventLog
from modeld.runtime.reporting.status import StatusReporter
from modeld.runtime.scheduling.control import OperatorControl
from modeld.runtime.scheduling.scheduler import Scheduler
from modeld.runtime.ticket import Ticket

# ----------------------------------------------------------------------
# The chat template in a GGUF file's metadata, without loading the model. Blocks on the disk.

KEY = "tokenizer.chat_template"
_MOST_BYTES = 4 * MAX_SOURCE
"""What so many characters take at most."""


def read_template(path: Path) -> str:
    """Return the template; empty where the file has none, has one that is not used, or cannot be read."""
    try:
        header = read_header(path, keeps={KEY: _MOST_BYTES})
    except (GgufError, OSError):
        return ""
    text = header.metadata.get(KEY)
    if not isinstance(text, str) or header.lengths.get(KEY, 0) > _MOST_BYTES or len(text) > MAX_SOURCE:
        return ""
    return text


# ----------------------------------------------------------------------
# Reads the chat templates of models for those who ask what they are: in a thread, and once for each file.

KEPT = 32
"""Templates that are remembered; each has 20,000 characters at most in today's files."""
PATIENCE_S = 5.0
"""After that a disk that does not answer is not waited for."""


class ChatTemplates:
    """Knows the chat templates of models, also of those that are not loaded."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int], str] = {}
        self._limiter = trio.CapacityLimiter(1)

    async def of(self, spec: ModelSpec) -> str:
        """Return a model's template; empty where its file has none, or cannot be read in time.

        Cancellation: a read that is under way goes on in its thread, and is forgotten.
        """
        await trio.lowlevel.checkpoint()
        if spec.facts is None or not spec.facts.has_chat_template:
            return ""
        key = (spec.path, spec.size_bytes, spec.modified_ns)
        if key not in self._known:
            text = None
            with trio.move_on_after(PATIENCE_S):
                text = await trio.to_thread.run_sync(
                    read_template, Path(spec.path), limiter=self._limiter, abandon_on_cancel=True
                )
            if text is None:
                return ""
            while len(self._known) >= KEPT:
                del self._known[next(iter(self._known))]
            self._known[key] = text
        return self._known[key]


# ----------------------------------------------------------------------


class Daemon:
    """A facade without state of its own: the scheduler, the registry, the status and the events."""

    def __init__(
        self,
        scheduler: Scheduler,
        registry: ModelRegistry,
        reporter: StatusReporter,
        events: EventLog,
        devices: DeviceWatch,
    ) -> None:
        self.events = events
        self._scheduler = scheduler
        self._registry = registry
        self._reporter = reporter
        self._devices = devices
        self._control = OperatorControl(scheduler)
        self._templates = ChatTemplates()

    def submit(self, order: Order, *, request_id: str) -> Ticket:
        """Take a request in. Raises: see `Scheduler.submit`."""
        return self._scheduler.submit(order, request_id=request_id)

    @property
    def control(self) -> OperatorControl:
        """What operators pull."""
        return self._control

    @property
    def catalog(self) -> Catalog:
        """The models known now."""
        return self._scheduler.catalog

    async def refresh_catalog(self, max_age_s: float) -> None:
        """Look at the folder again if the last look is older than `max_age_s` seconds."""
        await self._registry.refresh(max_age_s)

    async def chat_template(self, spec: ModelSpec) -> str:
        """Return the chat template in a model's file; empty where there is none."""
        return await self._templates.of(spec)

    def model_states(self) -> Mapping[str, InstanceState]:
        """Return the state of every model."""
        return self._scheduler.model_states()

    def status(self) -> DaemonStatus:
        """Return the whole daemon at this moment."""
        return self._reporter.report(
            self._devices.statuses(), error=self._registry.error or self._devices.problem
        )

    def health(self) -> str | None:
        """Return None while the scheduler makes progress, else what is wrong; see `Scheduler.health`."""
        return self._scheduler.health()

    def readiness(self) -> str:
        """Return `ready`, `loading` or `draining`."""
        return self._scheduler.readiness()
