# SPDX-License-Identifier: GPL-3.0-only
"""The command line: `bench [MODE] [options]`; the modes are in `options`."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmark import (
    cancel,
    control,
    control_report,
    defaults,
    fairness,
    long_prompts,
    noise,
    plot,
    storm_report,
    stream,
    throughput,
)
from benchmark.daemon import BenchError, modeld
from benchmark.llama_server import ensure_built, llama_server
from benchmark.options import MODES, parser
from benchmark.prompts import WORDS
from benchmark.report import Report, default_model
from benchmark.systems import Setup, System, at_url, bare, own_modeld

_GRAIN = 256
"""KV cells of a slot are asked for in steps of so many, as llama.cpp makes them, with some to spare."""
_SPARE = 64


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one measurement; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or (given[0] not in MODES and given[0] not in ("-h", "--help")):
        given.insert(0, MODES[0])
    options = parser().parse_args(given)
    options.model = (options.model or default_model()).absolute()
    options.threads = options.threads or os.cpu_count() or 1
    runs: Mapping[str, Callable[[argparse.Namespace], int]] = {
        "throughput": run_throughput,
        "cancel": run_cancel,
        "stream": run_stream,
        "control": run_control,
        "storm": storm_report.run_storm,
        "fairness": fairness.run_fairness,
        "defaults": defaults.run_defaults,
        "interfere": lambda options: long_prompts.run_interfere(options, _extra(options)),
        "abandon": lambda options: long_prompts.run_abandon(options, _extra(options)),
    }
    try:
        require_model(options.model)
        code = runs[options.mode](options)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    return code


def require_model(path: Path) -> None:
    """Raises: BenchError when there is no such file."""
    if not path.is_file():
        raise BenchError(f"there is no model {path}; `./tools/testctl install` fetches the demo's")


def _extra(options: argparse.Namespace) -> list[str]:
    flags = shlex.split(options.modeld)
    if options.fake is not None:
        flags += ["--engine", "fake", "--fake", options.fake]
    return flags


def run_throughput(options: argparse.Namespace) -> int:
    """Measure every system in turn, print the table, write JSON and plot."""
    if options.plot:
        plot.require()
    if options.shared_prefix >= options.prompt_tokens:
        raise BenchError("--shared-prefix must be shorter than --prompt-tokens")
    slots = max(options.concurrency)
    tokens = options.prompt_tokens + options.max_tokens
    cells = slots * -(-(tokens + _SPARE) // _GRAIN) * _GRAIN
    setup = Setup(options.model, slots=slots, ctx=cells, threads=options.threads)
    report = Report("throughput", options.out, options.json)
    report.head(
        model=options.model.name,
        threads=setup.threads,
        slots=slots,
        cells=cells,
        prompt_tokens=options.prompt_tokens,
        shared_prefix=options.shared_prefix,
        max_tokens=options.max_tokens,
        rounds=options.rounds,
        spin=os.environ.get("GOMP_SPINCOUNT", "2000"),
    )
    with contextlib.ExitStack() as stack:
        systems: list[System] = []
        words: Sequence[str] = WORDS
        if options.fake is None and not options.no_bare:
            loop = stack.enter_context(bare(setup))
            words = loop.ask(single=list(WORDS)) or WORDS
            systems.append(loop)
        first, *others = options.isolation or [""]
        ours = stack.enter_context(own_modeld(setup, _extra(options), first))
        systems.append(ours)
        systems += [stack.enter_context(own_modeld(setup, _extra(options), other)) for other in others]
        if options.with_llama_server:
            program = ensure_built()
            systems.append(
                stack.enter_context(llama_server(program, setup, shlex.split(options.llama_server)))
            )
        if options.openai_url:
            systems.append(at_url(options.openai_url, options.openai_model or options.model.name))
        plan = throughput.Plan(
            concurrency=options.concurrency,
            rounds=options.rounds,
            prompt_tokens=options.prompt_tokens,
            max_tokens=options.max_tokens,
            shared_prefix=options.shared_prefix,
            words=words,
            seed=report.json_file.name,
        )
        found = throughput.measure(systems, plan, report.say)
    report.say("\n" + throughput.tell(found, ours.name) + "\n")
    for name in {cell.system for cell in found} - {ours.name}:
        same = throughput.same_texts(found, ours.name, name)
        report.say(f"{same:.0%} of the answers of {ours.name} are the same text as those of {name}")
    report.say(NOTE)
    report.say(noise.verdict(seen for cell in found for seen in cell.seen))
    report.add(**throughput.as_json(found, ours.name))
    if options.plot:
        picture = report.json_file.with_suffix(".png")
        length = f"{options.prompt_tokens} + {options.max_tokens} tokens"
        title = f"{options.model.name}, {setup.threads} threads, {length}"
        plot.draw(found, picture, title)
        report.say(str(picture))
    report.write()
    return 0


NOTE = (
    "Medians over rounds; times in ms. spread: lowest to highest round, as a part of the median. others:\n"
    "part of all cores that processes outside of this bench used meanwhile. cpu/token: of all threads. The\n"
    "last column: the median of the ratios within each round."
)


def _chosen(noun: str, given: str, known: Sequence[str]) -> list[str]:
    """Return the words of a list with commas. Raises: BenchError for one that is not known."""
    chosen = given.split(",")
    unknown = set(chosen) - set(known)
    if unknown:
        raise BenchError(f"there is no {noun} {min(unknown)}; there are {', '.join(known)}")
    return chosen


def run_cancel(options: argparse.Namespace) -> int:
    """Measure each phase, print the table, write the JSON."""
    phases = _chosen("phase", options.phases, cancel.PHASES)
    report = Report("cancel", options.out, options.json)
    report.head(model=options.model.name, threads=options.threads, prefill_tokens=options.prompt_tokens)
    flags = ["--llama-slots", "1", "--max-queue-depth", "1", "--llama-threads", str(options.threads)]
    with modeld(*flags, *_extra(options), models_dir=options.model.parent) as server:
        measured = cancel.Cancels(server.port, options.model.name, prompt_tokens=options.prompt_tokens)
        measured.prepare()
        report.say(
            f"on the idle daemon a one-token request takes {1e3 * measured.idle_s:.1f} ms, "
            f"a prefill of {options.prompt_tokens} tokens {1e3 * measured.prefill_s:.0f} ms"
        )
        watch = noise.Watch([server.process.pid])
        found = [
            measured.run(phase, options.load_times if phase == "loading" else options.times, report.say)
            for phase in phases
        ]
        seen = watch.stop()
    report.say("\n" + cancel.tell(found) + "\n")
    report.say(noise.verdict([seen]))
    report.add(
        results={it.phase: {"seconds": it.seconds, "thrown_away": it.thrown_away} for it in found},
        idle_s=measured.idle_s,
        prefill_s=measured.prefill_s,
        cpu_of_others=seen.others,
    )
    report.write()
    return 0


def run_stream(options: argparse.Namespace) -> int:
    """Read one long stream; the exit code says whether it came whole."""
    slots = options.companions + 1
    report = Report("stream", options.out, options.json)
    report.head(model=options.model.name, threads=options.threads, companions=options.companions)
    flags = ["--llama-slots", str(slots), "--llama-threads", str(options.threads)]
    flags += ["--llama-ctx", str(8192 + 1024 * options.companions)]
    with modeld(*flags, *_extra(options), models_dir=options.model.parent) as server:
        watch = noise.Watch([server.process.pid])
        whole_stream = stream.run(
            server.port,
            options.model.name,
            seconds=options.seconds,
            max_tokens=options.max_tokens,
            companions=options.companions,
            max_gap_s=options.max_gap,
        )
        seen = watch.stop()
    report.say("\n" + stream.tell(whole_stream))
    report.say(noise.verdict([seen]))
    if whole_stream.seconds < options.seconds - 1:
        report.say(
            f"It ended before {options.seconds} s, by {whole_stream.finish}; more --companions slow it down."
        )
    report.add(results=whole_stream._asdict(), cpu_of_others=seen.others)
    report.write()
    return 1 if whole_stream.problems else 0


def run_control(options: argparse.Namespace) -> int:
    """Measure the parts asked for, print the tables, write the JSON."""
    parts = _chosen("part", options.parts, control.PARTS)
    report = Report("control", options.out, options.json)
    report.head(model=options.model.name, threads=options.threads, rounds=options.rounds)
    watch = noise.Watch([])
    model, say = options.model, report.say
    found = {
        part: {
            "lines": lambda: control.lines(
                model,
                streams=options.streams,
                tokens=options.tokens,
                rounds=options.rounds,
                fake=options.fake or "",
                say=say,
            ),
            "requests": lambda: control.requests(
                model,
                clients=options.clients,
                rounds=options.rounds,
                seconds=options.seconds,
                isolation=options.isolation,
                say=say,
            ),
            "steps": lambda: control.steps(model, threads=options.threads, say=say),
            "memory": lambda: control.memory(model, threads=options.threads, say=say),
        }[part]()
        for part in parts
    }
    seen = watch.stop()
    report.say("\n" + control_report.tell(found) + "\n")
    report.say(noise.verdict([seen]))
    report.add(results=found, cpu_of_others=seen.others)
    report.write()
    return 0
