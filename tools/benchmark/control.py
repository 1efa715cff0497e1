# SPDX-License-Identifier: GPL-3.0-only
"""`bench control`: modeld's own cost on top of llama.cpp: token lines, steps, short requests, memory."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from benchmark import figures, noise
from benchmark.daemon import BenchError, listening, modeld, post
from benchmark.prompts import WORDS, make_prompts
from benchmark.systems import HERE, Setup, bare, served

PARTS = ("lines", "requests", "steps", "memory")
Say = Callable[[str], None]
Found = dict[str, Any]

STEP_SLOTS = 8
STEP_PROMPT, STEP_TOKENS = 16, 160
"""Prompt and answer of each of the streams whose steps are profiled."""
_SHORT = {"prompt": "one two three", "max_tokens": 1, "stream": False}
_CELLS_OF_A_STREAM = 65_536
_US = 1e3
"""Nanoseconds in a microsecond."""


def flood(**job: Any) -> Found:
    """Run the load generator in a process of its own. Raises: BenchError when it fails."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(HERE / "flood.py")],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    if done.returncode != 0:
        raise BenchError(f"the load generator failed:\n{done.stderr[-2000:]}")
    found: Found = json.loads(done.stdout)
    if found.get("error"):
        raise BenchError(found["error"])
    return found


# --- token lines ----------------------------------------------------------------------------------


def lines(model: Path, *, streams: Sequence[int], tokens: int, rounds: int, fake: str, say: Say) -> Found:
    """Measure token lines a second from the fake engine through HTTP, `tokens` of each stream."""
    slots = max(streams)
    flags = ["--engine", "fake", "--fake", f"context={_CELLS_OF_A_STREAM} {fake}".strip()]
    flags += ["--llama-slots", str(slots), "--llama-ctx", str(slots * _CELLS_OF_A_STREAM)]
    found: dict[int, list[Found]] = {count: [] for count in streams}
    with modeld(*flags, "--max-queue-depth", "64", models_dir=model.parent) as server:
        loop = Thread(server.process.pid)
        for number in range(rounds + 1):
            for count in streams:
                body = {"model": model.name, "max_tokens": tokens, "ignore_eos": True}
                prompts = make_prompts(f"lines {number}", count, tokens=32, words=WORDS)
                requests = [post(server.port, "/infer", {**body, "prompt": prompt}) for prompt in prompts]
                spent = loop.cpu_s()
                one = flood(lines={"port": server.port, "requests": requests, "deadline_s": 120})
                one["loop_s"] = loop.cpu_s() - spent
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


class Thread:
    """The main thread of a process: in modeld, the event loop."""

    def __init__(self, pid: int) -> None:
        self._path = Path(f"/proc/{pid}/task/{pid}/schedstat")

    def cpu_s(self) -> float:
        """Return the CPU time it has used; NaN where the kernel does not say."""
        try:
            return int(self._path.read_text().split()[0]) / 1e9
        except OSError:
            return float("nan")


# --- short requests -------------------------------------------------------------------------------


