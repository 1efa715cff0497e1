# SPDX-License-Identifier: GPL-3.0-only
"""Run the soak: `tools/testctl soak` starts this program in the virtual environment."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import trio
from benchmark import plots
from benchmark.daemon import BenchError
from soaking import report
from soaking.daemon import SoakError
from soaking.run import Plan, faults_of_one_daemon, soak


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    text = (
        "Inject every fault into a real daemon, again and again, and check that everything comes back: "
        "memory, slots, processes, descriptors, threads, and what other clients read."
    )
    made = argparse.ArgumentParser(prog="testctl soak", description=text)
    made.add_argument("--minutes", type=float, default=30.0, help="how long (default: %(default)g)")
    made.add_argument("--seed", type=int, help="the same seed draws the same faults in the same order")
    made.add_argument("--only", default="", help="only faults whose name matches this; see --list")
    made.add_argument("--json", type=Path, metavar="FILE", help="write results and samples there")
    made.add_argument("--plot", type=Path, metavar="FILE", help="draw the memory curve there (PNG)")
    made.add_argument("--list", action="store_true", help="name the faults, and do nothing")
    return made


def main(words: Sequence[str] | None = None) -> int:
    """Run the soak; return 1 when something did not come back."""
    arguments = parser().parse_args(words)
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    plan = Plan(arguments.minutes, seed, arguments.only)
    if arguments.list:
        print("\n".join(faults_of_one_daemon(plan)))
        return 0
    try:
        if arguments.plot:
            plots.require_matplotlib()
        print(f"soak for {plan.minutes:g} minutes, seed {seed}", flush=True)
        result = trio.run(soak, plan, partial(print, flush=True))
    except (BenchError, SoakError) as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        report.write_json(arguments.json, plan, result)
    if arguments.plot:
        title = f"{plan.minutes:g} minutes of faults, seed {seed}"
        plots.draw_memory(result.samples, arguments.plot, title)
    print(f"\n{report.text(result)}")
    return 1 if result.reasons else 0


if __name__ == "__main__":
    sys.exit(main())
