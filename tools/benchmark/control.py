# SPDX-License-Identifier: GPL-3.0-only
"""`bench control`: what modeld costs next to llama.cpp: token lines, steps, short requests, memory."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from soaking import procfs

from benchmark import figures
from benchmark.cpu_load import CpuWatch
from benchmark.daemon import BenchError, listening, modeld, post
from benchmark.options import Mode, chosen, counts, whole
from benchmark.prompts import WORDS, make_prompts
from benchmark.report import Report
from benchmark.systems import HERE, Setup, bare_loop, generate_load, served

Say = Callable[[str], None]
Found = dict[str, Any]

STEP_SLOTS = 8
STEP_PROMPT, STEP_TOKENS = 16, 160
"""Prompt and answer of each of the streams whose steps are profiled."""
_SHORT_REQUEST = {"prompt": "one two three", "max_tokens": 1, "stream": False}
_CELLS_OF_A_STREAM = 65_536
_US = 1e3
"""Nanoseconds in a microsecond."""


def load(**job: Any) -> Found:
    """Run the load generator. Raises: BenchError when it fails, or a stream was not whole."""
    found: Found = generate_load(**job)
    if found.get("error"):
        raise BenchError(found["error"])
    return found


# --- token lines ----------------------------------------------------------------------------------


def lines(options: argparse.Namespace, say: Say) -> Found:
    """Measure token lines a second from the fake engine through HTTP, `--tokens` of each stream."""
    model, rounds, slots = options.model, options.rounds, max(options.streams)
    fake = f"context={_CELLS_OF_A_STREAM} {options.fake or ''}".strip()
    flags = ["--engine", "fake", "--fake", fake, "--llama-slots", str(slots)]
    flags += ["--llama-ctx", str(slots * _CELLS_OF_A_STREAM), "--max-queue-depth", "64"]
    found: dict[int, list[Found]] = {count: [] for count in options.streams}
    with modeld(*flags, models_dir=model.parent) as server:
        for number in range(rounds + 1):
            for count in options.streams:
                body = {"model": model.name, "max_tokens": options.tokens, "ignore_eos": True}
                prompts = make_prompts(f"lines {number}", count, tokens=32)
                requests = [post(server.port, "/infer", {**body, "prompt": prompt}) for prompt in prompts]
                spent = event_loop_cpu_s(server.process.pid)
                one = load(lines={"port": server.port, "requests": requests, "deadline_s": 120})
                one["loop_s"] = event_loop_cpu_s(server.process.pid) - spent
                if number:  # The first is a warm-up.
                    found[count].append(one)
                    rate = one["lines"] / one["seconds"]
                    say(f"round {number}/{rounds}  {count} streams: {rate:8.0f} lines/s")
    return {str(count): _of_lines(rounds_of) for count, rounds_of in found.items()}


def _of_lines(rounds: Sequence[Found]) -> Found:
    rates = [one["lines"] / one["seconds"] for one in rounds]
    return {
        "lines_per_s": median(rates),
        "spread": figures.spread(rates),
        "lines_per_chunk": median(one["lines"] / one["chunks"] for one in rounds),
        "loop_us_per_line": median(1e6 * one["loop_s"] / one["lines"] for one in rounds),
        "client_us_per_line": median(1e6 * one["cpu_s"] / one["lines"] for one in rounds),
        "client_busy": median(one["cpu_s"] / one["seconds"] for one in rounds),
        "rounds": list(rounds),
    }


def event_loop_cpu_s(pid: int) -> float:
    """Return the CPU time of a process's main thread, in modeld the event loop; NaN if it is not known."""
    try:
        return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9
    except OSError:
        return float("nan")


# --- short requests -------------------------------------------------------------------------------


