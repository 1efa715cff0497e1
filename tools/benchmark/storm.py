# SPDX-License-Identifier: GPL-3.0-only
"""`bench storm`: many requests for more models than there is memory for. Does the budget hold, at what price?

A real daemon, a process for each model, real weights. Its budget has room for any two of six models and for
no three. Requests come at random times, whether or not those before are done. Meanwhile the memory of the
workers is measured, and the daemon records its events; so three things are compared: what the operator set,
what the ledger held at every instant, and what the processes really took. It fails when

    (1) an answer is not whole
    (2) the workers ever held more than the budget
    (3) the ledger ever held more than the budget less the margin
    (4) models were loaded more than twice as often as Belady's rule needs, which knows all arrivals
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import trio
from soaking.http_client import begin
from soaking.results import is_complete, outcome, protocol_errors

from benchmark import storm_ledger
from benchmark.daemon import BenchError, Server, get, modeld
from benchmark.storm_requests import StormModel, StormRequest, config
from benchmark.worker_memory import MemorySample, measure_forever

MOST_LOADS = 2
"""Loads allowed, as a multiple of those that Belady's rule needs."""
SPARE = 1.03
"""The budget, over the estimates of the two largest models: loads teach, and change these by so much."""
_ESTIMATED_S = 60.0
_AFTER_S = 300.0
"""All answers are there so long after the last request, or the storm failed."""
_WRITTEN_S = 15.0


class Answer(NamedTuple):
    """What came of one request. Seconds; `first_s` is None where no token came."""

    model: str
    sent: float
    first_s: float | None
    total_s: float
    tokens: int
    problems: tuple[str, ...]


class Played(NamedTuple):
    """All that was recorded of a storm. `began` is the wall clock."""

    began: float
    answers: list[Answer]
    samples: list[MemorySample]
    events: list[str]


class Room(NamedTuple):
    """What the operator set, MiB."""

    budget_mb: float
    margin_mb: float

    @property
    def room_mb(self) -> float:
        """What models may take together."""
        return self.budget_mb - self.margin_mb


def put_models(models: Sequence[StormModel], source: Path, folder: Path) -> None:
    """Make the folder of models: hard links to the real files, or copies where they lie on another disk.

    Raises: BenchError when a file of the demo's is missing.
    """
    folder.mkdir()
    for model in models:
        found = sorted(source.glob(f"*.{model.quant}.gguf"))
        if not found:
            raise BenchError(f"there is no {model.quant} in {source}; `./tools/testctl install` makes it")
        try:
            os.link(found[0], folder / model.id)
        except OSError:
            shutil.copyfile(found[0], folder / model.id)


def flags_of(models: Sequence[StormModel], place: Path) -> list[str]:
    """Return the daemon's flags of a storm; what it has learned is kept in `place`, and so are its events."""
    (place / "modeld.yaml").write_text(config(models))
    flags = ["--config", str(place / "modeld.yaml"), "--state-dir", str(place / "state")]
    flags += ["--isolation", "process", "--dry-runs=true"]
    return [*flags, "--events-enable", "--events-file", str(place / "events.ndjson")]


def estimates(
    models: Sequence[StormModel], folder: Path, flags: Sequence[str], source: str = "probe"
) -> dict[str, float]:
    """Return what each model is estimated to take, MiB: by a dry run, which the next daemon remembers.

    `source`: `formula` for a daemon without dry runs. Raises: BenchError when one is not done in time.
    """
    with modeld(*flags, models_dir=folder) as server:
        until = time.monotonic() + _ESTIMATED_S
        while True:
            rows: list[dict[str, Any]] = json.loads(get(server.port, "/models"))["models"]
            found = {
                row["id"]: float(row["est_vram_mb"]) for row in rows if row["footprint"]["source"] == source
            }
            if found.keys() == {model.id for model in models}:
                return found
            if time.monotonic() > until or server.process.poll() is not None:
                end = "".join(server.log[-10:])
                raise BenchError(
                    f"dry runs of {len(found)} of {len(models)} models were done in time:\n{end}"
                )
            time.sleep(0.1)  # Nothing tells when a dry run is done; /models is asked.


