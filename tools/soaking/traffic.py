# SPDX-License-Identifier: GPL-3.0-only
"""Send usual requests of all kinds alongside the faults; their answers must be complete and legal."""

from __future__ import annotations

from collections import Counter

import trio

from soaking.daemon import SoakDaemon, prompt_of
from soaking.http_client import Response, ask, begin
from soaking.results import outcome, protocol_errors

_CLIENTS = 2
_WORDS = ["river", "stone", "bridge", "morning", "letter", "garden", "winter", "harbour"]
_LEGAL = {200, 429, 503}


class Traffic:
    """Clients that ask one model again and again; they can be paused.

    Attributes:
      counts: of what they saw. complaints: what they should not have seen.
    """

    def __init__(self, daemon: SoakDaemon, model: str) -> None:
        self.counts: Counter[str] = Counter()
        self.complaints: list[str] = []
        self._daemon = daemon
        self._model = model
        self._running = trio.Event()
        self._busy = 0

    async def run(self) -> None:
        """Ask until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(_CLIENTS):
                nursery.start_soon(self._client)

    def pause(self) -> None:
        """Send no more requests; those under way end."""
        self._running = trio.Event()

    def resume(self) -> None:
        """Send requests again."""
        self._running.set()

    async def _client(self) -> None:
        while True:
            await self._running.wait()
            await self._one()
            await trio.sleep(self._daemon.rng.random() / 4)

    async def _one(self) -> None:
        daemon, rng = self._daemon, self._daemon.rng
        prompt = " ".join(rng.choice(_WORDS) for _ in range(rng.choice((3, 20, 120))))
        body = prompt_of(self._model, prompt=prompt, tokens=rng.randrange(1, 40))
        match rng.randrange(10):
            case 0:
                call = await begin(daemon.port, body)
                await call.until(rng.randrange(1, 10))
                await call.leave(rng.choice(("close", "reset", "half")))
                self.counts["left"] += 1
                return
            case 1:
                call = await ask(daemon.port, {"model": self._model, "content": prompt}, "/tokenize")
            case 2:
                call = await ask(
                    daemon.port, None, rng.choice(("/status", "/models", "/metrics", "/openapi.json"))
                )
            case 3:
                messages = [{"role": "user", "content": prompt}]
                call = await ask(daemon.port, {"model": self._model, "messages": messages, "max_tokens": 8})
            case 4:
                call = await ask(daemon.port, {**body, "json_schema": {"type": "array"}, "stream": False})
            case 5:
                call = await ask(daemon.port, {"model": self._model, "input": prompt}, "/embed")
            case 6:
                call = await ask(
                    daemon.port, {**body, "temperature": 1.0, "seed": rng.randrange(99), "logprobs": 3}
                )
            case _:
                call = await ask(daemon.port, body)
                self.complaints += protocol_errors(call)
        self._count(call)

    def _count(self, call: Response) -> None:
        self.counts[outcome(call)] += 1
        if call.status not in _LEGAL or not call.whole:
            self.complaints.append(
                f"usual traffic was answered {call.status} {call.broken} {call.data[:300]!r}"
            )
