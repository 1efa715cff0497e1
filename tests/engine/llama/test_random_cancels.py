# SPDX-License-Identifier: GPL-3.0-only
"""Thousands of random submits, cancels, interrupts and steps leave an engine as they found it.

The seed is printed; `MODELD_TEST_SEED` sets another one, or the same again.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from functools import partial

import pytest
from support.engine_driver import EngineDriver, generate_request
from support.kv_accounting import assert_kv_at_rest, assert_kv_matches
from support.process_resources import Samplers, descriptor_count, resident_bytes, thread_count
from support.tiny_memories import write_hybrid, write_recurrent, write_windowed

from modeld.domain.model import MIB
from modeld.domain.request import Constraint, ConstraintKind, GenerateRequest, Message, Sampling
from modeld.domain.request_events import FinishReason
from modeld.engine.protocol import RequestAdmitted, RequestDone, RequestFailed, TokenOutput
from modeld.errors import InvalidGrammar, PromptTooLong

SEED = int(os.environ.get("MODELD_TEST_SEED", "20240607"))
ROOTS = ("abcdefgh ijklmnop qrstuvwx ", "The keeper of the lighthouse ", "0 1 2 3 4 5 6 7 8 9 ")
PHASES = {"submitted", "waiting", "prefill", "decoding", "ended", "unknown"}
"""Where a request may be when it is cancelled."""


class Churn:
    """Does one random thing after another to an engine.

    Attributes:
      cancels: how many there were, by the phase of the request.
      reasons: how the requests ended.
    """

    def __init__(self, engine, seed, longest) -> None:
        self.engine = engine
        self.bench = EngineDriver(engine)
        self.chooser = random.Random(seed)  # noqa: S311  # a seed that repeats it, no secret
        self.longest = longest
        self.cancels = Counter()
        self.reasons = Counter()
        self.cached = 0
        self._open = []

    def run(self, steps, *, rest_every):
        """Do so many things; the accounts must agree after each, and everything end now and then."""
        for number in range(1, steps + 1):
            match self.chooser.choices(("submit", "cancel", "interrupt", "step"), (20, 14, 6, 60))[0]:
                case "submit":
                    self._open.append(self.bench.submit(self._request()))
                case "cancel":
                    self._cancel()
                case "interrupt":
                    self.engine.interrupt()
                case _:
                    self.bench.step()
            assert_kv_matches(self.engine)
            if number % rest_every == 0:
                self._rest()
        self._rest()

    def _cancel(self):
        """Cancel one that is open, or one that has ended, or one that never was."""
        request_id = self.chooser.choice([*self._open, *self._open, 10**6, max(self._open, default=1)])
        self.cancels[self._phase(request_id)] += 1
        self.engine.cancel(request_id)
        if self.chooser.random() < 0.5:
            self.engine.interrupt()

    def _phase(self, request_id):
        outputs = self.bench.outputs.get(request_id, [])
        if request_id not in self._open:
            return "unknown"
        if any(isinstance(output, RequestDone | RequestFailed) for output in outputs):
            return "ended"
        if any(isinstance(output, TokenOutput) for output in outputs):
            return "decoding"
        if any(isinstance(output, RequestAdmitted) for output in outputs):
            return "prefill"
        return "waiting" if any(job.id == request_id for job in self.engine._intake.waiting) else "submitted"

    def _rest(self):
        """Let everything end; each request must have its end, and the engine be at rest."""
        self.bench.finish()
        assert_kv_at_rest(self.engine)
        for request_id in self._open:
            last = self.bench.last(request_id)
            assert isinstance(last, RequestDone | RequestFailed)
            self.reasons[last.reason if isinstance(last, RequestDone) else last.problem.kind] += 1
            self.cached += last.usage.cached_tokens
        self._open.clear()
        self.bench.outputs.clear()
        self.bench.order.clear()

    def _request(self):
        """Return a request of any kind; most prompts begin like others."""
        choose = self.chooser
        prompt = choose.choice(ROOTS) * choose.randint(1, self.longest) + choose.choice(
            ("", "x", "yz", "Ω😀")
        )
        most = choose.choice((1, 4, 12, 40))
        match choose.randrange(10):
            case 0:
                return generate_request("w " * 10**5)  # too long
            case 1:
                constraint = Constraint(
                    kind=ConstraintKind.GRAMMAR, text=choose.choice(("root ::= [a-z]{6}", "root ::= ("))
                )
                return generate_request(prompt, max_tokens=most, constraint=constraint)
            case 2:
                messages = (Message(role="user", content=prompt),)
                return GenerateRequest(messages=messages, max_tokens=most, sampling=Sampling(seed=1))
            case 3:
                sampling = Sampling(temperature=1.0, repeat_penalty=1.2, logit_bias=((5, -1.0),), seed=most)
                return generate_request(prompt, max_tokens=most, sampling=sampling, stop=("e",), logprobs=2)
            case _:
                return generate_request(prompt, max_tokens=most, ignore_eos=True)


def churn(engine, monkeypatch, *, steps, rest_every, longest, growth):
    """Warm up, then do `steps` random things: nothing may be held that was not held before."""
    print(f"MODELD_TEST_SEED={SEED}")  # noqa: T201  # pytest shows it when the test fails
    samplers = Samplers(monkeypatch)
    Churn(engine, SEED + 1, longest).run(steps // 4, rest_every=rest_every)
    assert not samplers.live
    before = thread_count(), descriptor_count()
    memory = resident_bytes()
    work = Churn(engine, SEED, longest)
    work.run(steps, rest_every=rest_every)
    assert (thread_count(), descriptor_count()) == before
    assert resident_bytes() - memory < growth
    assert not samplers.live
    assert samplers.made > steps // 20
    return work


def assert_prompts_are_read_as_ever(driver, plain):
    """What is retained after all that is what it is taken for: the model says the same after it."""
    asked = [
        generate_request(root * times, max_tokens=1, logprobs=320) for root in ROOTS for times in (1, 3, 5)
    ]
    for request in asked:
        (here,), (there,) = driver.run(request), plain.run(request)
        ours, theirs = (
            one.outputs[number][1].logprobs[0].top for one, number in ((driver, here), (plain, there))
        )
        expected = {token.token_id: token.logprob for token in theirs}
        assert {token.token_id: token.logprob for token in ours} == pytest.approx(expected, abs=0.01)
    assert any(outputs[0].cached_tokens for outputs in driver.outputs.values())


def test_random_requests_and_cancels_on_the_tiny_model(tiny_lab, monkeypatch):
    """2,000 of them, cancels in every phase: cells, samplers, threads, files and memory are as before."""
    outside = thread_count()
    engine = tiny_lab.load(slots=3, ctx=768, ubatch=32, prefix_cells=300)
    work = churn(engine, monkeypatch, steps=2000, rest_every=100, longest=5, growth=4 * MIB)
    assert_prompts_are_read_as_ever(
        EngineDriver(engine), tiny_lab.driver(slots=3, ctx=768, ubatch=32, prefix_cells=0)
    )
    engine.close()
    assert thread_count() == outside
    assert set(work.cancels) == PHASES
    assert min(work.cancels.values()) >= 5
    assert {FinishReason.CANCELLED, FinishReason.LENGTH, FinishReason.STOP} < set(work.reasons)
    assert {PromptTooLong.kind, InvalidGrammar.kind} <= set(work.reasons)
    assert work.cached > 1000


@pytest.mark.parametrize(
    "write",
    [partial(write_windowed, window=16), write_recurrent, write_hybrid],
    ids=["windowed", "recurrent", "hybrid"],
)
def test_random_requests_and_cancels_on_other_memories(tmp_path, tiny_lab, monkeypatch, write):
    """The same of models with a sliding window, and of those with a state that cannot be cut."""
    engine = tiny_lab.load(path=write(tmp_path / "m.gguf"), slots=3, ctx=768, ubatch=32, prefix_cells=300)
    work = churn(engine, monkeypatch, steps=800, rest_every=100, longest=5, growth=4 * MIB)
    engine.close()
    assert set(work.cancels) == PHASES
    assert {FinishReason.CANCELLED, FinishReason.LENGTH, FinishReason.STOP} < set(work.reasons)


@pytest.mark.real
def test_random_requests_and_cancels_on_a_real_model(real_lab, monkeypatch):
    """A part of that on a real model, under default options."""
    engine = real_lab.load(slots=4, ctx=2048, ubatch=128)
    work = churn(engine, monkeypatch, steps=240, rest_every=120, longest=8, growth=16 * MIB)
    engine.close()
    assert work.reasons[FinishReason.CANCELLED] > 5
    assert work.cached > 0
