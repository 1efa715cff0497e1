# SPDX-License-Identifier: GPL-3.0-only
"""Compute statistics over streams, and format tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

Stream = dict[str, Any]
"""One answer, as load_generator.py and bare_loop.py return it."""
Figures = dict[str, float]

NAMES = ("tokens_per_s", "decode_per_s", "ttft_p50_ms", "ttft_p95_ms", "itl_p50_ms", "itl_p99_ms")


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile; NaN of nothing."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def of_streams(streams: Sequence[Stream]) -> Figures:
    """Return the figures of streams that ran together; seconds become milliseconds.

    tokens_per_s: all tokens over the time from the first request to the last token, prompts included.
    decode_per_s: tokens after each stream's first, over the time from the last stream's first token to
      the first stream's last one, when all of them decode; counts only what fell into that window.
    ttft: from sending a request to its first token. itl: between tokens of one stream, all streams
    together; tokens that arrive in one read are 0 apart, so a server gains nothing by bundling.
    """
    times = [stream["times"] for stream in streams]
    first, last = max(line[0] for line in times), min(line[-1] for line in times)
    inside = sum(first < when <= last for line in times for when in line)
    end = max(line[-1] for line in times)
    begin = min(stream["sent"] for stream in streams)
    ttft = [1e3 * (stream["times"][0] - stream["sent"]) for stream in streams]
    gaps = [1e3 * (after - before) for line in times for before, after in pairwise(line)]
    return {
        "tokens_per_s": sum(stream["tokens"] for stream in streams) / (end - begin),
        "decode_per_s": inside / (last - first) if last > first else math.nan,
        "ttft_p50_ms": percentile(ttft, 50),
        "ttft_p95_ms": percentile(ttft, 95),
        "itl_p50_ms": percentile(gaps, 50),
        "itl_p99_ms": percentile(gaps, 99),
    }


def medians(rounds: Sequence[Figures]) -> Figures:
    """Return the median of each figure over rounds."""
    return {name: median(figures[name] for figures in rounds) for name in NAMES}


def spread(values: Sequence[float]) -> float:
    """Return the distance of the lowest and the highest value, as a part of the median."""
    return (max(values) - min(values)) / median(values)


def ratio(ours: Sequence[Figures], theirs: Sequence[Figures], name: str = "tokens_per_s") -> float:
    """Return the median over rounds of ours / theirs, each taken within one round.

    A machine that slows down for a while slows down both sides of a round.
    """
    pairs = zip(ours, theirs, strict=True)
    return median(mine[name] / other[name] for mine, other in pairs)


def problems(streams: Sequence[Stream], tokens: int) -> list[str]:
    """Return what is wrong with streams that should have brought `tokens` tokens each."""
    found: list[str] = []
    for number, stream in enumerate(streams):
        if stream["error"] or stream["status"] != 200:
            found.append(f"stream {number}: status {stream['status']}, {stream['error']}")
        elif stream["tokens"] != tokens:
            found.append(f"stream {number} brought {stream['tokens']} tokens instead of {tokens}")
        elif not stream["times"]:
            found.append(f"stream {number} brought no text")
    return found


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, aligned, numbers to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(cells: Sequence[str], pad: Callable[[str, int], str]) -> str:
        return "| " + " | ".join(pad(cell, width) for cell, width in zip(cells, widths, strict=True)) + " |"

    ruler = "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|"
    return "\n".join([line(head, str.rjust), ruler, *(line(row, str.rjust) for row in rows)])
