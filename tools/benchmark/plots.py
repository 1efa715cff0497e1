# SPDX-License-Identifier: GPL-3.0-only
"""Draw runs of the benchmark and the soak as PNG files, with matplotlib, which is no dependency of modeld."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark import figures
from benchmark.daemon import BenchError

if TYPE_CHECKING:
    from soaking.resources import Sample

    from benchmark.storm import Judgement, Played
    from benchmark.throughput import Cell

_THROUGHPUT = (
    ("tokens_per_s", "tokens/s"),
    ("ttft_p95_ms", "time to first token, p95 (ms)"),
    ("itl_p99_ms", "between tokens, p99 (ms)"),
)
_MEMORY = (
    ("memory of the daemon (MiB)", ("daemon_rss_mb", "daemon_pss_mb")),
    ("memory of all (MiB, PSS)", ("all_pss_mb",)),
    ("children, descriptors, threads", ("children", "descriptors", "threads")),
)


def require_matplotlib() -> None:
    """Fail before a long run, and not after it, when the plot cannot be drawn.

    Raises: BenchError with the command that fixes it.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise BenchError(
            "--plot needs matplotlib, which is not installed. Install it with "
            "`.venv/bin/python -m pip install matplotlib` (the group `bench` of pyproject.toml), "
            "or run without --plot: table and JSON hold the same figures"
        )


def _figure(**shape: Any) -> Any:
    return importlib.import_module("matplotlib.figure").Figure(layout="constrained", **shape)


def _save(figure: Any, path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, **options)


def draw_throughput(cells: Sequence[Cell], path: Path, title: str) -> None:
    """Draw median figures over concurrency, a line a system; a bar shows lowest and highest round."""
    figure = _figure(figsize=(12, 4))
    for axes, (name, label) in zip(figure.subplots(1, len(_THROUGHPUT)), _THROUGHPUT, strict=True):
        for system in dict.fromkeys(cell.system for cell in cells):
            own = sorted((c for c in cells if c.system == system), key=lambda cell: cell.concurrency)
            middle = [figures.medians(cell.rounds)[name] for cell in own]
            values = [[found[name] for found in cell.rounds] for cell in own]
            low = [m - min(v) for m, v in zip(middle, values, strict=True)]
            high = [max(v) - m for m, v in zip(middle, values, strict=True)]
            counts = [cell.concurrency for cell in own]
            axes.errorbar(counts, middle, yerr=[low, high], marker="o", capsize=3, label=system)
        axes.set_xlabel("streams at once")
        axes.set_title(label)
        axes.set_ylim(bottom=0)
        axes.set_xticks(sorted({cell.concurrency for cell in cells}))
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.suptitle(title, fontsize=10)
    _save(figure, path, dpi=110)


def draw_memory(samples: Sequence[Sample], path: Path, title: str) -> None:
    """Draw what was held over the minutes of the run."""
    figure = _figure(figsize=(12, 4))
    minutes = [sample.seconds / 60 for sample in samples]
    for axes, (label, names) in zip(figure.subplots(1, len(_MEMORY)), _MEMORY, strict=True):
        for name in names:
            axes.plot(minutes, [getattr(sample, name) for sample in samples], label=name, linewidth=1)
        axes.set_xlabel("minutes")
        axes.set_title(label)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title, fontsize=10)
    _save(figure, path, dpi=110)


def draw_storm(played: Played, found: Judgement, path: Path) -> None:
    """Draw the memory over time, above a row for each model: loaded (bars) and asked for (dots)."""
    figure = _figure(figsize=(11, 6))
    memory, models = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    begin, end = played.began, max(sample.at for sample in played.samples)
    changes = found.record.ledger.changes
    steps = [(0.0, 0.0), *((change.at - begin, change.total_mb) for change in changes)]
    steps.append((end - begin, steps[-1][1]))
    memory.step(*zip(*steps, strict=True), where="post", label="ledger", linewidth=1.2, color="tab:blue")
    seconds = [sample.at - begin for sample in played.samples]
    held = [sample.rss_mb for sample in played.samples]
    memory.plot(seconds, held, label="workers, resident sets", linewidth=0.8, color="tab:orange")
    with_pss = [sample for sample in played.samples if sample.pss_mb is not None]
    proportional = [sample.pss_mb for sample in with_pss]
    at = [sample.at - begin for sample in with_pss]
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
    _save(figure, path, dpi=75, pil_kwargs={"optimize": True})


def _spans(found: Judgement, model: str, begin: float, end: float) -> list[tuple[float, float]]:
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
