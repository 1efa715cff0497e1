# SPDX-License-Identifier: GPL-3.0-only
"""The loop of a soak: faults from a shuffled deck, usual traffic alongside them, and looks between them."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple

import trio

from soaking import files, limits, others, storms, workers
from soaking.rows import Row
from soaking.samples import Sample, Sampler, growth
from soaking.traffic import Traffic
from soaking.world import World, world

SAMPLE_S = 5.0
Fault = Callable[[World], Awaitable[Row]]


class Plan(NamedTuple):
    """What to do. `clients` and `cancels`: of each storm."""

    minutes: float
    seed: int
    budget_mb: int
    clients: int = 500
    cancels: int = 150
    only: str = ""


class Result(NamedTuple):
    """What came of it. `reasons`: why it failed; empty when all came back."""

    rows: list[Row]
    samples: list[Sample]
    traffic: dict[str, int]
    reasons: list[str]
    seconds: float
    last_status: dict[str, object]


def deck(plan: Plan) -> dict[str, Fault]:
    """Return every fault that one daemon lives through, by name."""
    found: dict[str, Fault] = {}
    for number in workers.SIGNALS:
        for when in workers.MOMENTS:
            found[f"{number.name} {when}"] = partial(workers.signalled, number=number, when=when)
    for fault in files.FAULTS:
        for when in files.MOMENTS:
            found[f"file {fault} {when}"] = partial(files.harmed, fault=fault, when=when)
    for when in workers.ABORTS:
        found[f"abort {when}"] = partial(workers.aborted, when=when)
    for when in workers.LIMITS:
        found[f"memory {when}"] = partial(workers.starved, when=when)
    found["descriptors accept"] = limits.no_descriptors
    found["descriptors load"] = limits.no_process
    found["disk full"] = limits.disk_full
    found["clients leave"] = partial(storms.leaving, count=plan.clients)
    found["clients cancel"] = partial(storms.cancelling, count=plan.cancels)
    found["readers stall"] = storms.stalled
    return {name: fault for name, fault in found.items() if re.search(plan.only, name)}


async def soak(plan: Plan, say: Callable[[str], None]) -> Result:
    """Soak for so long. Raises: SoakError when there is nothing to soak."""
    rows: list[Row] = []
    reasons: list[str] = []
    began = time.perf_counter()
    with world("--vram-budget-mb", str(plan.budget_mb), "--log-format", "json", seed=plan.seed) as here:
        await here.start()
        regular = await here.victim()
        traffic, sampler = Traffic(here, regular), Sampler(here, SAMPLE_S)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sampler.run)
            nursery.start_soon(traffic.run)
            cards = random.Random(plan.seed)  # noqa: S311  # the same seed, the same order
            until = began + 60 * plan.minutes
            while time.perf_counter() < until and here.process.poll() is None:
                hand = list(deck(plan).items())
                cards.shuffle(hand)
                for name, fault in hand:
                    if time.perf_counter() > until or here.process.poll() is not None:
                        break
                    row = await _play(here, name, fault, traffic, sampler)
                    rows.append(row)
                    say(_line(name, row))
                rows += await _play_others(plan, say)
            traffic.rest()
            if here.process.poll() is None:
                here.remove(regular)
                reasons += [f"at the end: {complaint}" for complaint in await here.settled()]
                await sampler.look(rest=True)
                last = await here.status()
            else:
                reasons.append(f"the daemon died of it ({here.process.returncode}):\n{here.tail()}")
                last = {}
            nursery.cancel_scope.cancel()
        if last and (code := here.stop()) != 0:
            reasons.append(f"after SIGTERM the daemon exited with {code}")
    for row in rows:
        reasons += [f"{row.fault}, {row.when}: {complaint}" for complaint in row.complaints]
    reasons += list(dict.fromkeys(traffic.complaints)) + growth(sampler.samples)
    seconds = time.perf_counter() - began
    return Result(rows, sampler.samples, dict(traffic.counts), reasons, seconds, last)


async def _play(here: World, name: str, fault: Fault, traffic: Traffic, sampler: Sampler) -> Row:
    """Let one fault happen among the traffic, then have everything rest and look."""
    traffic.go_on()
    try:
        row = await fault(here)
    except Exception as error:  # noqa: BLE001  # what fails a fault is told, and the soak goes on
        row = Row(name, "", "", "", None, (f"it could not be played: {error!r}",))
    traffic.rest()
    complaints = await here.settled()
    await sampler.look(rest=True)
    return row._replace(complaints=(*row.complaints, *(f"after it: {complaint}" for complaint in complaints)))


async def _play_others(plan: Plan, say: Callable[[str], None]) -> list[Row]:
    """Let happen what needs a daemon of its own."""
    found: list[Row] = []
    for play in others.ALL:
        if not re.search(plan.only, play.__name__):
            continue
        try:
            made = await play(plan.seed)
        except Exception as error:  # noqa: BLE001  # what fails a fault is told, and the soak goes on
            made = Row(play.__name__, "", "", "", None, (f"it could not be played: {error!r}",))
        for row in [made] if isinstance(made, Row) else made:
            found.append(row)
            say(_line(play.__name__, row))
    return found


def _line(name: str, row: Row) -> str:
    took = "" if row.recovery_s is None else f", served again after {row.recovery_s:.1f} s"
    early = "" if row.hit else " (not at that moment)"
    wrong = "".join(f"\n    WRONG: {complaint}" for complaint in row.complaints)
    return f"{name}{early}: {row.seen}{took}{wrong}"