def requests(options: argparse.Namespace, say: Say) -> Found:
    """Measure short requests a second, of modeld and a bare app in alternating rounds.

    CPU time is that of the daemon's process; with a worker process, its share comes on top.
    """
    model, clients, rounds = options.model, options.clients, options.rounds
    flags = ["--engine", "fake", "--isolation", options.isolation]
    flags += ["--llama-slots", str(clients), "--max-queue-depth", "64"]
    answers: dict[str, list[Found]] = {"modeld": [], "bare app": []}
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(modeld(*flags, models_dir=model.parent))
        servers = {"modeld": ours}

        def ask(name: str, seconds: float) -> Found:
            port, pid = servers[name].port, servers[name].process.pid
            request = post(port, "/infer", {**_SHORT_REQUEST, "model": model.name})
            watch = CpuWatch([pid])
            job = {"port": port, "request": request, "clients": clients, "seconds": seconds}
            one = load(requests=job)
            one["cpu_ms"] = 1e3 * (watch.stop().watched_s or float("nan")) / one["answers"]
            return one

        size = len(ask("modeld", 1.0)["body"])
        bare_app = [sys.executable, str(HERE / "bare_app.py"), str(size)]
        servers["bare app"] = stack.enter_context(listening(bare_app))
        ask("bare app", 1.0)
        for number in range(rounds):
            for name in sorted(servers, reverse=bool(number % 2)):
                one = ask(name, options.seconds)
                answers[name].append(one)
                rate = f"{one['answers'] / one['seconds']:8.0f} requests/s"
                say(f"round {number + 1}/{rounds}  {name:<9} {rate}, {one['cpu_ms']:.2f} ms of CPU each")
    rates = {name: [one["answers"] / one["seconds"] for one in each] for name, each in answers.items()}
    pairs = zip(rates["modeld"], rates["bare app"], strict=True)
    found: Found = {"body_bytes": size, "ratio": median(mine / other for mine, other in pairs)}
    for name, each in answers.items():
        found[name] = {"requests_per_s": median(rates[name]), "spread": figures.spread(rates[name])}
        found[name] |= {key: median(one[key] for one in each) for key in ("p50_ms", "p99_ms", "cpu_ms")}
        found[name]["client_busy"] = median(one["cpu_s"] / one["seconds"] for one in each)
    return found


# --- steps ----------------------------------------------------------------------------------------


def steps(options: argparse.Namespace, say: Say) -> Found:
    """Measure the CPU time of Python in each step while eight streams decode, all threads."""
    cells = STEP_SLOTS * 4 * (STEP_PROMPT + STEP_TOKENS)
    # A step's Python is that of both sides: its clocks need them in one process.
    flags = ["--isolation", "thread", "--llama-slots", str(STEP_SLOTS)]
    flags += ["--llama-ctx", str(cells), "--llama-threads", str(options.threads)]
    with tempfile.TemporaryDirectory(prefix="modeld-bench-") as folder:
        result = Path(folder) / "steps.json"
        program = (str(HERE / "step_profiler.py"), str(result))
        with modeld(*flags, models_dir=options.model.parent, program=program) as server:
            system = served(server, options.model.name)
            for name, tokens in (("warm-up", 8), ("steps", STEP_TOKENS)):
                prompts = make_prompts(name, STEP_SLOTS, tokens=STEP_PROMPT)
                texts = [system.request(prompt, tokens) for prompt in prompts]
                load(lines={"port": server.port, "requests": texts, "deadline_s": 120})
        if not result.is_file():
            raise BenchError(f"the profiled modeld wrote no rows:\n{''.join(server.log[-15:])}")
        found = of_steps(json.loads(result.read_text()))
    say(f"{found['steps']} steps of {STEP_SLOTS} tokens")
    return found


def of_steps(profile: Found) -> Found:
    """Return the figures of a step, in us: medians over full steps that follow a full step."""
    full = [
        (before, after) for before, after in pairwise(profile["rows"]) if before[0] == after[0] == STEP_SLOTS
    ]
    if not full:
        raise BenchError(f"no two steps in a row had {STEP_SLOTS} tokens")
    engine, loop, inside, draws, kernel = (list[float]() for _ in range(5))
    for before, after in full:
        _, thread, llama, calls, drawing, event_loop, writing, writes = (
            now - then for now, then in zip(after, before, strict=True)
        )
        engine.append((thread - llama - calls * profile["call_ns"] - profile["row_ns"]) / _US)
        inside.append(llama / _US)
        draws.append(drawing / _US)
        loop.append((event_loop - writing - writes * profile["call_ns"]) / _US)
        kernel.append(writing / _US)
    return {
        "steps": len(full),
        "engine_us": median(engine),
        "loop_us": median(loop),
        "python_us": median(one + other for one, other in zip(engine, loop, strict=True)),
        "python_mean_us": sum(engine + loop) / len(full),
        "draws_us": median(draws),
        "writing_us": median(kernel),
        "llama_ms": median(inside) / 1e3,
        "clock_us": (profile["call_ns"] + profile["row_ns"]) / _US,
    }


# --- memory ---------------------------------------------------------------------------------------


def memory(options: argparse.Namespace, say: Say) -> Found:
    """Measure resident memory after a first token, and that of a process that only has the model."""
    model, setup = options.model, Setup(options.model, slots=4, ctx=8192, threads=options.threads)
    prompt = " ".join(WORDS[:8])
    flags = ["--isolation", "thread", "--llama-slots", "4", "--llama-ctx", "8192"]
    with bare_loop(setup) as loop:
        loop.streams([prompt], 2)
        alone = resident(loop.pids[0])
    with modeld(*flags, "--llama-threads", str(options.threads), models_dir=model.parent) as server:
        empty = resident(server.process.pid)
        text = served(server, model.name).request(prompt, 2)
        load(lines={"port": server.port, "requests": [text], "deadline_s": 60})
        time.sleep(0.5)  # what the answer left behind is freed
        ours = resident(server.process.pid)
    say(f"modeld {ours['rss_mib']:.1f} MiB, llama_cpp alone {alone['rss_mib']:.1f} MiB")
    above = {f"above_{key}": ours[key] - alone[key] for key in ("rss_mib", "pss_mib")}
    return {"before_load": empty, "modeld": ours, "llama_cpp": alone, **above}


