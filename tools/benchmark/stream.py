# SPDX-License-Identifier: GPL-3.0-only
"""`bench stream`: one long stream arrives whole, while others run alongside it."""

from __future__ import annotations

import threading
import time
from typing import Any, NamedTuple

from benchmark import figures
from benchmark.daemon import BenchError
from benchmark.prompts import make_prompts
from benchmark.wire import Wire

COMPANION_TOKENS = 512


class Whole(NamedTuple):
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


def run(
    port: int,
    model: str,
    *,
    seconds: float,
    max_tokens: int,
    companions: int,
    max_gap_s: float,
) -> Whole:
    """Read one stream that ends by its own `timeout` after `seconds`, or sooner by its length.

    Alongside it `companions` clients ask for answers of 512 tokens, one after the other.
    """
    stop = threading.Event()
    counts = [0] * companions
    others = [
        threading.Thread(target=_accompany, args=(port, model, number, counts, stop))
        for number in range(companions)
    ]
    for other in others:
        other.start()
    try:
        return _read(port, model, seconds=seconds, max_tokens=max_tokens, max_gap_s=max_gap_s, counts=counts)
    finally:
        stop.set()
        for other in others:
            other.join()


def _read(
    port: int, model: str, *, seconds: float, max_tokens: int, max_gap_s: float, counts: list[int]
) -> Whole:
    texts: list[str] = []
    times: list[float] = []
    problems: list[str] = []
    with Wire(port) as wire:
        began = wire.ask(**_body(model, "long", max_tokens), timeout=f"{seconds:g}s")
        while True:
            value = wire.line()
            if value.get("done"):
                break
            if value.get("done") is not False or not value.get("token"):
                problems.append(f"line {len(texts)} is no token line: {value}")
            texts.append(value.get("token", ""))
            times.append(wire.at)
        ended = wire.at
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
    if max(gaps[1:]) > max_gap_s:
        problems.append(f"a gap of {max(gaps[1:]):.3f} s, more than {max_gap_s:g} s")
    return Whole(
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
            with Wire(port) as wire:
                wire.ask(**_body(model, f"{number} {counts[number]}", COMPANION_TOKENS))
                while not stop.is_set() and not wire.line().get("done"):
                    pass
            counts[number] += 1
        except (BenchError, OSError):
            time.sleep(0.1)  # the server may be busy: not to be asked in a tight loop


def _body(model: str, seed: str, max_tokens: int) -> dict[str, Any]:
    [prompt] = make_prompts(seed, 1, tokens=16)
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0.8,
        "seed": 1,
        "ignore_eos": True,
    }


def tell(whole: Whole) -> str:
    """Return what arrived, in words."""
    mark = "arrived whole" if not whole.problems else "DID NOT ARRIVE WHOLE: " + "; ".join(whole.problems)
    return (
        f"one stream of {whole.seconds:.1f} s {mark}: {whole.lines} token lines, "
        f"{whole.usage['completion_tokens']} tokens, {whole.bytes_of_text} bytes of text, "
        f"ended by {whole.finish}; {whole.companions} other answers alongside it.\n"
        f"Gaps between lines: median {1e3 * whole.gap_p50_s:.1f} ms, p99 {1e3 * whole.gap_p99_s:.1f} ms, "
        f"worst {1e3 * whole.worst_gap_s:.1f} ms."
    )
