# SPDX-License-Identifier: GPL-3.0-only
"""`bench interfere` and `bench abandon`: what long prompts cost other requests.

interfere. For each prompt length, several times:

(1) The prompt alone, on the idle server: time to its first token.
(2) Streams run. From the time at which all of them bring tokens, the gaps between the tokens of each stream
    are recorded for a while: the median before.
(3) Another prompt of that length arrives. Until its first token comes, the gaps are those beside it; a gap
    that begins before and ends after counts.

The figures are the median, the p99 and the worst gap beside the prompt, as multiples of the median before,
and how much longer the prompt took than alone. Both must be small at once: a server that postpones the prompt
has the one, a server that stops the streams the other. The p99 before shows how unsteady the machine is.

abandon. Clients send long prompts and leave in the middle of the prefill; at once another asks for one token.
Measured is the time to that token, against the time of such a request on the idle server.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import NamedTuple

from benchmark import figures
from benchmark.clients import Reader, StreamingRequest
from benchmark.cpu_load import CpuWatch
from benchmark.daemon import BenchError
from benchmark.options import Mode, add_llama_server, servers, whole
from benchmark.prompts import make_prompts
from benchmark.report import Report
from benchmark.systems import HttpSystem, Setup

CALM_S = 1.5
"""Gaps are recorded for so long before the prompt arrives."""
STREAM_PROMPT = 16
STREAM_TOKENS = 2000
"""Tokens of the prompt and, at most, of the answer of a stream: more than come during one long prefill."""
_CELLS_OF_A_SLOT = 4096
_IDLE = 9
"""One-token requests on the idle server, for the median."""
_SHORT_PROMPT = 4


class Times(NamedTuple):
    """One prompt length, one time. Seconds; gaps are those of all streams together."""

    alone: float
    beside: float
    before: list[float]
    during: list[float]


class Interference(NamedTuple):
    """One server, one prompt length."""

    system: str
    tokens: int
    times: list[Times]


class Abandonment(NamedTuple):
    """One server. Seconds of one-token requests: on the idle server, and after abandoned prompts."""

    system: str
    idle: list[float]
    after: list[float]


def one_token(system: HttpSystem, prompt: str) -> float:
    """Ask for one token; return the seconds until it came."""
    request = system.begin(prompt, 1)
    Reader([request]).until(lambda: bool(request.tokens))
    request.close()
    return request.tokens[0] - request.sent


def settle(system: HttpSystem, seed: str) -> None:
    """Wait until the server has released what was abandoned: one token, and then another, at once."""
    for number in range(2):
        [prompt] = make_prompts(f"{seed} settle {number}", 1, tokens=2)
        one_token(system, prompt)
    time.sleep(0.2)  # part of the method: what was measured before does not run into the next


def measure_interference(system: HttpSystem, *, tokens: int, streams: int, seed: str) -> Times:
    """Let one prompt of `tokens` tokens arrive among so many streams. Leaves the server idle."""
    alone_prompt, prompt = make_prompts(f"{seed} long", 2, tokens=tokens)
    alone = one_token(system, alone_prompt)
    settle(system, seed)
    shorts = make_prompts(f"{seed} short", streams, tokens=STREAM_PROMPT)
    running = [system.begin(short, STREAM_TOKENS) for short in shorts]
    late: StreamingRequest | None = None
    try:
        reader = Reader(running)
        reader.until(lambda: all(len(stream.tokens) > 2 for stream in running))
        calm_from = time.perf_counter()
        reader.until(lambda: time.perf_counter() > calm_from + CALM_S)
        late = system.begin(prompt, 1)
        reader.add(late)
        late_tokens = late.tokens
        reader.until(lambda: bool(late_tokens))
        sent, came = late.sent, late.tokens[0]
        reader.until(lambda: all(stream.tokens[-1] > came or stream.done for stream in running))
    finally:
        for request in (*running, *([late] if late else [])):
            request.close()
    settle(system, seed)
    gaps = [pair for stream in running for pair in pairwise(stream.tokens)]
    before = [after - at for at, after in gaps if at >= calm_from and after <= sent]
    during = [after - at for at, after in gaps if after > sent and at < came]
    return Times(alone, came - sent, before, during)


def summary(found: Interference) -> dict[str, float]:
    """Return the medians over the times, in seconds and as multiples."""
    rows: list[tuple[float, ...]] = []
    for times in found.times:
        usual = median(times.before)
        unrest = figures.percentile(times.before, 99) / usual
        middle, worst = median(times.during), figures.percentile(times.during, 99)
        slower = times.beside / times.alone
        rows.append((times.alone, times.beside, slower, usual, unrest, middle / usual, worst, worst / usual))
    columns = [median(column) for column in zip(*rows, strict=True)]
    names = ("alone_s", "beside_s", "slower", "before_p50_s", "unrest", "middle", "during_p99_s", "stretch")
    together = dict(zip(names, columns, strict=True))
    return together | {"during_worst_s": max(max(times.during) for times in found.times)}


def _line(tokens: int, times: Times) -> str:
    usual, p50, p99 = median(times.before), median(times.during), figures.percentile(times.during, 99)
    return (
        f"prompt of {tokens:5}: {times.beside / times.alone:.2f} times as long as alone; "
        f"gaps {p50 / usual:.2f} times (p50), {p99 / usual:.2f} (p99), worst {1e3 * max(times.during):.0f} ms"
    )


def interference_table(found: Sequence[Interference]) -> str:
    """Return the table."""
    head = ["prompt", "system", "alone ms", "beside ms", "times", "gap before p50 ms", "p99, times"]
    head += ["during p50, times", "p99 ms", "times", "worst of all"]
    rows: list[list[str]] = []
    for each in sorted(found, key=lambda found: found.tokens):
        it = summary(each)
        row = [str(each.tokens), each.system, f"{1e3 * it['alone_s']:.0f}", f"{1e3 * it['beside_s']:.0f}"]
        row += [f"{it['slower']:.2f}", f"{1e3 * it['before_p50_s']:.1f}", f"{it['unrest']:.2f}"]
        row += [f"{it['middle']:.2f}", f"{1e3 * it['during_p99_s']:.1f}", f"{it['stretch']:.2f}"]
        rows.append([*row, f"{1e3 * it['during_worst_s']:.0f}"])
    return figures.table(head, rows)


def add_interfere(mode: argparse.ArgumentParser) -> None:
    """Add the options of `interfere`."""
    mode.add_argument("--prompts", default="1000,3000", metavar="N,N", help="tokens of the prompts")
    mode.add_argument("--streams", type=whole(1, 15), default=4)
    mode.add_argument("--times", type=whole(1, 50), default=5)
    add_llama_server(mode)


def run_interfere(options: argparse.Namespace) -> int:
    """Measure each prompt length on each server in turn."""
    try:
        lengths = [int(part) for part in options.prompts.split(",")]
    except ValueError:
        raise BenchError(f"--prompts {options.prompts} is no list of numbers") from None
    slots, streams, times = options.streams + 4, options.streams, options.times
    cells = slots * max(_CELLS_OF_A_SLOT, max(lengths) + 512)
    setup = Setup(options.model, slots=slots, ctx=cells, threads=options.threads)
    report = Report(options, slots=slots, cells=cells, streams=streams, prompts=lengths, times=times)
    found: dict[tuple[str, int], Interference] = {}
    with servers(options, setup) as systems:
        watch = CpuWatch(pid for system in systems for pid in system.pids)
        for number in range(-1, times):  # the first is a warm-up
            for tokens in lengths if number >= 0 else [min(lengths)]:
                for system in systems:
                    seed = f"{report.json_file.name} {number} {tokens}"
                    one = measure_interference(system, tokens=tokens, streams=streams, seed=seed)
                    if number >= 0:
                        empty = Interference(system.name, tokens, [])
                        found.setdefault((system.name, tokens), empty).times.append(one)
                        report.say(f"{number + 1}/{times}  {system.name:<13} {_line(tokens, one)}")
        use = watch.stop()
    results = [
        {"system": it.system, "tokens": it.tokens, "medians": summary(it)}
        | {"times": [times._asdict() for times in it.times]}
        for it in found.values()
    ]
    report.finish(interference_table(list(found.values())), [use], results=results)
    return 0


def measure_abandonment(
    system: HttpSystem, *, tokens: int, clients: int, times: int, seed: str
) -> Abandonment:
    """Abandon `clients` prompts of `tokens` tokens at once, `times` times."""
    shorts = make_prompts(f"{seed} short", _IDLE + times, tokens=_SHORT_PROMPT)
    settle(system, seed)
    idle = [one_token(system, prompt) for prompt in shorts[:_IDLE]]
    [whole_prompt] = make_prompts(f"{seed} whole", 1, tokens=tokens)
    prefill_s = one_token(system, whole_prompt)
    after: list[float] = []
    for number in range(times):
        prompts = make_prompts(f"{seed} long {number}", clients, tokens=tokens)
        abandoned = [system.begin(prompt, 1) for prompt in prompts]
        time.sleep(prefill_s / 4)  # the prefill has begun, and is far from done
        for request in abandoned:
            request.close()
        after.append(one_token(system, shorts[_IDLE + number]))
        settle(system, f"{seed} {number}")
    return Abandonment(system.name, idle, after)


def abandonment_table(found: Sequence[Abandonment]) -> str:
    """Return the table."""
    rows: list[list[str]] = []
    for each in found:
        idle, after = median(each.idle), median(each.after)
        worst = f"{1e3 * max(each.after):.1f}"
        rows.append([each.system, f"{1e3 * idle:.1f}", f"{1e3 * after:.1f}", worst, f"{after / idle:.2f}"])
    return figures.table(["system", "idle ms", "after ms", "worst", "times idle"], rows)


def add_abandon(mode: argparse.ArgumentParser) -> None:
    """Add the options of `abandon`."""
    mode.add_argument("--prompt-tokens", type=whole(100, 16384), default=3500)
    mode.add_argument("--clients", type=whole(1, 8), default=2)
    mode.add_argument("--times", type=whole(1, 100), default=10)
    add_llama_server(mode)


def run_abandon(options: argparse.Namespace) -> int:
    """Measure each server."""
    clients, times, tokens = options.clients, options.times, options.prompt_tokens
    cells = clients * max(_CELLS_OF_A_SLOT, tokens + 512)
    setup = Setup(options.model, slots=clients, ctx=cells, threads=options.threads)
    report = Report(options, slots=clients, cells=cells, prompt_tokens=tokens, clients=clients, times=times)
    seed = report.json_file.name
    with servers(options, setup) as systems:
        watch = CpuWatch(pid for system in systems for pid in system.pids)
        found = [
            measure_abandonment(system, tokens=tokens, clients=clients, times=times, seed=seed)
            for system in systems
        ]
        use = watch.stop()
    results = [it._asdict() | {"p95_s": figures.percentile(it.after, 95)} for it in found]
    report.finish(abandonment_table(found), [use], results=results)
    return 0


INTERFERE = Mode(
    "a long prompt among running streams: what it costs them, and they it", add_interfere, run_interfere
)
ABANDON = Mode("what long prompts that are abandoned cost the next request", add_abandon, run_abandon)
