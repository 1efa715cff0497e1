# SPDX-License-Identifier: GPL-3.0-only
"""The command line of the soak."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import trio

from soaking import plot, report
from soaking.process import SoakError
from soaking.run import Plan, deck, soak

BUDGET_MB = 900
"""Room for the bystander and two more of the models."""


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    made = argparse.ArgumentParser(
        prog="testctl soak",
        description="Plays every fault against a real daemon, again and again, and checks that everything "
        "comes back: memory, slots, processes, descriptors, threads, and what other clients read.",
    )
    made.add_argument("--minutes", type=float, default=30.0, help="how long (default: %(default)g)")
    made.add_argument("--seed", type=int, help="the same seed draws the same faults in the same order")
    made.add_argument(
        "--clients", type=int, default=500, help="of each storm of leaving clients (%(default)s)"
    )
    made.add_argument("--cancels", type=int, default=150, help="of each storm of requests (%(default)s)")
    made.add_argument("--budget-mb", type=int, default=BUDGET_MB, help="the daemon's budget (%(default)s)")
    made.add_argument("--only", default="", help="only faults whose name matches this; see --list")
    made.add_argument("--json", type=Path, metavar="FILE", help="write rows and samples there")
    made.add_argument("--plot", type=Path, metavar="FILE", help="draw the memory curve there (PNG)")
    made.add_argument("--list", action="store_true", help="name the faults, and do nothing")
    return made


def main(words: Sequence[str] | None = None) -> int:
    """Soak; return 1 when something did not come back."""
    arguments = parser().parse_args(words)
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    plan = Plan(
        arguments.minutes, seed, arguments.budget_mb, arguments.clients, arguments.cancels, arguments.only
    )
    if arguments.list:
        print("\n".join(deck(plan)))
        return 0
    try:
        if arguments.plot:
            plot.require()
        print(f"soak for {plan.minutes:g} minutes, seed {seed}", flush=True)
        result = trio.run(soak, plan, partial(print, flush=True))
    except SoakError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        report.write_json(arguments.json, plan, result)
    if arguments.plot:
        plot.draw(result.samples, arguments.plot, f"{plan.minutes:g} minutes of faults, seed {seed}")
    print(f"\n{report.tell(result)}")
    return 1 if result.reasons else 0
