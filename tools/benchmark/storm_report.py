# SPDX-License-Identifier: GPL-3.0-only
"""`bench storm`: its command line, its table, its JSON."""

from __future__ import annotations

import argparse
import shlex
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmark import figures, noise, plot, storm, storm_plot
from benchmark.daemon import modeld
from benchmark.report import Report
from benchmark.storm import Found, Played, Room
from benchmark.storm_trace import MODELS, SLOTS, StormModel, draw


def add_mode(
    modes: Any, common: argparse.ArgumentParser, whole: Callable[[int, int], Callable[[str], int]]
) -> None:
    """Add the mode to the command line; `whole` makes parsers of bounded numbers."""
    text = "more models than memory: does the budget hold, and how many loads does it cost?"
    mode = modes.add_parser("storm", parents=[common], help=text, description=text)
    mode.add_argument("--requests", type=whole(1, 2000), default=200)
    mode.add_argument(
        "--seconds", type=whole(0, 3600), default=170, help="over which they come (%(default)s)"
    )
    mode.add_argument(
        "--models", type=whole(3, len(MODELS)), default=len(MODELS), help="how many (%(default)s)"
    )
    mode.add_argument("--seed", type=int, default=1, help="the same seed, the same storm (%(default)s)")
    mode.add_argument("--margin-mb", type=whole(0, 10_000), default=64, help="of the budget (%(default)s)")
    text = "budget in MiB (default: 3 %% more than the two largest models take, and the margin)"
    mode.add_argument("--budget-mb", type=whole(1, 1_000_000), help=text)
    mode.add_argument(
        "--every-ms", type=whole(5, 10_000), default=50, help="between looks at memory (%(default)s)"
    )
    mode.add_argument("--plot", action="store_true", help="draw a PNG (needs matplotlib)")


def run_storm(options: argparse.Namespace) -> int:
    """Play a storm, print the tables, write JSON and plot; 1 when something is not as it must be."""
    if options.plot:
        plot.require()
    models = MODELS[: options.models]
    report = Report("storm", options.out, options.json)
    report.head(
        models=len(models),
        requests=options.requests,
        seconds=options.seconds,
        seed=options.seed,
        slots=SLOTS,
        threads=options.threads,
    )
    with tempfile.TemporaryDirectory(prefix="modeld-storm-") as name:
        place = Path(name)
        storm.put_models(models, options.model.parent, place / "models")
        flags = storm.flags_of(models, place)
        flags += ["--llama-threads", str(options.threads), *shlex.split(options.modeld)]
        sizes = storm.estimates(models, place / "models", flags)
        room = storm.room_for_two(list(sizes.values()), options.margin_mb)
        if options.budget_mb:
            room = Room(float(options.budget_mb), options.margin_mb)
        (place / "events.ndjson").unlink(missing_ok=True)
        flags += ["--vram-budget-mb", f"{room.budget_mb:.0f}", "--vram-margin-mb", f"{room.margin_mb:.0f}"]
        report.say(f"a budget of {room.budget_mb:.0f} MiB less a margin of {room.margin_mb:.0f}")
        asks = draw(models, options.requests, options.seconds, options.seed)
        watch = noise.Watch([])  # Workers end meanwhile: their time is known when the daemon has ended.
        with modeld(*flags, models_dir=place / "models") as server:
            played = storm.play(server, [asks], place / "events.ndjson", options.every_ms / 1e3)
        seen = watch.stop()
    found = storm.judge(played, room)
    report.say("\n" + by_model(models, played, found) + "\n")
    report.say(tell(played, found, options.every_ms))
    report.say(noise.verdict([seen]))
    report.add(**as_json(played, found), cpu_of_others=seen.others)
    if options.plot:
        picture = report.json_file.with_suffix(".png")
        storm_plot.draw(played, found, picture)
        report.say(str(picture))
    report.write()
    for reason in found.reasons:
        report.say(f"FAILED: {reason}")
    return 1 if found.reasons else 0


def by_model(models: Sequence[StormModel], played: Played, found: Found) -> str:
    """Return the table of the models: what was reserved for each, and the most that its worker held."""
    head = ["model", "cells", "requests", "loads", "reserved MiB", "held at most"]
    asked = Counter(answer.model for answer in played.answers)
    rows: list[list[str]] = []
    for model in models:
        sizes = found.record.sizes.get(model.id, ())
        held = max((look.by_model.get(model.id, 0.0) for look in played.looks), default=0.0)
        reserved = f"{min(sizes):.0f} to {max(sizes):.0f}" if sizes else ""
        loads = found.record.loads.by_model.get(model.id, 0)
        rows.append([model.id, str(model.ctx), str(asked[model.id]), str(loads), reserved, f"{held:.0f}"])
    return figures.table(head, rows)


def tell(played: Played, found: Found, every_ms: int) -> str:
    """Return the sentences of a storm."""
    loads, room = found.record.loads, found.room
    whole = sum(not answer.problems for answer in played.answers)
    waits = [1e3 * answer.first_s for answer in played.answers if answer.first_s is not None]
    parts = ((50, "median"), (99, "99 %"), (100, "worst"))
    waited = ", ".join(f"{figures.percentile(waits, part) / 1e3:.1f} s ({name})" for part, name in parts)
    kind = (
        "the optimum: any two of these models fit, no three" if loads.exact else "a good rule, not an optimum"
    )
    over = found.over_ledger_mb
    alongside = (
        f"up to {over:.0f} MiB above the ledger"
        if over > 0
        else f"never above the ledger ({-over:.0f} MiB below)"
    )
    most, looks = found.record.ledger.most_mb, len(played.looks)
    return (
        f"{whole} of {len(played.answers)} answers are whole; first tokens after {waited}\n"
        f"budget {room.budget_mb:.0f} MiB, {room.room_mb:.0f} without the margin; "
        f"the ledger held at most {most:.0f}\n"
        f"workers held at most {found.most_rss_mb:.0f} MiB (resident sets; {found.most_pss_mb:.0f} "
        f"proportional), in {looks} looks each {every_ms} ms; {alongside}\n"
        f"{loads.total} loads; Belady's rule, which knows all arrivals: {loads.belady} in order of arrival "
        f"({kind}), {loads.by_service} in the order of service\n"
        f"every server in order of arrival needs {loads.least} at least; in the simulator the same arrivals "
        f"cost {loads.played['cost']} by modeld's policy, {loads.played['lru']} by LRU"
    )


def as_json(played: Played, found: Found) -> dict[str, Any]:
    """Return all of it for the JSON; times in seconds since the first request could come."""
    loads = found.record.loads
    return {
        "results": {
            "budget_mb": found.room.budget_mb,
            "margin_mb": found.room.margin_mb,
            "ledger_most_mb": found.record.ledger.most_mb,
            "rss_most_mb": found.most_rss_mb,
            "pss_most_mb": found.most_pss_mb,
            "over_ledger_mb": found.over_ledger_mb,
            "loads": loads._asdict() | {"total": loads.total},
            "reasons": found.reasons,
        },
        "answers": [answer._asdict() for answer in played.answers],
        "ledger": [
            [round(change.at - played.began, 3), dict(change.held)] for change in found.record.ledger.changes
        ],
        "looks": [[round(look.at - played.began, 3), look.rss_mb, look.pss_mb] for look in played.looks],
    }
