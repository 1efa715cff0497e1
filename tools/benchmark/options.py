# SPDX-License-Identifier: GPL-3.0-only
"""The command line of the benchmark: its modes, and what each may be told."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmark import cancel, control, defaults, fairness, long_prompts, storm_report

MODES = (
    *("throughput", "interfere", "abandon", "cancel", "stream"),
    *("control", "storm", "fairness", "defaults"),
)


def whole(low: int, high: int) -> Callable[[str], int]:
    """Return a parser of whole numbers within bounds: a bench must end."""

    def number(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is not from {low} to {high}")
        return value

    return number


def counts(text: str) -> list[int]:
    """Parse `1,4,8,16`."""
    return sorted({whole(1, 64)(part) for part in text.split(",")})


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    common = argparse.ArgumentParser(add_help=False)
    add = common.add_argument
    add("--model", type=Path, metavar="FILE", help="GGUF file (default: the demo model, Q4_0)")
    add("--threads", type=whole(1, 512), help="threads of llama.cpp (default: the cores of this machine)")
    add("--fake", metavar="SCRIPT", help="measure modeld over its fake engine, with this script")
    add("--modeld", metavar="FLAGS", default="", help="more flags for `modeld serve`, as one text")
    add("--out", type=Path, metavar="DIR", help="folder for JSON and plot (default: bench/ in the cache)")
    add("--json", type=Path, metavar="FILE", help="write the JSON there instead")
    top = argparse.ArgumentParser(prog="bench", description="Measure modeld. The default is `throughput`.")
    modes = top.add_subparsers(dest="mode", required=True, metavar="MODE")

    text = "tokens/s and latencies over HTTP, against a bare loop over llama.cpp, and other servers"
    mode = modes.add_parser("throughput", parents=[common], help=text, description=text)
    mode.add_argument(
        "--concurrency", type=counts, default=[1, 4, 8, 16], metavar="N,N", help="streams at once"
    )
    mode.add_argument("--rounds", type=whole(1, 100), default=5)
    mode.add_argument("--prompt-tokens", type=whole(1, 16384), default=32)
    mode.add_argument("--max-tokens", type=whole(2, 4096), default=128, help="tokens of each answer")
    mode.add_argument(
        "--shared-prefix", type=whole(0, 16384), default=0, help="tokens all prompts begin with"
    )
    mode.add_argument(
        "--openai-url", metavar="URL", help="also measure this server (/v1/completions, loopback)"
    )
    mode.add_argument("--openai-model", metavar="NAME", help="model to ask it for (default: the file's name)")
    text = "build llama.cpp's own server into the cache, start it with equal settings, and measure it too"
    mode.add_argument("--with-llama-server", action="store_true", help=text)
    mode.add_argument("--llama-server", metavar="FLAGS", default="", help="more flags for it, as one text")
    text = "run the models of modeld so; given twice, both are measured, each in a daemon of its own"
    mode.add_argument("--isolation", action="append", choices=("process", "thread"), help=text)
    mode.add_argument("--no-bare", action="store_true", help="leave the bare loop out")
    mode.add_argument("--plot", action="store_true", help="draw a PNG (needs matplotlib)")

    long_prompts.add_modes(modes, common, whole)
    storm_report.add_mode(modes, common, whole)
    fairness.add_mode(modes, common, whole)
    defaults.add_mode(modes, common, whole)

    text = "time from a client's leaving until what it held is free for another"
    mode = modes.add_parser("cancel", parents=[common], help=text, description=text)
    mode.add_argument("--times", type=whole(1, 1000), default=100)
    mode.add_argument(
        "--load-times", type=whole(1, 200), default=30, help="times for `loading`: each is a load"
    )
    mode.add_argument("--prompt-tokens", type=whole(16, 16384), default=2000, help="of the prompt in prefill")
    mode.add_argument("--phases", default=",".join(cancel.PHASES), help="which, of: %(default)s")

    _add_stream(modes, common)

    text = "what modeld itself costs: token lines, short requests, Python per step, memory"
    mode = modes.add_parser("control", parents=[common], help=text, description=text)
    mode.add_argument("--parts", default=",".join(control.PARTS), help="which, of: %(default)s")
    mode.add_argument("--rounds", type=whole(1, 100), default=5)
    mode.add_argument("--streams", type=counts, default=[8, 16], metavar="N,N", help="streams of token lines")
    mode.add_argument("--tokens", type=whole(100, 60_000), default=10_000, help="lines of each stream")
    mode.add_argument("--clients", type=whole(1, 64), default=8, help="clients that send short requests")
    mode.add_argument("--seconds", type=whole(1, 60), default=3, help="of each system in a round of requests")
    text = "where the engine lives while short requests are measured (default: %(default)s)"
    mode.add_argument("--isolation", choices=("process", "thread"), default="thread", help=text)
    return top


def _add_stream(modes: Any, common: argparse.ArgumentParser) -> None:
    text = "one long stream arrives whole, alongside others"
    mode = modes.add_parser("stream", parents=[common], help=text, description=text)
    mode.add_argument("--seconds", type=whole(1, 3600), default=180)
    mode.add_argument(
        "--max-tokens", type=whole(2, 100_000), default=100_000, help="at most (clipped to the context)"
    )
    mode.add_argument(
        "--companions", type=whole(0, 15), default=3, help="streams alongside it, one after another"
    )
    mode.add_argument("--max-gap", type=float, default=2.0, metavar="SECONDS", help="longest gap allowed")
