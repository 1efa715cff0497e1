# SPDX-License-Identifier: GPL-3.0-only
"""The contract of a worker host: an engine as the event loop sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from modeld.engine.protocol import LoadSpec
from modeld.errors import Problem
from modeld.worker.messages import FromWorker, ToWorker

OnMessage = Callable[[FromWorker], None]
"""Called in the event loop with each message of the worker, in order. Must not raise or wait."""


class Worker(Protocol):
    """One engine somewhere else, and the way to it. All methods belong to the event loop."""

    @property
    def pid(self) -> int | None:
        """Its process, if it has one of its own."""
        ...

    @property
    def measured(self) -> int | None:
        """Bytes it holds, where that can be told apart."""
        ...

    async def run(self) -> None:
        """Load the model and serve until the worker's last message was delivered.

        Cancellation: the worker is told to stop and is waited for; nothing is left behind.
        """
        ...

    def send(self, message: ToWorker) -> None:
        """Post a message. Never waits; after the worker's end it is dropped."""
        ...

    def stop(self) -> None:
        """Ask it to stop soon, whatever it does: a load is given up, a decode interrupted."""
        ...

    def kill(self, problem: Problem, /) -> bool:
        """End it by force; it ends by `WorkerDied` with this problem. False: it cannot be killed."""
        ...

    def pulse(self) -> object:
        """Return something that changes while it works, also between messages; None where unknown."""
        ...


Host = Callable[[LoadSpec, OnMessage], Worker]
"""Makes a worker for a model; nothing runs before `Worker.run`."""
