# SPDX-License-Identifier: GPL-3.0-only
"""The memory curve of a soak as PNG. Wants matplotlib, which is no dependency of modeld."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from soaking.process import SoakError
from soaking.samples import Sample

_PANELS = (
    ("memory of the daemon (MiB)", ("daemon_rss_mb", "daemon_pss_mb")),
    ("memory of all (MiB, PSS)", ("all_pss_mb",)),
    ("children, descriptors, threads", ("children", "descriptors", "threads")),
)


def require() -> None:
    """Say before a long run, and not after it, that the plot cannot be drawn. Raises: SoakError."""
    if importlib.util.find_spec("matplotlib") is None:
        raise SoakError(
            "--plot needs matplotlib, which is not installed; install it with "
            "`.venv/bin/python -m pip install matplotlib`, or use the JSON, which has the same samples"
        )


def draw(samples: Sequence[Sample], path: Path, title: str) -> None:
    """Draw what was held over the minutes of the run."""
    pyplot = importlib.import_module("matplotlib.figure")
    figure = pyplot.Figure(figsize=(12, 4), layout="constrained")
    minutes = [sample.seconds / 60 for sample in samples]
    for axes, (label, names) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
        for name in names:
            axes.plot(minutes, [getattr(sample, name) for sample in samples], label=name, linewidth=1)
        axes.set_xlabel("minutes")
        axes.set_title(label)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
