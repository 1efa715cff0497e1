# SPDX-License-Identifier: GPL-3.0-only
"""`bench throughput`: the same prompts through every system, in turn, round by round."""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

from benchmark import figures, plots
from benchmark.cpu_load import CpuUse, CpuWatch
from benchmark.daemon import BenchError
from benchmark.llama_server import ensure_built, llama_server
from benchmark.options import Mode, add_llama_server, counts, modeld_flags, whole
from benchmark.prompts import WORDS, make_prompts
from benchmark.report import Report
from benchmark.systems import Setup, System, at_url, bare_loop, own_modeld

WARM_UP_TOKENS = 8
PAUSE_S = 0.3
"""Between measurements, so that the threads of one system sleep before the next begins."""
_CELLS_STEP = 256
"""KV cells of a slot are a multiple of this, as llama.cpp makes them, with some to spare."""
_CELLS_SPARE = 64
NOTE = (
    "Medians over rounds; times in ms. spread: lowest to highest round, as a part of the median. others:\n"
    "part of all cores that processes outside of this bench used meanwhile. cpu/token: of all threads. The\n"
    "last column: the median of the ratios within each round."
)


class Plan(NamedTuple):
    """What to measure."""

    concurrency: Sequence[int]
    rounds: int
    prompt_tokens: int
    max_tokens: int
    shared_prefix: int = 0
    words: Sequence[str] = WORDS
    seed: str = ""

    def prompts(self, seed: str, count: int) -> list[str]:
        """Return prompts that no other seed has."""
        lengths = {"tokens": self.prompt_tokens, "shared": self.shared_prefix}
        return make_prompts(f"{self.seed} {seed}", count, words=self.words, **lengths)


class Cell(NamedTuple):
    """One system at one concurrency: its figures of each round."""

    system: str
    concurrency: int
    rounds: list[figures.Figures]
    cpu: list[CpuUse]
    """CPU time that it and others took, for each round."""
    texts: list[list[str]]
    tokens: int
    """Of one round, all streams together."""

    @property
    def cpu_per_token_ms(self) -> float | None:
        """CPU time of all threads of the system for each token, prompts included; None if unknown."""
        spent = [use.watched_s for use in self.cpu if use.watched_s is not None]
        return 1e3 * median(spent) / self.tokens if spent else None

    @property
    def spread(self) -> float:
        """The distance of the slowest and the fastest round, as a part of the median."""
        return figures.spread([found["tokens_per_s"] for found in self.rounds])


def measure(systems: Sequence[System], plan: Plan, say: Callable[[str], None]) -> list[Cell]:
    """Run the plan. In each round every system has its turn at each concurrency, in rotating order.

    Raises: BenchError when a stream fails or does not bring all its tokens.
    """
    for system in systems:
        _run(system, plan.prompts("warm-up", max(plan.concurrency)), WARM_UP_TOKENS)
    cells = {
        (s.name, n): Cell(s.name, n, [], [], [], n * plan.max_tokens)
        for n in plan.concurrency
        for s in systems
    }
    for number in range(plan.rounds):
        for concurrency in plan.concurrency:
            prompts = plan.prompts(f"{number} {concurrency}", concurrency)
            turn = (number + plan.concurrency.index(concurrency)) % len(systems)
            for system in (*systems[turn:], *systems[:turn]):
                time.sleep(PAUSE_S)  # part of the method: each round begins at rest
                watch = CpuWatch(system.pids)
                streams = _run(system, prompts, plan.max_tokens)
                cell = cells[system.name, concurrency]
                cell.cpu.append(watch.stop())
                cell.rounds.append(figures.of_streams(streams))
                cell.texts.append([stream["text"] for stream in streams])
                say(_progress(number, plan.rounds, cell))
    return list(cells.values())


def _run(system: System, prompts: Sequence[str], max_tokens: int) -> list[figures.Stream]:
    streams = system.streams(prompts, max_tokens)
    wrong = figures.problems(streams, max_tokens)
    if wrong:
        raise BenchError(f"{system.name}, {len(prompts)} streams at once: {'; '.join(wrong[:3])}")
    return streams


