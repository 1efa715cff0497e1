# SPDX-License-Identifier: GPL-3.0-only
"""Wait for operations and show their progress: bars on a terminal, one line per phase elsewhere.

Progress goes to standard error. Who gives up (Ctrl-C) takes the demand back: what the command began
belongs to the one who typed it. What others wait for goes on, and a lost terminal takes nothing back.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self
from urllib.parse import quote

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from modeld.cli.client import CannotConnect, Refused
from modeld.cli.console.api import Api, Operation, Status, read
from modeld.cli.console.exit_codes import complain
from modeld.cli.console.format import plain, short
from modeld.cli.console.screen import error_console
from modeld.cli.console.views import taken_back, under_way

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


class Shown(Protocol):
    """Where progress is shown."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def update(self, operation: Operation) -> None:
        """Show how far an operation is."""
        ...


class Bars:
    """A bar for each operation, on a terminal; gone at the end."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.fields[name]}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, operation: Operation) -> None:
        """Move its bar; one that waits only moves to and fro."""
        task = self._tasks.get(operation.id)
        if task is None:
            task = self._progress.add_task("", total=None, name=short(operation.model))
            self._tasks[operation.id] = task
        moves = operation.phase == "loading" or operation.ended
        self._progress.update(
            task,
            description=_clipped(under_way(operation)),
            total=1.0 if moves else None,
            completed=operation.progress if moves else 0.0,
        )


class Lines:
    """A line for each phase."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def update(self, operation: Operation) -> None:
        """Say it if it is a new phase."""
        if not operation.ended and self._said.get(operation.id) != operation.phase:
            self._said[operation.id] = operation.phase
            complain(f"{short(operation.model)}: {under_way(operation)}")


def progress_shown() -> Shown:
    """Return bars where standard error is a terminal, else lines."""
    console = error_console()
    return Bars(console) if console.is_terminal else Lines()


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
        self._last[read(data, Operation).id] = data

    def wait(self, shown: Shown) -> None:
        """Wait until all ended; raises as `Api.get`."""
        with shown:
            for data in self.last:
                shown.update(read(data, Operation))
            while running := self._running():
                asked = time.monotonic()
                for name in running:
                    # The daemon keeps the first question for a while; the others are answered at once.
                    waits = name == running[0]
                    data = self._api.get(_path(name, wait=waits), wait_s=POLL_S if waits else 0.0)
                    self._last[name] = data
                    shown.update(read(data, Operation))
                if self._running():
                    pause(POLL_S - (time.monotonic() - asked))

    def take_back(self) -> None:
        """Cancel those that still run, and say what became of each."""
        for name in self._running():
            try:
                ended = read(self._api.delete(_path(name)), Operation)
                status = read(self._api.get("/status"), Status)
            except (CannotConnect, Refused) as error:
                complain(f"operation {plain(name)} could not be taken back: {error}")
            else:
                complain(taken_back(ended, status))

    def _running(self) -> list[str]:
        return [name for name, data in self._last.items() if not read(data, Operation).ended]


def _path(name: str, *, wait: bool = False) -> str:
    path = f"/operations/{quote(name, safe='')}"
    return f"{path}?wait={POLL_S * 1000:.0f}ms" if wait else path


def _clipped(text: str) -> str:
    return text if len(text) <= _LONGEST_WORDS else text[: _LONGEST_WORDS - 3] + "..."
