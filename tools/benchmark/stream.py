# SPDX-License-Identifier: GPL-3.0-only
"""`bench stream`: one long stream arrives whole, while other clients ask alongside."""

from __future__ import annotations

import argparse
import threading
import time
from typing import Any, NamedTuple

from benchmark import figures
from benchmark.clients import Connection
from benchmark.cpu_load import CpuWatch
from benchmark.daemon import BenchError, modeld
from benchmark.options import Mode, modeld_flags, whole
from benchmark.prompts import make_prompts
from benchmark.report import Report

COMPANION_TOKENS = 512


class Arrived(NamedTuple):
    """What arrived."""

    seconds: float
    lines: int
    bytes_of_text: int
    usage: dict[str, int]
    finish: str
    worst_gap_s: float
    gap_p50_s: float
    gap_p99_s: float
    companions: int
    problems: list[str]


def read_beside(port: int, model: str, options: argparse.Namespace) -> Arrived:
    """Read one stream that ends by its own `timeout` after `--seconds`, or sooner by its length.

    Alongside, `--companions` clients ask for answers of 512 tokens, one after the other.
    """
    companions = options.companions
    stop = threading.Event()
    counts = [0] * companions
    others = [
        threading.Thread(target=_accompany, args=(port, model, number, counts, stop))
        for number in range(companions)
    ]
    for other in others:
        other.start()
    try:
        return _read(port, model, options, counts)
    finally:
        stop.set()
        for other in others:
            other.join()


def _read(port: int, model: str, options: argparse.Namespace, counts: list[int]) -> Arrived:
    texts: list[str] = []
    times: list[float] = []
    problems: list[str] = []
    with Connection(port) as connection:
        began = connection.send(**_body(model, "long", options.max_tokens), timeout=f"{options.seconds:g}s")
        while True:
            value = connection.line()
            if value.get("done"):
                break
            if value.get("done") is not False or not value.get("token"):
                problems.append(f"line {len(texts)} is no token line: {value}")
            texts.append(value.get("token", ""))
            times.append(connection.at)
        ended = connection.at
    if not times:
        raise BenchError(f"the stream brought no token: {value}")
    gaps = [after - before for before, after in zip([began, *times], [*times, ended], strict=True)]
    text = "".join(texts)
    if value["content"] != text:
        problems.append("the content of the last line is not the sum of the tokens")
    if value["usage"]["completion_tokens"] < len(texts):
        problems.append(f"{len(texts)} lines, but only {value['usage']['completion_tokens']} tokens")
    if "error" in value:
        problems.append(f"it failed: {value['error']}")
    if max(gaps[1:]) > options.max_gap:
        problems.append(f"a gap of {max(gaps[1:]):.3f} s, more than {options.max_gap:g} s")
    return Arrived(
        seconds=ended - began,
        lines=len(texts),
        bytes_of_text=len(text.encode()),
        usage=value["usage"],
        finish=value["finish_reason"],
        worst_gap_s=max(gaps[1:]),
        gap_p50_s=figures.percentile(gaps[1:], 50),
        gap_p99_s=figures.percentile(gaps[1:], 99),
        companions=sum(counts),
        problems=problems,
    )


def _accompany(port: int, model: str, number: int, counts: list[int], stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            with Connection(port) as connection:
                connection.send(**_body(model, f"{number} {counts[number]}", COMPANION_TOKENS))
                while not stop.is_set() and not connection.line().get("done"):
                    pass
            counts[number] += 1
        except (BenchError, OSError):
            time.sleep(0.1)  # the server may be busy: not to be asked in a tight loop


def _body(model: str, seed: str, max_tokens: int) -> dict[str, Any]:
    [prompt] = make_prompts(seed, 1, tokens=16)
    body: dict[str, Any] = {"model": model, "prompt": prompt, "max_tokens": max_tokens}
    return body | {"temperature": 0.8, "seed": 1, "ignore_eos": True}


def describe(found: Arrived) -> str:
    """Return what arrived, in words."""
    mark = "arrived whole" if not found.problems else "DID NOT ARRIVE WHOLE: " + "; ".join(found.problems)
    return (
        f"one stream of {found.seconds:.1f} s {mark}: {found.lines} token lines, "
        f"{found.usage['completion_tokens']} tokens, {found.bytes_of_text} bytes of text, "
        f"ended by {found.finish}; {found.companions} other answers beside it.\n"
        f"Gaps between lines: median {1e3 * found.gap_p50_s:.1f} ms, p99 {1e3 * found.gap_p99_s:.1f} ms, "
        f"worst {1e3 * found.worst_gap_s:.1f} ms."
    )


def add_options(mode: argparse.ArgumentParser) -> None:
    """Add the options of this mode."""
    mode.add_argument("--seconds", type=whole(1, 3600), default=180)
    text = "at most (clipped to the context)"
    mode.add_argument("--max-tokens", type=whole(2, 100_000), default=100_000, help=text)
    text = "streams beside it, one after another"
    mode.add_argument("--companions", type=whole(0, 15), default=3, help=text)
    mode.add_argument("--max-gap", type=float, default=2.0, metavar="SECONDS", help="longest gap allowed")


def run(options: argparse.Namespace) -> int:
    """Read one long stream; the exit code says whether it came whole."""
    report = Report(options, companions=options.companions)
    flags = ["--llama-slots", str(options.companions + 1), "--llama-threads", str(options.threads)]
    flags += ["--llama-ctx", str(8192 + 1024 * options.companions), *modeld_flags(options)]
    with modeld(*flags, models_dir=options.model.parent) as server:
        watch = CpuWatch([server.process.pid])
        found = read_beside(server.port, options.model.name, options)
        use = watch.stop()
    text = describe(found)
    if found.seconds < options.seconds - 1:
        text += f"\nIt ended before {options.seconds} s, by {found.finish}; more --companions slow it down."
    report.finish(text, [use], results=found._asdict())
    return 1 if found.problems else 0


MODE = Mode("one long stream arrives whole, beside others", add_options, run)