def _progress(number: int, rounds: int, cell: Cell) -> str:
    others = cell.cpu[-1].others
    noisy = "" if others is None else f", others used {others:.0%} of the cores"
    return (
        f"round {number + 1}/{rounds}  N={cell.concurrency:<3} {cell.system:<13} "
        f"{cell.rounds[-1]['tokens_per_s']:7.1f} tokens/s{noisy}"
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


def table(cells: Sequence[Cell], ours: str) -> str:
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
    rows: list[list[str]] = []
    for cell in sorted(cells, key=lambda cell: cell.concurrency):
        middle = figures.medians(cell.rounds)
        known = [use.others for use in cell.cpu if use.others is not None]
        cpu, ratio = cell.cpu_per_token_ms, against.get(cell.system, {}).get(cell.concurrency)
        row = [str(cell.concurrency), cell.system, f"{middle['tokens_per_s']:.1f}", f"{cell.spread:.0%}"]
        row += [f"{middle[name]:.1f}" for name in figures.NAMES[1:]]
        row += ["?" if cpu is None else f"{cpu:.2f}"]
        row += [f"{sum(known) / len(known):.0%}" if known else "?", "" if ratio is None else f"{ratio:.3f}"]
        rows.append(row)
    return figures.table([*head, f"{ours} / it"], rows)


def as_json(cells: Sequence[Cell], ours: str) -> dict[str, Any]:
    """Return everything but the texts."""
    others = {cell.system for cell in cells} - {ours}
    return {
        "results": [
            {
                "system": cell.system,
                "concurrency": cell.concurrency,
                "median": figures.medians(cell.rounds),
                "spread": cell.spread,
                "rounds": cell.rounds,
                "cpu_of_others": [use.others for use in cell.cpu],
                "cpu_s": [use.watched_s for use in cell.cpu],
                "cpu_ms_per_token": cell.cpu_per_token_ms,
            }
            for cell in cells
        ],
        "ratios": ratios(cells, ours),
        "same_texts": {other: same_texts(cells, ours, other) for other in others},
    }


def add_options(mode: argparse.ArgumentParser) -> None:
    """Add the options of this mode."""
    add = mode.add_argument
    add("--concurrency", type=counts, default=[1, 4, 8, 16], metavar="N,N", help="streams at once")
    add("--rounds", type=whole(1, 100), default=5)
    add("--prompt-tokens", type=whole(1, 16384), default=32)
    add("--max-tokens", type=whole(2, 4096), default=128, help="tokens of each answer")
    add("--shared-prefix", type=whole(0, 16384), default=0, help="tokens all prompts begin with")
    add("--openai-url", metavar="URL", help="also measure this server (/v1/completions, loopback)")
    add("--openai-model", metavar="NAME", help="model to ask it for (default: the file's name)")
    add_llama_server(mode)
    text = "run the models of modeld so; given twice, both are measured, each in a daemon of its own"
    add("--isolation", action="append", choices=("process", "thread"), help=text)
    add("--no-bare", action="store_true", help="leave the bare loop out")
    add("--plot", action="store_true", help="draw a PNG (needs matplotlib)")


def run(options: argparse.Namespace) -> int:
    """Measure every system in turn, print the table, write JSON and plot."""
    if options.plot:
        plots.require_matplotlib()
    if options.shared_prefix >= options.prompt_tokens:
        raise BenchError("--shared-prefix must be shorter than --prompt-tokens")
    slots = max(options.concurrency)
    tokens = options.prompt_tokens + options.max_tokens
    cells = slots * -(-(tokens + _CELLS_SPARE) // _CELLS_STEP) * _CELLS_STEP
    setup = Setup(options.model, slots=slots, ctx=cells, threads=options.threads)
    given = {
        name: getattr(options, name) for name in ("prompt_tokens", "shared_prefix", "max_tokens", "rounds")
    }
    spin = os.environ.get("GOMP_SPINCOUNT", "2000")
    report = Report(options, slots=slots, cells=cells, **given, spin=spin)
    with contextlib.ExitStack() as stack:
        systems: list[System] = []
        words: Sequence[str] = WORDS
        if options.fake is None and not options.no_bare:
            loop = stack.enter_context(bare_loop(setup))
            words = loop.command(single=list(WORDS)) or WORDS
            systems.append(loop)
        ours = ""
        for isolation in options.isolation or [""]:
            systems.append(stack.enter_context(own_modeld(setup, modeld_flags(options), isolation)))
            ours = ours or systems[-1].name
        if options.with_llama_server:
            systems.append(stack.enter_context(llama_server(ensure_built(), setup)))
        if options.openai_url:
            systems.append(at_url(options.openai_url, options.openai_model or options.model.name))
        plan = Plan(options.concurrency, **given, words=words, seed=report.json_file.name)
        found = measure(systems, plan, report.say)
    text = [table(found, ours), ""]
    for name in {cell.system for cell in found} - {ours}:
        same = same_texts(found, ours, name)
        text.append(f"{same:.0%} of the answers of {ours} are the same text as those of {name}")
    if options.plot:
        picture = report.json_file.with_suffix(".png")
        length = f"{options.prompt_tokens} + {options.max_tokens} tokens"
        plots.draw_throughput(found, picture, f"{options.model.name}, {setup.threads} threads, {length}")
        text.append(str(picture))
    report.finish(
        "\n".join([*text, NOTE]), [use for cell in found for use in cell.cpu], **as_json(found, ours)
    )
    return 0


MODE = Mode(
    "tokens/s and latencies over HTTP, against a bare loop over llama.cpp and other servers", add_options, run
)
