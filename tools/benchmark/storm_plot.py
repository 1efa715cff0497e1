# SPDX-License-Identifier: GPL-3.0-only
"""The plot of a storm: ledger against measured memory, which models were loaded when. Wants matplotlib."""

from __future__ import annotations

import importlib
from pathlib import Path

from benchmark.storm import Found, Played


def draw(played: Played, found: Found, path: Path) -> None:
    """Draw the memory over time, above a row for each model: loaded (bars) and asked for (dots)."""
    pyplot = importlib.import_module("matplotlib.figure")
    figure = pyplot.Figure(figsize=(11, 6), layout="constrained")
    memory, models = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    begin, end = played.began, max(look.at for look in played.looks)
    changes = found.record.ledger.changes
    steps = [(0.0, 0.0), *((change.at - begin, change.total_mb) for change in changes)]
    steps.append((end - begin, steps[-1][1]))
    memory.step(*zip(*steps, strict=True), where="post", label="ledger", linewidth=1.2, color="tab:blue")
    seconds = [look.at - begin for look in played.looks]
    held = [look.rss_mb for look in played.looks]
    memory.plot(seconds, held, label="workers, resident sets", linewidth=0.8, color="tab:orange")
    some = [look for look in played.looks if look.pss_mb is not None]
    proportional = [look.pss_mb for look in some]
    at = [look.at - begin for look in some]
    memory.plot(at, proportional, label="workers, proportional", linewidth=0.6, color="tab:green", alpha=0.8)
    memory.axhline(found.room.budget_mb, color="tab:red", linewidth=1.2, label="budget")
    memory.axhline(found.room.room_mb, color="tab:red", linewidth=1, linestyle="--", label="less the margin")
    memory.set_ylabel("MiB")
    memory.set_ylim(bottom=0)
    memory.grid(alpha=0.3)
    memory.legend(loc="lower right", ncols=5, fontsize=8)
    names = sorted(found.record.sizes, reverse=True)
    for place, name in enumerate(names):
        models.broken_barh(_spans(found, name, begin, end), (place - 0.35, 0.7), color="tab:blue", alpha=0.45)
        sent = [answer.sent - begin for answer in played.answers if answer.model == name]
        models.plot(sent, [place] * len(sent), ".", color="black", markersize=3)
    models.set_yticks(range(len(names)), names, fontsize=8)
    models.set_xlabel("seconds; bars: memory reserved for the model, dots: requests for it")
    models.grid(alpha=0.3, axis="x")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=75, pil_kwargs={"optimize": True})


def _spans(found: Found, model: str, begin: float, end: float) -> list[tuple[float, float]]:
    """Return when the ledger held a model, as (from, for how long), seconds."""
    spans: list[tuple[float, float]] = []
    since: float | None = None
    for change in found.record.ledger.changes:
        if model in change.held and since is None:
            since = change.at
        elif model not in change.held and since is not None:
            spans.append((since - begin, change.at - since))
            since = None
    return spans if since is None else [*spans, (since - begin, end - since)]