def resident(pid: int) -> dict[str, float]:
    """Return the resident memory of a process; `pss` divides what is shared among those who share it."""
    return {"rss_mib": procfs.resident_mb(pid), "pss_mib": procfs.proportional_mb(pid)}


# --- the mode -------------------------------------------------------------------------------------


def tables(found: Found) -> str:
    """Return the tables of what was measured."""
    parts: list[str] = []
    if "lines" in found:
        head = [
            "streams",
            "lines/s",
            "spread",
            "lines/chunk",
            "loop us/line",
            "client us/line",
            "client busy",
        ]
        rows = [
            [count, f"{it['lines_per_s']:.0f}", f"{it['spread']:.0%}"]
            + [f"{it[key]:.1f}" for key in ("lines_per_chunk", "loop_us_per_line", "client_us_per_line")]
            + [f"{it['client_busy']:.0%}"]
            for count, it in found["lines"].items()
        ]
        parts.append(figures.table(head, rows))
    if "requests" in found:
        head = ["short requests", "requests/s", "spread", "CPU ms each", "p50 ms", "p99 ms", "client busy"]
        both = [(name, found["requests"][name]) for name in ("modeld", "bare app")]
        rows = [
            [name, f"{it['requests_per_s']:.0f}", f"{it['spread']:.0%}"]
            + [f"{it[key]:.2f}" for key in ("cpu_ms", "p50_ms", "p99_ms")]
            + [f"{it['client_busy']:.0%}"]
            for name, it in both
        ]
        parts += [figures.table(head, rows), f"modeld / bare app: {found['requests']['ratio']:.2f}"]
    if "steps" in found:
        names = {
            "engine_us": "engine's thread, outside of llama.cpp and of draws",
            "loop_us": "event loop's thread, outside of write(2)",
            "python_us": "both",
            "python_mean_us": "both, mean",
            "draws_us": "(draws: the arithmetic over 8 vocabularies)",
            "writing_us": "(write(2): the kernel's loopback TCP)",
        }
        rows = [[name, f"{found['steps'][key]:.0f}"] for key, name in names.items()]
        parts.append(figures.table(["Python per step of 8 slots", "us"], rows))
    if "memory" in found:
        it = found["memory"]
        names = {"modeld": "modeld", "llama_cpp": "llama_cpp alone", "before_load": "modeld before its load"}
        rows = [
            [name, f"{it[key]['rss_mib']:.1f}", f"{it[key]['pss_mib']:.1f}"] for key, name in names.items()
        ]
        parts.append(figures.table(["memory after a first token, MiB", "RSS", "PSS"], rows))
        above = f"RSS {it['above_rss_mib']:.1f}, PSS {it['above_pss_mib']:.1f}"
        parts.append(f"modeld above llama_cpp: {above}")
    return "\n\n".join(parts)


PARTS: Mapping[str, Callable[[argparse.Namespace, Say], Found]] = {
    "lines": lines,
    "requests": requests,
    "steps": steps,
    "memory": memory,
}


def add_options(mode: argparse.ArgumentParser) -> None:
    """Add the options of this mode."""
    add = mode.add_argument
    add("--parts", default=",".join(PARTS), help="which, of: %(default)s")
    add("--rounds", type=whole(1, 100), default=5)
    add("--streams", type=counts, default=[8, 16], metavar="N,N", help="streams of token lines")
    add("--tokens", type=whole(100, 60_000), default=10_000, help="lines of each stream")
    add("--clients", type=whole(1, 64), default=8, help="clients that send short requests")
    add("--seconds", type=whole(1, 60), default=3, help="of each system in a round of requests")
    text = "where the engine runs while short requests are measured (default: %(default)s)"
    add("--isolation", choices=("process", "thread"), default="thread", help=text)


def run(options: argparse.Namespace) -> int:
    """Measure the parts asked for, print the tables, write the JSON."""
    parts = chosen("part", options.parts, tuple(PARTS))
    report = Report(options, rounds=options.rounds)
    watch = CpuWatch([])
    found = {part: PARTS[part](options, report.say) for part in parts}
    report.finish(tables(found), [watch.stop()], results=found)
    return 0


MODE = Mode(
    "what modeld itself costs: token lines, short requests, Python per step, memory", add_options, run
)
