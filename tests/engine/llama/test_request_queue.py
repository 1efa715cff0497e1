# SPDX-License-Identifier: GPL-3.0-only
"""Streams go on, whatever arrives: the engine's time is divided between them and new requests."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace

import pytest
from support.engine_driver import EngineDriver, generate_request

from modeld.domain.request import TokenizeRequest
from modeld.engine.llama.request_queue import SLICE_S, PreparationTurns
from modeld.engine.protocol import AnswerOutput, RequestFailed, TokenOutput

SLOTLESS = TokenizeRequest(content="hello")


@pytest.fixture
def driver(tiny_lab):
    driver = EngineDriver(tiny_lab.load(slots=2, ctx=512, ubatch=64))
    yield driver
    driver.engine.close()


def test_nobody_streams_and_all_are_prepared():
    """There is nobody to wait for it."""
    turns = PreparationTurns()
    assert turns.may_prepare(0.0, streams=False)
    turns.prepared(9.0)
    assert turns.may_prepare(9.0, streams=False)


def test_streams_have_as_much_time_as_a_long_preparation_took():
    """The slice ends it; then it is the streams' turn for as long; a short one costs nothing."""
    turns = PreparationTurns()
    assert turns.may_prepare(1.0, streams=True)
    assert turns.may_go_on(1.0 + SLICE_S / 2)
    assert not turns.may_go_on(1.5)
    turns.prepared(1.5)
    assert not turns.may_prepare(1.9, streams=True)
    assert turns.may_prepare(2.0, streams=True)
    turns.prepared(2.0 + SLICE_S / 2)
    assert turns.may_prepare(2.0 + SLICE_S / 2, streams=True)


def test_streams_have_as_much_time_as_a_slice_of_something_longer():
    """However short the slice was: the next one follows it."""
    turns = PreparationTurns()
    assert turns.may_prepare(1.0, streams=True)
    turns.prepared(1.0 + SLICE_S / 2, unfinished=True)
    assert not turns.may_prepare(1.0 + 0.9 * SLICE_S, streams=True)
    assert turns.may_prepare(1.0 + 1.1 * SLICE_S, streams=True)


def test_a_request_before_each_step_does_not_stop_a_stream(driver):
    """It has its token at least every second step."""
    stream = driver.submit(generate_request("hello", max_tokens=20, ignore_eos=True))
    driver.until(TokenOutput, stream)
    for _ in range(10):
        driver.submit(SLOTLESS)
        driver.step()
    assert driver.tokens(stream) >= 1 + 5


@pytest.mark.slow
def test_many_slow_requests_together_leave_a_stream_its_steps(driver, monkeypatch):
    """Each takes longer than a slice: one a step is prepared, and all are in the end."""
    stream = driver.submit(generate_request("hello", max_tokens=200, ignore_eos=True))
    driver.until(TokenOutput, stream)
    a_second_a_look = SimpleNamespace(perf_counter=count().__next__)
    monkeypatch.setattr("modeld.engine.llama.request_queue.time", a_second_a_look)
    before = driver.tokens(stream)
    slotless = [driver.submit(SLOTLESS) for _ in range(5)]
    for ticket in slotless[:-1]:
        driver.until(AnswerOutput, ticket)
    assert not driver.outputs[slotless[-1]]
    assert driver.tokens(stream) - before >= 3
    driver.finish()
    assert all(isinstance(driver.outputs[ticket][0], AnswerOutput) for ticket in slotless)


def test_who_leaves_while_it_is_the_turn_of_streams_is_told_at_once(driver, monkeypatch):
    """A cancelled request does not wait to be prepared."""
    stream = driver.submit(generate_request("hello", max_tokens=200, ignore_eos=True))
    driver.until(TokenOutput, stream)
    monkeypatch.setattr(
        "modeld.engine.llama.request_queue.PreparationTurns.may_prepare", lambda *_, **__: False
    )
    other = driver.submit(generate_request("x"))
    driver.step()
    assert not driver.outputs[other]
    driver.engine.cancel(other)
    driver.step()
    assert driver.outputs[other]
    assert not isinstance(driver.last(other), RequestFailed)
