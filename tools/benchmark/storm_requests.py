# SPDX-License-Identifier: GPL-3.0-only
"""Draw the requests of a storm from a seed: which model is asked for when, and for what.

Arrivals are spread over the time by chance, each for itself (a Poisson process of which the number is given).
The first model is the most popular one: the n-th is asked for 1/n times as often. So some models come back
soon and others late, which is what a choice of victims is about; and there are no bursts, so that the order
of service stays near that of arrival, in which Belady's rule is played.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import NamedTuple

from benchmark.prompts import make_prompts

SLOTS = 2
_LONG_EVERY = 16
"""One prompt in so many is long: it fills most of the context, and whole ubatches with it."""
_LONG = 0.8
_LONG_TOKENS = 900
_SHORT_TOKENS = (8, 96)
_ANSWER_TOKENS = (8, 40)


class StormModel(NamedTuple):
    """A model of the storm: the demo's weights of one type, under a name of its own."""

    name: str
    quant: str
    ctx: int

    @property
    def id(self) -> str:
        """The file's name."""
        return f"{self.name}-{self.quant}.gguf"


MODELS = (
    StormModel("ash", "Q4_0", 1024),
    StormModel("beech", "Q8_0", 2048),
    StormModel("cedar", "Q4_1", 1536),
    StormModel("dogwood", "Q4_0", 1536),
    StormModel("elm", "Q8_0", 1024),
    StormModel("fir", "Q4_1", 2048),
)
"""Of different sizes, and yet any two of them take less than any three."""


class StormRequest(NamedTuple):
    """One request; `at_s` counts from the beginning of the storm."""

    at_s: float
    model: str
    prompt: str
    max_tokens: int

    def body(self) -> dict[str, object]:
        """Return it as the native API takes it: greedy, and never ended early."""
        body: dict[str, object] = {"model": self.model, "prompt": self.prompt, "max_tokens": self.max_tokens}
        return body | {"temperature": 0, "ignore_eos": True}


def draw(models: Sequence[StormModel], requests: int, seconds: float, seed: int) -> list[StormRequest]:
    """Return the requests in order of their time; the same for the same arguments."""
    rng = random.Random(seed)  # noqa: S311  # the same seed, the same storm
    chances = [1 / place for place in range(1, len(models) + 1)]
    times = sorted(rng.uniform(0, seconds) for _ in range(requests))
    drawn: list[StormRequest] = []
    for number, at_s in enumerate(times):
        [model] = rng.choices(models, chances)
        length = rng.randint(*_SHORT_TOKENS)
        if rng.randrange(_LONG_EVERY) == 0:
            length = min(_LONG_TOKENS, int(_LONG * model.ctx))
        [prompt] = make_prompts(f"storm {seed} {number}", 1, tokens=length)
        drawn.append(StormRequest(at_s, model.id, prompt, rng.randint(*_ANSWER_TOKENS)))
    return drawn


def waves(models: Sequence[StormModel], sizes: Sequence[int], seed: int) -> list[list[StormRequest]]:
    """Return requests that come at once, so many in each wave: for a test, which may not depend on time."""
    drawn = draw(models, sum(sizes), 0.0, seed)
    return [[drawn.pop() for _ in range(size)] for size in sizes]


def config(models: Sequence[StormModel]) -> str:
    """Return the daemon's configuration of these models (JSON, which YAML reads)."""
    options = {model.id: {"llama_ctx": model.ctx, "llama_slots": SLOTS} for model in models}
    return json.dumps({"models": options})
