# SPDX-License-Identifier: GPL-3.0-only
"""The plot of a throughput run as PNG. Wants matplotlib, which is no dependency of modeld."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from benchmark import figures
from benchmark.daemon import BenchError
from benchmark.throughput import Cell

_PANELS = (
    ("tokens_per_s", "tokens/s"),
    ("ttft_p95_ms", "time to first token, p95 (ms)"),
    ("itl_p99_ms", "between tokens, p99 (ms)"),
)


def require() -> None:
    """Say before a long run, and not after it, that the plot cannot be drawn.

    Raises: BenchError with the command that mends it.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise BenchError(
            "--plot needs matplotlib, which is not installed. Install it with "
            "`.venv/bin/python -m pip install matplotlib` (the group `bench` of pyproject.toml), "
            "or run without --plot: table and JSON hold the same figures"
        )


def draw(cells: Sequence[Cell], path: Path, title: str) -> None:
    """Draw median figures over concurrency, a line a system; a bar shows lowest and highest round."""
    pyplot = importlib.import_module("matplotlib.figure")
    figure = pyplot.Figure(figsize=(12, 4), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
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
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