def room_for_two(sizes: Sequence[float], margin_mb: float) -> Room:
    """Return a budget that has room for any two models. Raises: BenchError when three would fit, too."""
    pair = max(sum(two) for two in combinations(sizes, 2)) * SPARE
    if len(sizes) > 2 and min(sum(three) for three in combinations(sizes, 3)) <= pair:
        raise BenchError(f"some three of these models take less than the two largest ones ({pair:.0f} MiB)")
    return Room(float(round(pair + margin_mb)), margin_mb)


def play(server: Server, waves: Sequence[Sequence[StormRequest]], events: Path, every_s: float) -> Played:
    """Send waves of requests, each when all of the wave before were answered; measure memory meanwhile."""
    began = time.time()
    answers: list[Answer] = []
    samples: list[MemorySample] = []

    async def one(request: StormRequest, start: float) -> None:
        await trio.sleep_until(start + request.at_s)
        answers.append(await _send(server.port, request))

    async def storm() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(measure_forever, server.process.pid, every_s, samples)
            for wave in waves:
                start = trio.current_time()
                with trio.fail_after(wave[-1].at_s + _AFTER_S):
                    async with trio.open_nursery() as clients:
                        for request in wave:
                            clients.start_soon(one, request, start)
            nursery.cancel_scope.cancel()

    try:
        trio.run(storm)
    except* trio.TooSlowError:
        raise BenchError(
            f"not all answers came within {_AFTER_S:g} s:\n{''.join(server.log[-10:])}"
        ) from None
    return Played(began, answers, samples, _written(events, len(answers)))


async def _send(port: int, request: StormRequest) -> Answer:
    sent, begun = time.time(), time.perf_counter()
    call = await begin(port, request.body())
    first = time.perf_counter() - begun if await call.until(1) else None
    await call.finish()
    problems = protocol_errors(call)
    if not is_complete(call, request.max_tokens):
        problems.append(f"{request.model}: {outcome(call)}: {call.last.get('error')}")
    usage: dict[str, Any] = call.last.get("usage") or {}
    took = time.perf_counter() - begun
    return Answer(request.model, sent, first, took, int(usage.get("completion_tokens", 0)), tuple(problems))


def _written(events: Path, answers: int) -> list[str]:
    """Return the lines of the event file as soon as it tells the end of every request."""
    until = time.monotonic() + _WRITTEN_S
    while True:
        lines = events.read_text().splitlines()
        ends = sum('"kind":"ended"' in line or '"kind":"refused"' in line for line in lines)
        if ends >= answers or time.monotonic() > until:
            return lines
        time.sleep(0.05)  # The daemon's writer is a thread of another process.


class Judgement(NamedTuple):
    """A storm, judged. MiB.

    Attributes:
      most_rss_mb, most_pss_mb: the most that the workers held together.
      over_ledger_mb: the most that they held above what the ledger held at that instant; below 0: never.
      reasons: why it failed, a sentence each; none when all is well.
    """

    room: Room
    record: storm_ledger.Record
    most_rss_mb: float
    most_pss_mb: float
    over_ledger_mb: float
    reasons: list[str]


def judge(played: Played, room: Room) -> Judgement:
    """Compare what was recorded with what must hold."""
    record = storm_ledger.read(played.events, room.room_mb)
    problems = [problem for answer in played.answers for problem in answer.problems]
    reasons = [f"an answer was not whole: {problem}" for problem in dict.fromkeys(problems)]
    reasons += record.problems
    most = max((sample.rss_mb for sample in played.samples), default=0.0)
    over = max((it.rss_mb - record.ledger.at(it.at) for it in played.samples if it.rss_mb), default=0.0)
    if most > room.budget_mb:
        reasons.append(f"the workers held {most:.0f} MiB, and the budget is {room.budget_mb:.0f}")
    if record.ledger.most_mb > room.room_mb + 0.001:
        reasons.append(f"the ledger held {record.ledger.most_mb:.1f} MiB, {room.room_mb:.1f} are allowed")
    loads, least = record.loads.total, record.loads.belady
    if loads > MOST_LOADS * least:
        reasons.append(f"{loads} loads are more than {MOST_LOADS} times the {least} of Belady's rule")
    most_pss = max((sample.pss_mb for sample in played.samples if sample.pss_mb is not None), default=0.0)
    return Judgement(room, record, most, most_pss, over, reasons)
