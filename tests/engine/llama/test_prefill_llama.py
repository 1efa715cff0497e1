# SPDX-License-Identifier: GPL-3.0-only
"""Prompts get as many tokens a step as the steps of the streams allow, by a made-up clock."""

from __future__ import annotations

import pytest
from support.engine_driver import EngineDriver, generate_request, spec
from support.tiny_gguf import write_model

from modeld.engine.llama.engine import load
from modeld.engine.llama.prefill import FLOOR_S, SMALLEST
from modeld.engine.protocol import RequestAdmitted, TokenOutput

pytestmark = pytest.mark.llama


class Clock:
    """Time passes by decodes only: each token of a batch takes as long as any other."""

    def __init__(self):
        self.token_s = 0.001
        self.now = 0.0
        self.engine = None

    def perf_counter(self):
        """Return the time; what is in the batch now is decoded until the next look."""
        before = self.now
        if self.engine is not None:
            self.now += self.token_s * self.engine._batch.size
        return before


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("modeld.engine.llama.engine.time", clock)
    return clock


@pytest.fixture
def driver(tmp_path, clock):
    path = write_model(tmp_path / "long.gguf", context=2048)
    engine = load(
        spec(path, slots=2, ctx=4096, ubatch=256, prefix_cells=0, kv_unified=True), lambda _fraction: True
    )
    clock.engine = engine
    yield EngineDriver(engine)
    engine.close()


def chunks(driver, words):
    """Let a prompt be read alongside one stream; return how many of its tokens went with each step.

    The stream has a token in each of these steps.
    """
    stream = driver.submit(generate_request("a stream", max_tokens=1500, ignore_eos=True))
    driver.until(TokenOutput, stream)
    for _ in range(5):
        driver.step()
    long = driver.submit(generate_request("word " * words, max_tokens=1))
    driver.until(RequestAdmitted, long)
    job = next(job for job in driver.engine._running if job.id == long)
    found, kept = [], job.kept
    while not any(isinstance(output, TokenOutput) for output in driver.outputs[long]):
        told = driver.step()
        assert any(output.id == stream for output in told)
        found.append(job.kept - kept)
        kept = job.kept
    driver.engine.cancel(stream)
    driver.finish()
    return [count for count in found if count]


@pytest.mark.parametrize(("token_s", "expected"), [(0.001, 40), (0.0002, 200), (0.02, SMALLEST)])
def test_chunks_follow_from_how_long_steps_took(driver, clock, token_s, expected):
    """Where a usual step is short one with a chunk takes 40 ms; of a slow model it has the smallest chunk."""
    clock.token_s = token_s
    assert set(chunks(driver, 200)[1:-1]) == {expected}
    assert expected == SMALLEST or expected * token_s == pytest.approx(FLOOR_S)


def test_chunks_change_with_the_machine(driver, clock):
    """When it became five times slower, the chunks become smaller one by one, as small as they then must."""
    clock.token_s = 0.0002
    assert chunks(driver, 200)[-2] == 200
    clock.token_s = 0.001
    found = chunks(driver, 200)[:-1]
    assert found[0] > 100
    assert found == sorted(found, reverse=True)
    assert found[-1] == 40
