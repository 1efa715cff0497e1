# SPDX-License-Identifier: GPL-3.0-only
"""Writes the traces of this folder: `python tests/traces/make.py`. Same seed, same traces."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).parent
Row = dict[str, object]
Parts = tuple[Row, list[Row]]


def seeded(number: int) -> random.Random:
    """The same draws every time."""
    return random.Random(number)  # noqa: S311  # chance for a trace, not for a secret


def model(name: str, size_mb: int, load_ms: int, slots: int = 2) -> Row:
    """A model of the head; an unload takes 100 ms."""
    return {"id": name, "size_mb": size_mb, "load_ms": load_ms, "unload_ms": 100, "slots": slots}


def arrivals(
    rng: random.Random, name: str, rate: Callable[[float], float], until_ms: int, service_ms: int
) -> Iterator[Row]:
    """Requests by a Poisson process of `rate(ms)` per second; services of half to double `service_ms`."""
    peak = max(rate(at) for at in range(0, until_ms, 1000))
    now = 0.0
    while True:
        now += rng.expovariate(peak) * 1000
        if now >= until_ms:
            return
        if rng.random() < rate(now) / peak:
            yield {"at_ms": int(now), "model": name, "service_ms": int(service_ms * rng.uniform(0.5, 2.0))}


def alternating() -> Parts:
    """Two models, room for one, asked for in turn every second."""
    head = {"budget_mb": 100, "models": [model("a", 60, 2000), model("b", 60, 2000)]}
    return head, [
        {"at_ms": 1000 * place, "model": "ab"[place % 2], "service_ms": 400} for place in range(300)
    ]


def hot_and_cold() -> Parts:
    """Half an hour: one hot model, and twelve colder ones, each asked for less often than the last."""
    rng = seeded(2)
    until = 1_800_000
    models = [model("hot", 40, 3000, slots=4)]
    rows = list(arrivals(rng, "hot", lambda _at: 0.3, until, 600))
    for place in range(12):
        name, size = f"cold{place + 1:02}", (20, 24, 30, 36)[place % 4]
        models.append(model(name, size, 60 * size))
        each = 0.08 / (place + 1)
        rows += arrivals(rng, name, lambda _at, each=each: each, until, 600)
    return {"budget_mb": 140, "models": models}, rows


def regulars_and_guests() -> Parts:
    """An hour: three models in regular use, and forty that somebody tries now and then; room for four."""
    rng = seeded(5)
    until = 3_600_000
    models = [model(f"regular{place}", 30, 2500) for place in range(3)]
    rows: list[Row] = []
    for place in range(3):
        rows += arrivals(rng, f"regular{place}", lambda _at: 0.05, until, 800)
    for place in range(40):
        models.append(model(f"guest{place:02}", 30, 2500))
        rows += arrivals(rng, f"guest{place:02}", lambda _at: 0.003, until, 800)
    return {"budget_mb": 130, "models": models}, rows


def burst() -> Parts:
    """Quiet use of six models, and every half minute forty requests at once for three of them."""
    rng = seeded(3)
    names = [f"m{place}" for place in range(6)]
    models = [model(name, 30 + 5 * place, 1500 + 300 * place) for place, name in enumerate(names)]
    rows: list[Row] = []
    for name in names:
        rows += arrivals(rng, name, lambda _at: 0.05, 300_000, 400)
    for start in range(10_000, 300_000, 30_000):
        chosen = rng.sample(names, 3)
        rows += [
            {"at_ms": start + rng.randrange(500), "model": rng.choice(chosen), "service_ms": 300}
            for _ in range(40)
        ]
    return {"budget_mb": 100, "models": models}, rows


def diurnal() -> Parts:
    """Eight models whose use rises and falls in days of twenty minutes, four by day and four by night."""
    rng = seeded(4)
    models: list[Row] = []
    rows: list[Row] = []
    for place in range(8):
        name = f"{'day' if place < 4 else 'night'}{place % 4}"
        size = (20, 30, 40, 50)[place % 4]
        models.append(model(name, size, 60 * size))
        shift = 0.0 if place < 4 else math.pi
        top = 0.08 / (1 + place % 4)

        def rate(at: float, top: float = top, shift: float = shift) -> float:
            return top * (0.05 + (1 + math.sin(2 * math.pi * at / 1_200_000 + shift)) / 2)

        rows += arrivals(rng, name, rate, 3_600_000, 800)
    return {"budget_mb": 150, "models": models}, rows


def adversarial() -> Parts:
    """Four models, room for three, asked for round and round (LRU's worst case); and one that never rests."""
    head = {
        "budget_mb": 160,
        "models": [model("busy", 40, 1000), *(model(name, 40, 2000) for name in ("w", "x", "y", "z"))],
    }
    rows: list[Row] = [{"at_ms": 250 * place, "model": "busy", "service_ms": 450} for place in range(1200)]
    rows += [
        {"at_ms": 2500 * place + 7, "model": "wxyz"[place % 4], "service_ms": 400} for place in range(120)
    ]
    return head, rows


def starving() -> Parts:
    """Two models, room for one: one is never idle, the other is asked for now and then."""
    head = {"budget_mb": 100, "models": [model("hot", 60, 2000), model("rare", 60, 2000)]}
    rows: list[Row] = [{"at_ms": 400 * place, "model": "hot", "service_ms": 700} for place in range(600)]
    rows += [{"at_ms": 30_000 * place + 11, "model": "rare", "service_ms": 500} for place in range(1, 8)]
    return head, rows


TRACES = (alternating, hot_and_cold, regulars_and_guests, burst, diurnal, adversarial, starving)


def text(parts: Parts) -> str:
    """Return a trace as JSON lines, in order of time."""
    head, rows = parts
    rows = sorted(rows, key=lambda row: (row["at_ms"], row["model"]))
    return "".join(json.dumps(row) + "\n" for row in (head, *rows))


if __name__ == "__main__":
    for trace in TRACES:
        (HERE / f"{trace.__name__}.jsonl").write_text(text(trace()), encoding="utf-8")
