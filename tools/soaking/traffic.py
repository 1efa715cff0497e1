# SPDX-License-Identifier: GPL-3.0-only
"""Usual requests of all kinds, all the while, whose answers must be whole and legal."""

from __future__ import annotations

from collections import Counter

import trio

from soaking.rows import faults_of, told
from soaking.wire import Call, ask, begin
from soaking.world import World, prompt_of

_CLIENTS = 2
_WORDS = ["river", "stone", "bridge", "morning", "letter", "garden", "winter", "harbour"]
_LEGAL = {200, 429, 503}


class Traffic:
    """Clients that ask one model again and again; they can be told to rest.

    Attributes:
      counts: of what they saw. complaints: what they should not have seen.
    """

    def __init__(self, world: World, model: str) -> None:
        self.counts: Counter[str] = Counter()
        self.complaints: list[str] = []
        self._world = world
        self._model = model
        self._resting = trio.Event()
        self._busy = 0

    async def run(self) -> None:
        """Ask until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(_CLIENTS):
                nursery.start_soon(self._client)

    def rest(self) -> None:
        """Ask nothing more; what is under way ends."""
        self._resting = trio.Event()

    def go_on(self) -> None:
        """Ask again."""
        self._resting.set()

    async def _client(self) -> None:
        while True:
            await self._resting.wait()
            await self._one()
            await trio.sleep(self._world.dice.random() / 4)

    async def _one(self) -> None:
        world, dice = self._world, self._world.dice
        prompt = " ".join(dice.choice(_WORDS) for _ in range(dice.choice((3, 20, 120))))
        body = prompt_of(self._model, prompt=prompt, tokens=dice.randrange(1, 40))
        match dice.randrange(10):
            case 0:
                call = await begin(world.port, body)
                await call.until(dice.randrange(1, 10))
                await call.leave(dice.choice(("close", "reset", "half")))
                self.counts["left"] += 1
                return
            case 1:
                call = await ask(world.port, {"model": self._model, "content": prompt}, "/tokenize")
            case 2:
                call = await ask(
                    world.port, None, dice.choice(("/status", "/models", "/metrics", "/openapi.json"))
                )
            case 3:
                messages = [{"role": "user", "content": prompt}]
                call = await ask(world.port, {"model": self._model, "messages": messages, "max_tokens": 8})
            case 4:
                call = await ask(world.port, {**body, "json_schema": {"type": "array"}, "stream": False})
            case 5:
                call = await ask(world.port, {"model": self._model, "input": prompt}, "/embed")
            case 6:
                call = await ask(
                    world.port, {**body, "temperature": 1.0, "seed": dice.randrange(99), "logprobs": 3}
                )
            case _:
                call = await ask(world.port, body)
                self.complaints += faults_of(call)
        self._count(call)

    def _count(self, call: Call) -> None:
        self.counts[told(call)] += 1
        if call.status not in _LEGAL or not call.whole:
            self.complaints.append(
                f"usual traffic was answered {call.status} {call.broken} {call.data[:300]!r}"
            )
