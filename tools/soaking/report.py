# SPDX-License-Identifier: GPL-3.0-only
"""Report a soak as Markdown tables and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from soaking.resources import Sample
from soaking.results import FaultResult
from soaking.run import Plan, Result


def faults_table(rows: Sequence[FaultResult]) -> str:
    """Return the table of faults: those of one kind in one line, only what came at its moment."""
    head = ("fault", "injected", "times", "what clients saw", "lost", "served again after (median, worst)")
    kinds: dict[tuple[str, str], list[FaultResult]] = {}
    for row in rows:
        if row.hit:
            kinds.setdefault((row.fault, row.when), []).append(row)
    lines = [head, tuple("---" for _ in head)]
    for (fault, when), found in sorted(kinds.items()):
        took = [row.recovery_s for row in found if row.recovery_s is not None]
        times = f"{median(took):.1f} s, {max(took):.1f} s" if took else ""
        lines.append(
            (
                fault,
                when,
                str(len(found)),
                _most([row.seen for row in found]),
                _most([row.lost for row in found]),
                times,
            )
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _most(words: Sequence[str]) -> str:
    counts = Counter(words).most_common()
    if len(counts) == 1:
        return counts[0][0]
    return ", ".join(f"{word} ({count})" for word, count in counts)


def memory_table(samples: Sequence[Sample], parts: int = 7) -> str:
    """Return the memory over time: medians of equal parts of the run."""
    head = (
        "minute",
        "daemon RSS",
        "daemon PSS",
        "idle: RSS",
        "all PSS",
        "children",
        "descriptors",
        "threads",
    )
    end = max(sample.seconds for sample in samples)
    lines = [head, tuple("---" for _ in head)]
    for part in range(parts):
        begin, until = part * end / parts, (part + 1) * end / parts
        found = [sample for sample in samples if begin <= sample.seconds <= until]
        if not found:
            continue
        idle = [sample.daemon_rss_mb for sample in found if sample.idle]
        lines.append(
            (
                f"{begin / 60:.0f} to {until / 60:.0f}",
                f"{median(sample.daemon_rss_mb for sample in found):.1f}",
                f"{median(sample.daemon_pss_mb for sample in found):.1f}",
                f"{median(idle):.1f}" if idle else "",
                f"{median(sample.all_pss_mb for sample in found):.0f}",
                f"{max(sample.children for sample in found)}",
                f"{max(sample.descriptors for sample in found)}",
                f"{max(sample.threads for sample in found)}",
            )
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_json(path: Path, plan: Plan, result: Result) -> None:
    """Write everything into a file."""
    content = {
        "plan": plan._asdict(),
        "seconds": result.seconds,
        "reasons": result.reasons,
        "traffic": result.traffic,
        "faults": [row._asdict() for row in result.results],
        "samples": [sample._asdict() for sample in result.samples],
        "status": {key: value for key, value in result.last_status.items() if key != "decisions"},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def text(result: Result) -> str:
    """Return the outcome as text."""
    played = sum(row.hit for row in result.results)
    asked = sum(result.traffic.values())
    parts = [
        faults_table(result.results),
        memory_table(result.samples),
        f"{played} faults and {asked} usual requests in {result.seconds / 60:.1f} minutes",
    ]
    if result.reasons:
        parts.append("\n".join(f"WRONG: {reason}" for reason in result.reasons))
    else:
        parts.append("everything came back to where it was")
    return "\n\n".join(parts)
