# SPDX-License-Identifier: GPL-3.0-only
"""`bench storm`: its options, its tables, its JSON."""

from __future__ import annotations

import argparse
import shlex
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmark import figures, plots, storm
from benchmark.cpu_load import CpuWatch
from benchmark.daemon import modeld
from benchmark.options import Mode, whole
from benchmark.report import Report
from benchmark.storm import Judgement, Played
from benchmark.storm_requests import MODELS, SLOTS, StormModel, draw

EVERY_MS = 50
"""Between measurements of memory."""


def add_options(mode: argparse.ArgumentParser) -> None:
    """Add the options of this mode."""
    add = mode.add_argument
    add("--requests", type=whole(1, 2000), default=200)
    add("--seconds", type=whole(0, 3600), default=170, help="over which they come (%(default)s)")
    add("--seed", type=int, default=1, help="the same seed, the same storm (%(default)s)")
    add("--margin-mb", type=whole(0, 10_000), default=64, help="of the budget (%(default)s)")
    add("--plot", action="store_true", help="draw a PNG (needs matplotlib)")


def run(options: argparse.Namespace) -> int:
    """Play a storm, print the tables, write JSON and plot; 1 when something is not as it must be."""
    if options.plot:
        plots.require_matplotlib()
    given = {name: getattr(options, name) for name in ("requests", "seconds", "seed")}
    report = Report(options, models=len(MODELS), slots=SLOTS, **given)
    with tempfile.TemporaryDirectory(prefix="modeld-storm-") as name:
        place = Path(name)
        models, events = place / "models", place / "events.ndjson"
        storm.put_models(MODELS, options.model.parent, models)
        flags = storm.flags_of(MODELS, place)
        flags += ["--llama-threads", str(options.threads), *shlex.split(options.modeld)]
        sizes = storm.estimates(MODELS, models, flags)
        room = storm.room_for_two(list(sizes.values()), options.margin_mb)
        events.unlink(missing_ok=True)
        flags += ["--vram-budget-mb", f"{room.budget_mb:.0f}", "--vram-margin-mb", f"{room.margin_mb:.0f}"]
        report.say(f"a budget of {room.budget_mb:.0f} MiB less a margin of {room.margin_mb:.0f}")
        requests = draw(MODELS, **given)
        watch = CpuWatch([])  # Workers end meanwhile: their time is known when the daemon has ended.
        with modeld(*flags, models_dir=models) as server:
            played = storm.play(server, [requests], events, EVERY_MS / 1e3)
        use = watch.stop()
    found = storm.judge(played, room)
    text = [by_model(MODELS, played, found), "", describe(played, found)]
    if options.plot:
        picture = report.json_file.with_suffix(".png")
        plots.draw_storm(played, found, picture)
        text.append(str(picture))
    text += [f"FAILED: {reason}" for reason in found.reasons]
    report.finish("\n".join(text), [use], **as_json(played, found))
    return 1 if found.reasons else 0


def by_model(models: Sequence[StormModel], played: Played, found: Judgement) -> str:
    """Return the table of the models: what was reserved for each, and the most that its worker held."""
    head = ["model", "cells", "requests", "loads", "reserved MiB", "held at most"]
    asked = Counter(answer.model for answer in played.answers)
    rows: list[list[str]] = []
    for model in models:
        sizes = found.record.sizes.get(model.id, ())
        held = max((sample.by_model.get(model.id, 0.0) for sample in played.samples), default=0.0)
        reserved = f"{min(sizes):.0f} to {max(sizes):.0f}" if sizes else ""
        loads = found.record.loads.by_model.get(model.id, 0)
        rows.append([model.id, str(model.ctx), str(asked[model.id]), str(loads), reserved, f"{held:.0f}"])
    return figures.table(head, rows)


def describe(played: Played, found: Judgement) -> str:
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
    beside = (
        f"up to {over:.0f} MiB above the ledger"
        if over > 0
        else f"never above the ledger ({-over:.0f} MiB below)"
    )
    most, samples = found.record.ledger.most_mb, len(played.samples)
    return (
        f"{whole} of {len(played.answers)} answers are whole; first tokens after {waited}\n"
        f"budget {room.budget_mb:.0f} MiB, {room.room_mb:.0f} without the margin; "
        f"the ledger held at most {most:.0f}\n"
        f"workers held at most {found.most_rss_mb:.0f} MiB (resident sets; {found.most_pss_mb:.0f} "
        f"proportional), in {samples} measurements each {EVERY_MS} ms; {beside}\n"
        f"{loads.total} loads; Belady's rule, which knows all arrivals: {loads.belady} in order of arrival "
        f"({kind}), {loads.by_service} in the order of service\n"
        f"every server in order of arrival needs {loads.least} at least; in the simulator the same arrivals "
        f"cost {loads.played['cost']} by modeld's policy, {loads.played['lru']} by LRU"
    )


def as_json(played: Played, found: Judgement) -> dict[str, Any]:
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
        "samples": [
            [round(sample.at - played.began, 3), sample.rss_mb, sample.pss_mb] for sample in played.samples
        ],
    }


MODE = Mode(
    "more models than memory: does the budget hold, and how many loads does it cost?", add_options, run
)
