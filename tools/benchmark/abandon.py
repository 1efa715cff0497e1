# SPDX-License-Identifier: GPL-3.0-only
"""`bench abandon`: what long prompts that their clients abandon cost the request that comes next.

Clients send long prompts and leave in the middle of the prefill; at once another asks for one token. Measured
is the time to that token, against what such a request takes on the idle server.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from benchmark import figures
from benchmark.interfere import Asked, one_token, settle
from benchmark.prompts import WORDS, make_prompts
from benchmark.systems import Target

_IDLE = 9
"""One-token requests on the idle server, for the median."""
_SHORT = 4


class Found(NamedTuple):
    """One server. Seconds."""

    system: str
    idle: list[float]
    after: list[float]
    """The one-token request after each time."""


def measure(
    target: Target, *, tokens: int, clients: int, times: int, seed: str, words: Sequence[str] = WORDS
) -> Found:
    """Abandon `clients` prompts of `tokens` tokens at once, `times` times."""
    shorts = make_prompts(f"{seed} short", _IDLE + times, tokens=_SHORT, words=words)
    settle(target, seed, words)
    idle = [one_token(target, prompt) for prompt in shorts[:_IDLE]]
    [whole] = make_prompts(f"{seed} whole", 1, tokens=tokens, words=words)
    prefill_s = one_token(target, whole)
    after: list[float] = []
    for number in range(times):
        prompts = make_prompts(f"{seed} long {number}", clients, tokens=tokens, words=words)
        left = [Asked(target, prompt, 1) for prompt in prompts]
        time.sleep(prefill_s / 4)  # the prompt is under way, and far from done
        for each in left:
            each.leave()
        after.append(one_token(target, shorts[_IDLE + number]))
        settle(target, f"{seed} {number}", words)
    return Found(target.name, idle, after)


def tell(found: Sequence[Found]) -> str:
    """Return the table."""
    head = ["system", "idle ms", "after ms", "worst", "times idle"]
    rows: list[list[str]] = []
    for each in found:
        idle, after = median(each.idle), median(each.after)
        worst = f"{1e3 * max(each.after):.1f}"
        rows.append([each.system, f"{1e3 * idle:.1f}", f"{1e3 * after:.1f}", worst, f"{after / idle:.2f}"])
    return figures.table(head, rows)