def requests(model: Path, *, clients: int, rounds: int, seconds: float, isolation: str, say: Say) -> Found:
    """Measure short requests a second, of modeld and a bare app in alternating rounds.

    CPU time is that of the daemon's process; with a worker process, its share comes on top.
    """
    flags = ["--engine", "fake", "--isolation", isolation]
    flags += ["--llama-slots", str(clients), "--max-queue-depth", "64"]
    answers: dict[str, list[Found]] = {"modeld": [], "bare app": []}
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(modeld(*flags, models_dir=model.parent))
        request: dict[str, object] = {**_SHORT, "model": model.name}
        ports, pids = {"modeld": ours.port}, {"modeld": ours.process.pid}

        def ask(name: str, wanted: float) -> Found:
            text = post(ports[name], "/infer", request)
            job = {"port": ports[name], "request": text, "clients": clients, "seconds": wanted}
            watch = noise.Watch([pids[name]])
            one = flood(requests=job)
            one["cpu_ms"] = 1e3 * (watch.stop().watched_s or float("nan")) / one["answers"]
            return one

        size = len(ask("modeld", 1.0)["body"])
        other = stack.enter_context(listening([sys.executable, str(HERE / "bare_app.py"), str(size)]))
        ports["bare app"], pids["bare app"] = other.port, other.process.pid
        ask("bare app", 1.0)
        for number in range(rounds):
            for name in sorted(ports, reverse=bool(number % 2)):
                one = ask(name, seconds)
                answers[name].append(one)
                rate = one["answers"] / one["seconds"]
                say(
                    f"round {number + 1}/{rounds}  {name:<9} {rate:8.0f} requests/s, "
                    f"{one['cpu_ms']:.2f} ms of CPU each"
                )
    rates = {name: [one["answers"] / one["seconds"] for one in each] for name, each in answers.items()}
    pairs = zip(rates["modeld"], rates["bare app"], strict=True)
    return {
        "body_bytes": size,
        "ratio": median(mine / other for mine, other in pairs),
        **{
            name: {
                "requests_per_s": median(rates[name]),
                "spread": figures.spread(rates[name]),
                "p50_ms": median(one["p50_ms"] for one in each),
                "p99_ms": median(one["p99_ms"] for one in each),
                "cpu_ms": median(one["cpu_ms"] for one in each),
                "client_busy": median(one["cpu_s"] / one["seconds"] for one in each),
            }
            for name, each in answers.items()
        },
    }


# --- steps ----------------------------------------------------------------------------------------


def steps(model: Path, *, threads: int, say: Say) -> Found:
    """Measure the CPU time of Python in each step while eight streams decode, all threads."""
    cells = STEP_SLOTS * 4 * (STEP_PROMPT + STEP_TOKENS)
    # A step's Python is that of both sides: its clocks need them in one process.
    flags = [
        "--isolation",
        "thread",
        "--llama-slots",
        str(STEP_SLOTS),
        "--llama-ctx",
        str(cells),
        "--llama-threads",
        str(threads),
    ]
    with tempfile.TemporaryDirectory(prefix="modeld-bench-") as folder:
        result = Path(folder) / "steps.json"
        program = (str(HERE / "profiled.py"), str(result))
        with modeld(*flags, models_dir=model.parent, program=program) as server:
            system = served(server, model.name)
            for name, tokens in (("warm-up", 8), ("steps", STEP_TOKENS)):
                prompts = make_prompts(name, STEP_SLOTS, tokens=STEP_PROMPT, words=WORDS)
                texts = [system.request(prompt, tokens) for prompt in prompts]
                flood(lines={"port": server.port, "requests": texts, "deadline_s": 120})
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


def memory(model: Path, *, threads: int, say: Say) -> Found:
    """Measure resident memory after a first token, and that of a process that only has the model."""
    setup = Setup(model, slots=4, ctx=8192, threads=threads)
    prompt = " ".join(WORDS[:8])
    flags = [
        "--isolation",
        "thread",
        "--llama-slots",
        "4",
        "--llama-ctx",
        "8192",
        "--llama-threads",
        str(threads),
    ]
    with bare(setup) as loop:
        loop.streams([prompt], 2)
        alone = resident(loop.pids[0])
    with modeld(*flags, models_dir=model.parent) as server:
        empty = resident(server.process.pid)
        text = served(server, model.name).request(prompt, 2)
        flood(lines={"port": server.port, "requests": [text], "deadline_s": 60})
        time.sleep(0.5)  # what the answer left behind is freed
        ours = resident(server.process.pid)
    say(f"modeld {ours['rss_mib']:.1f} MiB, llama_cpp alone {alone['rss_mib']:.1f} MiB")
    return {
        "before_load": empty,
        "modeld": ours,
        "llama_cpp": alone,
        "above_rss_mib": ours["rss_mib"] - alone["rss_mib"],
        "above_pss_mib": ours["pss_mib"] - alone["pss_mib"],
    }


def resident(pid: int) -> dict[str, float]:
    """Return the resident memory of a process; `pss` divides what is shared among those who share it."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)
    of = {name.lower(): int(kib) / 1024 for name, kib in found}
    return {"rss_mib": of["rss"], "pss_mib": of["pss"], "anonymous_mib": of["anonymous"]}
