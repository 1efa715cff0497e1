# SPDX-License-Identifier: GPL-3.0-only
"""`bench defaults`: options of a load, each against modeld's default, on the engine alone."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from msgspec.structs import replace

from benchmark import figures
from benchmark.cpu_load import CpuWatch
from benchmark.daemon import BenchError
from benchmark.options import Mode, chosen, whole
from benchmark.prompts import make_prompts
from benchmark.report import Report
from modeld.domain.model import LoadOptions
from modeld.domain.request import GenerateRequest, Sampling
from modeld.engine.protocol import Engine, LoadSpec, RequestAdmitted, RequestDone, RequestFailed, TokenOutput

DEFAULT = "default"
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    DEFAULT: {},
    "kv_type bf16": {"kv_type": "bf16"},
    "kv_type f32": {"kv_type": "f32"},
    "kv_type q8_0": {"kv_type": "q8_0"},
    "flash_attn": {"flash_attn": True},
    "ubatch 128": {"ubatch": 128},
    "ubatch 256": {"ubatch": 256},
    "ubatch 1024": {"ubatch": 1024},
    "no mmap": {"mmap": False},
}
"""By name; a quantised cache turns flash attention on."""
_NAMES = ("load_s", "prompt_per_s", "streams_per_s")
_SPARE = 8


class Plan(NamedTuple):
    """What is done with each engine."""

    model: str
    threads: int
    streams: int
    prompt_tokens: int
    depth: int
    tokens: int

    @property
    def share(self) -> int:
        """KV cells of a slot."""
        return -(-(max(self.prompt_tokens, self.depth + self.tokens) + _SPARE) // 256) * 256


def measure(plan: Plan, options: Mapping[str, Any], seed: str) -> dict[str, float]:
    """Load with these options, read one long prompt alone, then generate with all streams at once.

    Returns: seconds of the load, tokens a second of the prompt, and of the streams while all of them decode.
    Raises: BenchError.
    """
    from modeld.engine.llama.engine import load  # noqa: PLC0415  # takes half a second; only this mode needs it

    usual = LoadOptions(slots=plan.streams, ctx=plan.streams * plan.share, threads=plan.threads)
    spec = LoadSpec(model_id=plan.model, path=plan.model, options=replace(usual, **options))
    began = time.perf_counter()
    engine = load(spec, lambda _fraction: True)
    load_s = time.perf_counter() - began
    try:
        [prompt] = make_prompts(f"{seed} prompt", 1, tokens=plan.prompt_tokens)
        prompt_per_s = _prompt(engine, prompt)
        prompts = make_prompts(f"{seed} streams", plan.streams, tokens=plan.depth)
        streams_per_s = _streams(engine, prompts, plan.tokens)
    finally:
        engine.close()
    return {"load_s": load_s, "prompt_per_s": prompt_per_s, "streams_per_s": streams_per_s}


def _request(prompt: str, tokens: int) -> GenerateRequest:
    return GenerateRequest(
        prompt=prompt, max_tokens=tokens, ignore_eos=True, sampling=Sampling(temperature=0.0)
    )


def _prompt(engine: Engine, prompt: str) -> float:
    """Return the tokens a second of a prompt that is alone."""
    began = time.perf_counter()
    engine.submit(1, _request(prompt, 1))
    count = 0
    while engine.busy:
        for output in engine.step():
            if isinstance(output, RequestAdmitted):
                count = output.prompt_tokens
            elif isinstance(output, RequestFailed):
                raise BenchError(f"the prompt failed: {output.problem.message}")
    return count / (time.perf_counter() - began)


def _streams(engine: Engine, prompts: Sequence[str], tokens: int) -> float:
    """Return the tokens a second of all streams, from the last one's first token to the first one's end."""
    for number, prompt in enumerate(prompts, 2):
        engine.submit(number, _request(prompt, tokens))
    begun: set[int] = set()
    ended = False
    counted, since, until = 0, 0.0, 0.0
    while engine.busy:
        outputs = engine.step()
        now = time.perf_counter()
        emitted = [output.id for output in outputs if isinstance(output, TokenOutput)]
        if len(begun) == len(prompts) and not ended:
            counted, until = counted + len(emitted), now
        begun.update(emitted)
        if len(begun) == len(prompts) and not since:
            since = now
        ended = ended or any(isinstance(output, RequestDone | RequestFailed) for output in outputs)
    if not counted:
        raise BenchError("the streams never decoded together; ask for more --tokens")
    return counted / (until - since)


def add_options(mode: argparse.ArgumentParser) -> None:
    """Add the options of this mode."""
    mode.add_argument("--rounds", type=whole(1, 100), default=3)
    mode.add_argument("--streams", type=whole(1, 64), default=4)
    mode.add_argument("--prompt-tokens", type=whole(1, 16384), default=1000, help="of the prompt alone")
    mode.add_argument("--depth", type=whole(1, 16384), default=250, help="tokens of each stream's prompt")
    mode.add_argument("--tokens", type=whole(2, 4096), default=40, help="of each stream's answer")
    mode.add_argument("--only", default=",".join(VARIANTS), metavar="NAME,NAME", help="of: %(default)s")


def run(options: argparse.Namespace) -> int:
    """Measure each variant in each round, in rotating order; print the table, write the JSON."""
    names = list(dict.fromkeys([DEFAULT, *chosen("variant", options.only, tuple(VARIANTS))]))
    shape = {name: getattr(options, name) for name in ("streams", "prompt_tokens", "depth", "tokens")}
    plan = Plan(str(options.model), options.threads, **shape)
    report = Report(options, **shape, rounds=options.rounds)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    watch = CpuWatch([os.getpid()])
    for number in range(options.rounds):
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            rounds[name].append(measure(plan, VARIANTS[name], f"{number}"))
            found = ", ".join(f"{key} {value:.2f}" for key, value in rounds[name][-1].items())
            report.say(f"round {number + 1}/{options.rounds}  {name:<13} {found}")
    text = f"{table(rounds)}\n\nMedians; the ratios are taken within each round, against the default."
    report.finish(text, [watch.stop()], results=rounds, ratios=ratios(rounds))
    return 0


def ratios(rounds: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Return for each variant and figure its ratio to the default, the median over rounds."""
    return {
        name: {
            key: median(one[key] / usual[key] for one, usual in zip(found, rounds[DEFAULT], strict=True))
            for key in _NAMES
        }
        for name, found in rounds.items()
    }


def table(rounds: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Return the table."""
    rows: list[list[str]] = []
    for name, against in ratios(rounds).items():
        load, prompt, streams = (median(one[key] for one in rounds[name]) for key in _NAMES)
        row = [name, f"{load:.2f}", f"{prompt:.0f}", f"{against['prompt_per_s']:.2f}"]
        rows.append([*row, f"{streams:.0f}", f"{against['streams_per_s']:.2f}"])
    return figures.table(["option", "load s", "prompt tokens/s", "ratio", "streams tokens/s", "ratio"], rows)


MODE = Mode(
    "options of a load (KV types, flash attention, ubatch, mmap), each against the default", add_options, run
)
