# SPDX-License-Identifier: GPL-3.0-only
"""Wait for operations and show their progress: bars on a terminal, one line per phase elsewhere.

Progress goes to standard error. Who gives up (Ctrl-C) takes the demand back: what the command began
belongs to the one who typed it. What others wait for goes on, and a lost terminal takes nothing back.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self
from urllib.parse import quote

from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from modeld.cli.answers import read
from modeld.cli.client import Api, CannotConnect, Refused
from modeld.cli.console.exit_codes import complain
from modeld.cli.console.format import short
from modeld.cli.console.screen import error_console
from modeld.cli.console.views import taken_back, under_way
from modeld.domain.operation import OperationState, OperationStatus, Phase
from modeld.domain.status import DaemonStatus

# ----------------------------------------------------------------------
# How commands wait between two questions to the daemon.


def pause(seconds: float) -> None:
    """Let time pass; nothing when `seconds` is not positive. Ctrl-C ends it with KeyboardInterrupt.

    Commands are one thread without an event loop and do one thing at a time, so this blocks nobody. What
    they wait for next is a moment to ask again, and no event tells of that.
    """
    if seconds > 0:
        time.sleep(seconds)  # a command has one thread, and nothing else to do


# ----------------------------------------------------------------------

POLL_S = 0.25
"""How long the daemon keeps a question that it cannot answer with an end yet."""
_LONGEST_WORDS = 60


class ProgressView:
    """Shows on standard error how far operations are. A context; bars are gone at its end."""

    def __init__(self) -> None:
        console = error_console()
        self._bars = Progress(
            TextColumn("{task.fields[name]}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._phases: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def update(self, operation: OperationStatus) -> None:
        """Move its bar, or say its phase if that is a new one."""
        if self._bars.disable:
            if (
                operation.state == OperationState.RUNNING
                and self._phases.get(operation.id) != operation.phase
            ):
                self._phases[operation.id] = operation.phase
                complain(f"{short(operation.model)}: {under_way(operation)}")
            return
        if operation.id not in self._tasks:
            self._tasks[operation.id] = self._bars.add_task("", total=None, name=short(operation.model))
        # What waits has no share yet: its bar only moves to and fro.
        moves = operation.phase == Phase.LOADING or operation.state != OperationState.RUNNING
        self._bars.update(
            self._tasks[operation.id],
            description=_clipped(under_way(operation)),
            total=1.0 if moves else None,
            completed=operation.progress if moves else 0.0,
        )


class Followed:
    """Operations that a command began, and follows to their ends. They are told in the order they began."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._last: dict[str, bytes] = {}

    @property
    def last(self) -> list[bytes]:
        """The last state of each, as the daemon sent it."""
        return list(self._last.values())

    def begin(self, path: str, body: Mapping[str, object]) -> None:
        """Begin one; raises as `Api.post`."""
        data = self._api.post(path, body)
        self._last[read(data, OperationStatus).id] = data

    def wait(self, shown: ProgressView) -> None:
        """Wait until all ended; raises as `Api.get`."""
        with shown:
            for data in self.last:
                shown.update(read(data, OperationStatus))
            while running := self._running():
                asked = time.monotonic()
                for name in running:
                    # The daemon keeps the first question for a while; the others are answered at once.
                    waits = name == running[0]
                    data = self._api.get(_path(name, wait=waits), wait_s=POLL_S if waits else 0.0)
                    self._last[name] = data
                    shown.update(read(data, OperationStatus))
                if self._running():
                    pause(POLL_S - (time.monotonic() - asked))

    def take_back(self) -> None:
        """Cancel those that still run, and say what became of each."""
        for name in self._running():
            try:
                ended = read(self._api.delete(_path(name)), OperationStatus)
                status = read(self._api.get("/status"), DaemonStatus)
            except (CannotConnect, Refused) as error:
                complain(f"operation {name} could not be taken back: {error}")
            else:
                complain(taken_back(ended, status))

    def _running(self) -> list[str]:
        return [
            name
            for name, data in self._last.items()
            if read(data, OperationStatus).state == OperationState.RUNNING
        ]


def _path(name: str, *, wait: bool = False) -> str:
    path = f"/operations/{quote(name, safe='')}"
    return f"{path}?wait={POLL_S * 1000:.0f}ms" if wait else path


def _clipped(text: str) -> str:
    return text if len(text) <= _LONGEST_WORDS else text[: _LONGEST_WORDS - 3] + "..."
