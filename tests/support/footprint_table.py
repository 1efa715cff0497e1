# SPDX-License-Identifier: GPL-3.0-only
"""Program: holds estimates of memory against real processes, and prints a table for docs/footprint.md.

python -m support.footprint_table [FIRST [LAST]]      (from tests/; the numbers of rows; all take some
minutes)

Columns in MiB: the formula, the dry run, what the next load would be reserved after one load has taught, and
the resident set of a process whose context was filled by whole ubatches; alongside the first three, how far
off they are. `learned` is taught by the process when it was ready, before it had served anybody.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from support.daemon_process import Q4_0, Q4_1, Q8_0, models_folder
from support.memory_measurement import certain_bytes, measured_bytes, without_huge_pages

from modeld.domain.model import MIB, Isolation, LoadOptions, ModelSpec
from modeld.engine.llama.footprint import estimate
from modeld.engine.llama.gguf.facts import read_facts
from modeld.memory.calibration import Calibration, after_load, calibrated

OTHERS = (
    (Q4_0, {"kv_type": "q8_0"}),
    (Q4_0, {"flash_attn": True}),
    (Q4_0, {"mmap": False}),
    (Q4_0, {"ubatch": 128}),
    (Q4_0, {"kv_unified": False}),
    (Q4_0, {"kv_unified": True}),
    (Q4_0, {"prefix_cells": 0}),
    (Q4_1, {"kv_type": "q8_0", "mmap": False}),
    (Q8_0, {"ubatch": 256}),
)


def row(path: Path, options: LoadOptions) -> tuple[float, float, float, float]:
    """Return formula, dry run, learned and measured, MiB."""
    facts = read_facts(path)
    formula, run = estimate(facts, options), certain_bytes(path, options)
    told = measured_bytes(path, options)
    spec = calibrated(ModelSpec(id="m", path=str(path), facts=facts, options=options), run, None)
    learned = after_load(Calibration(), spec.scale, told["ready"]["rss"])
    after = calibrated(spec, run, learned).footprint.total
    return tuple(size / MIB for size in (formula.total, run.peak.total, after, told["full"]["rss"]))


def main() -> None:
    """Print the table."""
    folder, bounds = models_folder(), [int(word) for word in sys.argv[1:]]
    first, last = (*bounds, None, None)[:2]
    without_huge_pages()
    usual = {"threads": 2, "isolation": Isolation.PROCESS}
    grid = [
        (quant, {"ctx": ctx, "slots": slots})
        for quant, ctx, slots in itertools.product((Q4_0, Q4_1, Q8_0), (1024, 4096), (1, 4))
    ]
    grid += [(quant, {"ctx": 2048, "slots": 4, **other}) for quant, other in OTHERS]
    _print("weights, cells, slots, options", "formula", "dry run", "learned", "measured")
    _print("---", "---", "---", "---", "---")
    for quant, change in grid[first:last]:
        found = row(folder / f"{quant}.gguf", LoadOptions(**usual, **change))
        sizes = [f"{size:.0f} ({(size / found[3] - 1) * 100:+.1f} %)" for size in found[:3]]
        words = [quant.rpartition(".")[2], str(change["ctx"]), str(change["slots"])]
        words += [f"{key} {value}" for key, value in change.items() if key not in {"ctx", "slots"}]
        _print(", ".join(words), *sizes, f"{found[3]:.0f}")


def _print(*cells: str) -> None:
    sys.stdout.write(f"| {' | '.join(cells)} |\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
