# SPDX-License-Identifier: GPL-3.0-only
"""`bench throughput`: the same prompts through every system, in turn, round by round."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

from benchmark import figures, noise
from benchmark.daemon import BenchError
from benchmark.prompts import WORDS, make_prompts
from benchmark.systems import System

WARM_UP_TOKENS = 8
PAUSE_S = 0.3
"""Between measurements, so that the threads of one system sleep before the next begins."""


class Plan(NamedTuple):
    """What to measure."""

    concurrency: Sequence[int]
    rounds: int
    prompt_tokens: int
    max_tokens: int
    shared_prefix: int = 0
    words: Sequence[str] = WORDS
    seed: str = ""


class Cell(NamedTuple):
    """One system at one concurrency: its figures of each round."""

    system: str
    concurrency: int
    rounds: list[figures.Figures]
    seen: list[noise.Seen]
    """CPU time that it and others took, a round each."""
    texts: list[list[str]]
    tokens: int
    """Of one round, all streams together."""


Say = Callable[[str], None]


def measure(systems: Sequence[System], plan: Plan, say: Say) -> list[Cell]:
    """Run the plan. In each round every system has its turn at each concurrency, in rotating order.

    Raises: BenchError when a stream fails or does not bring all its tokens.
    """
    for system in systems:
        _run(system, _prompts(plan, "warm-up", max(plan.concurrency)), WARM_UP_TOKENS)
    cells = {
        (s.name, n): Cell(s.name, n, [], [], [], n * plan.max_tokens)
        for n in plan.concurrency
        for s in systems
    }
    for number in range(plan.rounds):
        for concurrency in plan.concurrency:
            prompts = _prompts(plan, f"{number} {concurrency}", concurrency)
            turn = (number + plan.concurrency.index(concurrency)) % len(systems)
            for system in (*systems[turn:], *systems[:turn]):
                time.sleep(PAUSE_S)  # part of the method: each round begins at rest
                watch = noise.Watch(system.pids)
                streams = _run(system, prompts, plan.max_tokens)
                seen = watch.stop()
                cell = cells[system.name, concurrency]
                cell.rounds.append(figures.of_streams(streams))
                cell.seen.append(seen)
                cell.texts.append([stream["text"] for stream in streams])
                say(_progress(number, plan.rounds, cell))
    return list(cells.values())


def _prompts(plan: Plan, seed: str, count: int) -> list[str]:
    return make_prompts(
        f"{plan.seed} {seed}",
        count,
        tokens=plan.prompt_tokens,
        shared=plan.shared_prefix,
        words=plan.words,
    )


def _run(system: System, prompts: Sequence[str], max_tokens: int) -> list[figures.Stream]:
    streams = system.streams(prompts, max_tokens)
    wrong = figures.problems(streams, max_tokens)
    if wrong:
        raise BenchError(f"{system.name}, {len(prompts)} streams at once: {'; '.join(wrong[:3])}")
    return streams


def _progress(number: int, rounds: int, cell: Cell) -> str:
    found = cell.rounds[-1]
    others = cell.seen[-1].others
    noisy = "" if others is None else f", others used {others:.0%} of the cores"
    return (
        f"round {number + 1}/{rounds}  N={cell.concurrency:<3} {cell.system:<13} "
        f"{found['tokens_per_s']:7.1f} tokens/s{noisy}"
    )


def ratios(cells: Sequence[Cell], ours: str) -> dict[str, dict[int, float]]:
    """Return, for each other system and concurrency, our tokens/s over its own, the median of the rounds."""
    of = {(cell.system, cell.concurrency): cell.rounds for cell in cells}
    found: dict[str, dict[int, float]] = {}
    for (system, concurrency), theirs in of.items():
        if system != ours and (ours, concurrency) in of:
            found.setdefault(system, {})[concurrency] = figures.ratio(of[ours, concurrency], theirs)
    return found


def same_texts(cells: Sequence[Cell], system: str, other: str) -> float | None:
    """Return the part of the answers that are the same in both: a check that both did the same work."""
    of = {(cell.system, cell.concurrency): cell.texts for cell in cells}
    pairs = [
        mine == theirs
        for (name, concurrency), rounds in of.items()
        if name == system and (other, concurrency) in of
        for one, two in zip(rounds, of[other, concurrency], strict=True)
        for mine, theirs in zip(one, two, strict=True)
    ]
    return sum(pairs) / len(pairs) if pairs else None


def cpu_per_token_ms(cell: Cell) -> float | None:
    """Return the CPU time of all threads of a system per token, prompts included; None if unknown."""
    spent = [seen.watched_s for seen in cell.seen if seen.watched_s is not None]
    return 1e3 * median(spent) / cell.tokens if spent else None


def tell(cells: Sequence[Cell], ours: str) -> str:
    """Return the table: medians over rounds."""
    against = ratios(cells, ours)
    head = [
        "N",
        "system",
        "tokens/s",
        "spread",
        "decode/s",
        "ttft p50",
        "p95",
        "itl p50",
        "p99",
        "cpu/token",
        "others",
    ]
    head += [f"{ours} / it"]
    rows: list[list[str]] = []
    for cell in sorted(cells, key=lambda cell: cell.concurrency):
        middle = figures.medians(cell.rounds)
        known = [seen.others for seen in cell.seen if seen.others is not None]
        cpu = cpu_per_token_ms(cell)
        ratio = against.get(cell.system, {}).get(cell.concurrency)
        rows.append(
            [
                str(cell.concurrency),
                cell.system,
                f"{middle['tokens_per_s']:.1f}",
                f"{figures.spread([found['tokens_per_s'] for found in cell.rounds]):.0%}",
                f"{middle['decode_per_s']:.1f}",
                f"{middle['ttft_p50_ms']:.1f}",
                f"{middle['ttft_p95_ms']:.1f}",
                f"{middle['itl_p50_ms']:.1f}",
                f"{middle['itl_p99_ms']:.1f}",
                "?" if cpu is None else f"{cpu:.2f}",
                f"{sum(known) / len(known):.0%}" if known else "?",
                "" if ratio is None else f"{ratio:.3f}",
            ]
        )
    return figures.table(head, rows)


def as_json(cells: Sequence[Cell], ours: str) -> dict[str, Any]:
    """Return everything but the texts."""
    return {
        "results": [
            {
                "system": cell.system,
                "concurrency": cell.concurrency,
                "median": figures.medians(cell.rounds),
                "spread": figures.spread([found["tokens_per_s"] for found in cell.rounds]),
                "rounds": cell.rounds,
                "cpu_of_others": [seen.others for seen in cell.seen],
                "cpu_s": [seen.watched_s for seen in cell.seen],
                "cpu_ms_per_token": cpu_per_token_ms(cell),
            }
            for cell in cells
        ],
        "ratios": ratios(cells, ours),
        "same_texts": {
            other: same_texts(cells, ours, other) for other in {cell.system for cell in cells} - {ours}
        },
    }
