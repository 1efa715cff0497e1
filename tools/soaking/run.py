# SPDX-License-Identifier: GPL-3.0-only
"""Run a soak: every fault in random order with usual traffic alongside, and checks between them."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple

import trio

from soaking import client_faults, daemon_faults, file_faults, resource_faults, worker_faults
from soaking.daemon import SoakDaemon, soak_daemon
from soaking.resources import Sample, Sampler, growth
from soaking.results import FaultResult
from soaking.traffic import Traffic

SAMPLE_S = 5.0
BUDGET_MB = 900
"""Room for the bystander and two more of the models."""
LEAVING_CLIENTS = 500
CANCELLED_REQUESTS = 150
Fault = Callable[[SoakDaemon], Awaitable[FaultResult]]


class Plan(NamedTuple):
    """What to do; `only`: a pattern of names of faults."""

    minutes: float
    seed: int
    only: str = ""


class Result(NamedTuple):
    """The outcome. `reasons`: why it failed; empty when everything came back."""

    results: list[FaultResult]
    samples: list[Sample]
    traffic: dict[str, int]
    reasons: list[str]
    seconds: float
    last_status: dict[str, object]


def faults_of_one_daemon(plan: Plan) -> dict[str, Fault]:
    """Return every fault that one daemon lives through, by name."""
    found: dict[str, Fault] = {}
    for number in worker_faults.SIGNALS:
        for when in worker_faults.MOMENTS:
            found[f"{number.name} {when}"] = partial(worker_faults.signal_worker, number=number, when=when)
    for fault in file_faults.FAULTS:
        for when in file_faults.MOMENTS:
            found[f"file {fault} {when}"] = partial(file_faults.change_file, fault=fault, when=when)
    for when in worker_faults.ABORTS:
        found[f"abort {when}"] = partial(worker_faults.abort_worker, when=when)
    for when in worker_faults.LIMITS:
        found[f"memory {when}"] = partial(worker_faults.limit_memory, when=when)
    found["descriptors accept"] = resource_faults.no_descriptors
    found["descriptors load"] = resource_faults.no_process
    found["disk full"] = resource_faults.disk_full
    found["clients leave"] = partial(client_faults.clients_leave, count=LEAVING_CLIENTS)
    found["clients cancel"] = partial(client_faults.clients_cancel, count=CANCELLED_REQUESTS)
    found["readers stall"] = client_faults.readers_stall
    return {name: fault for name, fault in found.items() if re.search(plan.only, name)}


async def soak(plan: Plan, say: Callable[[str], None]) -> Result:
    """Run a soak. Raises: SoakError when there is nothing to soak."""
    results: list[FaultResult] = []
    reasons: list[str] = []
    began = time.perf_counter()
    with soak_daemon("--vram-budget-mb", str(BUDGET_MB), "--log-format", "json", seed=plan.seed) as here:
        await here.start()
        regular = await here.fresh_model()
        traffic, sampler = Traffic(here, regular), Sampler(here.pid, SAMPLE_S)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sampler.run)
            nursery.start_soon(traffic.run)
            order = random.Random(plan.seed)  # noqa: S311  # the same seed, the same order
            until = began + 60 * plan.minutes
            while time.perf_counter() < until and here.process.poll() is None:
                faults = list(faults_of_one_daemon(plan).items())
                order.shuffle(faults)
                for name, fault in faults:
                    if time.perf_counter() > until or here.process.poll() is not None:
                        break
                    row = await _inject(here, name, fault, traffic, sampler)
                    results.append(row)
                    say(_line(name, row))
                results += await _inject_into_own_daemons(plan, say)
            traffic.pause()
            if here.process.poll() is None:
                here.remove(regular)
                reasons += [f"at the end: {complaint}" for complaint in await here.idle_problems()]
                await sampler.sample(idle=True)
                last = await here.status()
            else:
                reasons.append(f"the daemon died of it ({here.process.returncode}):\n{here.tail()}")
                last = {}
            nursery.cancel_scope.cancel()
        if last and (code := here.stop()) != 0:
            reasons.append(f"after SIGTERM the daemon exited with {code}")
    for row in results:
        reasons += [f"{row.fault}, {row.when}: {complaint}" for complaint in row.complaints]
    reasons += list(dict.fromkeys(traffic.complaints)) + growth(sampler.samples)
    seconds = time.perf_counter() - began
    return Result(results, sampler.samples, dict(traffic.counts), reasons, seconds, last)


async def _inject(
    here: SoakDaemon, name: str, fault: Fault, traffic: Traffic, sampler: Sampler
) -> FaultResult:
    """Inject one fault among the traffic, then pause the traffic and check."""
    traffic.resume()
    try:
        row = await fault(here)
    except Exception as error:  # noqa: BLE001  # a fault that fails is reported, and the soak goes on
        row = FaultResult(name, "", "", "", None, (f"it could not be injected: {error!r}",))
    traffic.pause()
    complaints = await here.idle_problems()
    await sampler.sample(idle=True)
    return row._replace(complaints=(*row.complaints, *(f"after it: {complaint}" for complaint in complaints)))


async def _inject_into_own_daemons(plan: Plan, say: Callable[[str], None]) -> list[FaultResult]:
    """Inject the faults that need a daemon of their own."""
    found: list[FaultResult] = []
    for inject in daemon_faults.ALL:
        if not re.search(plan.only, inject.__name__):
            continue
        try:
            made = await inject(plan.seed)
        except Exception as error:  # noqa: BLE001  # a fault that fails is reported, and the soak goes on
            made = FaultResult(inject.__name__, "", "", "", None, (f"it could not be injected: {error!r}",))
        for row in [made] if isinstance(made, FaultResult) else made:
            found.append(row)
            say(_line(inject.__name__, row))
    return found


def _line(name: str, row: FaultResult) -> str:
    took = "" if row.recovery_s is None else f", served again after {row.recovery_s:.1f} s"
    early = "" if row.hit else " (not at that moment)"
    wrong = "".join(f"\n    WRONG: {complaint}" for complaint in row.complaints)
    return f"{name}{early}: {row.seen}{took}{wrong}"
