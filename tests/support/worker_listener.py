# SPDX-License-Identifier: GPL-3.0-only
"""Listens to a worker, and lets a test wait until it has said something."""

from __future__ import annotations

from collections.abc import Callable

import trio

from modeld.domain.model import EngineKind, LoadOptions
from modeld.domain.request import GenerateRequest
from modeld.engine.protocol import LoadSpec, Output
from modeld.worker.messages import FromWorker, StepDone, WorkerReady

PATIENCE_S = 20.0


class WorkerListener:
    """Keeps what a worker says."""

    def __init__(self) -> None:
        self.heard: list[FromWorker] = []
        self._more = trio.Event()

    def __call__(self, message: FromWorker) -> None:
        self.heard.append(message)
        self._more.set()

    async def until(self, found: Callable[[], bool]) -> None:
        with trio.fail_after(PATIENCE_S):
            while not found():
                self._more = trio.Event()
                await self._more.wait()

    async def ready(self) -> None:
        await self.until(lambda: any(isinstance(message, WorkerReady) for message in self.heard))

    def outputs(self, request_id: int) -> list[Output]:
        steps = [message for message in self.heard if isinstance(message, StepDone)]
        return [output for step in steps for output in step.outputs if output.id == request_id]


def load_spec(script: str = "") -> LoadSpec:
    """A fake engine with two slots."""
    return LoadSpec(
        model_id="m", path="/m.gguf", kind=EngineKind.FAKE, fake=script, options=LoadOptions(slots=2)
    )


def request(prompt: str = "one two", max_tokens: int = 3) -> GenerateRequest:
    """A short request."""
    return GenerateRequest(prompt=prompt, max_tokens=max_tokens)
