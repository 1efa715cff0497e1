# SPDX-License-Identifier: GPL-3.0-only
"""Runs the modes with long prompts, `interfere` and `abandon`: servers in turn, table, JSON."""

from __future__ import annotations

import argparse
import contextlib
import shlex
from collections.abc import Callable, Generator, Sequence
from typing import Any

from benchmark import abandon, figures, interfere, noise
from benchmark.daemon import BenchError
from benchmark.llama_server import ensure_built, llama_server
from benchmark.report import Report
from benchmark.systems import Setup, Target, own_modeld

_CELLS_A_SLOT = 4096


Whole = Callable[[int, int], Callable[[str], int]]


def add_modes(modes: Any, common: argparse.ArgumentParser, whole: Whole) -> None:
    """Add both modes to the command line; `whole` makes parsers of bounded numbers."""
    text = "a long prompt among running streams: what it costs them, and they it"
    mode = modes.add_parser("interfere", parents=[common], help=text, description=text)
    mode.add_argument("--prompts", default="1000,3000", metavar="N,N", help="tokens of the prompts")
    mode.add_argument("--streams", type=whole(1, 15), default=4)
    mode.add_argument("--times", type=whole(1, 50), default=5)
    _add_server(mode)
    text = "what long prompts that are abandoned cost the next request"
    mode = modes.add_parser("abandon", parents=[common], help=text, description=text)
    mode.add_argument("--prompt-tokens", type=whole(100, 16384), default=3500)
    mode.add_argument("--clients", type=whole(1, 8), default=2)
    mode.add_argument("--times", type=whole(1, 100), default=10)
    _add_server(mode)


def _add_server(mode: argparse.ArgumentParser) -> None:
    text = "measure llama.cpp's own server too, with equal settings (built once into the cache)"
    mode.add_argument("--with-llama-server", action="store_true", help=text)
    mode.add_argument("--llama-server", metavar="FLAGS", default="", help="more flags for it, as one text")


@contextlib.contextmanager
def _targets(
    options: argparse.Namespace, setup: Setup, extra: Sequence[str]
) -> Generator[tuple[list[Target], list[int]]]:
    """Start the servers; yields them and their processes."""
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(own_modeld(setup, extra))
        systems = [ours]
        if options.with_llama_server:
            flags = shlex.split(options.llama_server)
            systems.append(stack.enter_context(llama_server(ensure_built(), setup, flags)))
        yield [system.target() for system in systems], [pid for system in systems for pid in system.pids]


def run_interfere(options: argparse.Namespace, extra: Sequence[str]) -> int:
    """Measure each prompt length on each server in turn."""
    try:
        lengths = [int(part) for part in options.prompts.split(",")]
    except ValueError:
        raise BenchError(f"--prompts {options.prompts} is no list of numbers") from None
    slots = options.streams + 4
    share = max(_CELLS_A_SLOT, max(lengths) + 512)
    setup = Setup(options.model, slots=slots, ctx=slots * share, threads=options.threads)
    report = Report("interfere", options.out, options.json)
    report.head(
        model=options.model.name,
        threads=options.threads,
        slots=slots,
        cells=setup.ctx,
        streams=options.streams,
        prompts=lengths,
        times=options.times,
    )
    found: dict[tuple[str, int], interfere.Found] = {}
    with _targets(options, setup, extra) as (targets, pids):
        watch = noise.Watch(pids)
        for number in range(-1, options.times):  # the first is for warming up
            for tokens in lengths if number >= 0 else [min(lengths)]:
                for target in targets:
                    seed = f"{report.json_file.name} {number} {tokens}"
                    times = interfere.measure(target, tokens=tokens, streams=options.streams, seed=seed)
                    if number < 0:
                        continue
                    empty = interfere.Found(target.name, tokens, [])
                    found.setdefault((target.name, tokens), empty).times.append(times)
                    report.say(
                        f"{number + 1}/{options.times}  {target.name:<13} {interfere.line(tokens, times)}"
                    )
        seen = watch.stop()
    report.say("\n" + interfere.tell(list(found.values())) + "\n")
    report.say(noise.verdict([seen]))
    report.add(
        results=[
            {"system": it.system, "tokens": it.tokens, "medians": interfere.summary(it)}
            | {"times": [times._asdict() for times in it.times]}
            for it in found.values()
        ],
        cpu_of_others=seen.others,
    )
    report.write()
    return 0


def run_abandon(options: argparse.Namespace, extra: Sequence[str]) -> int:
    """Measure each server."""
    slots = options.clients
    share = max(_CELLS_A_SLOT, options.prompt_tokens + 512)
    setup = Setup(options.model, slots=slots, ctx=slots * share, threads=options.threads)
    report = Report("abandon", options.out, options.json)
    report.head(
        model=options.model.name,
        threads=options.threads,
        slots=slots,
        cells=setup.ctx,
        prompt_tokens=options.prompt_tokens,
        clients=options.clients,
        times=options.times,
    )
    with _targets(options, setup, extra) as (targets, pids):
        watch = noise.Watch(pids)
        found = [
            abandon.measure(
                target,
                tokens=options.prompt_tokens,
                clients=options.clients,
                times=options.times,
                seed=report.json_file.name,
            )
            for target in targets
        ]
        seen = watch.stop()
    report.say("\n" + abandon.tell(found) + "\n")
    report.say(noise.verdict([seen]))
    report.add(
        results=[it._asdict() | {"p95_s": figures.percentile(it.after, 95)} for it in found],
        cpu_of_others=seen.others,
    )
    report.write()
    return 0
