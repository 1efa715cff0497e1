# SPDX-License-Identifier: GPL-3.0-only
"""The way of messages from a worker's thread into the event loop."""

from __future__ import annotations

from collections.abc import Callable

from modeld.engine.protocol import TokenOutput
from modeld.worker.messages import FromWorker, Progress, StepDone, WorkerStopped
from modeld.worker.thread_outbox import ThreadOutbox


def step(text: str) -> StepDone:
    return StepDone((TokenOutput(1, text),), 0.5)


class Loop:
    """An event loop that runs when the test says so."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []
        self.heard: list[FromWorker] = []
        self.box = ThreadOutbox(self.calls.append, self.heard.append)

    def run(self) -> list[FromWorker]:
        """Make the calls there are now; return what was heard in them."""
        calls, self.calls[:] = list(self.calls), []
        self.heard.clear()
        for call in calls:
            call()
        return self.heard


def test_a_loop_that_is_behind_is_called_once() -> None:
    """Steps that wait together are delivered as one, in order."""
    loop = Loop()
    for text in "abc":
        loop.box.put(step(text))
    assert len(loop.calls) == 1
    assert loop.run() == [StepDone(tuple(TokenOutput(1, text) for text in "abc"), 1.5)]


def test_a_loop_that_keeps_up_hears_each_step() -> None:
    """A message that finds nobody waiting is delivered as it is, and by a call of its own."""
    loop = Loop()
    for text in "ab":
        loop.box.put(step(text))
        assert loop.run() == [step(text)]


def test_other_messages_keep_their_place_between_steps() -> None:
    """Only neighbouring steps become one."""
    loop = Loop()
    for message in (step("a"), step("b"), Progress(0.5), step("c"), WorkerStopped()):
        loop.box.put(message)
    merged, *rest = loop.run()
    assert [output.text for output in merged.outputs] == ["a", "b"]
    assert rest == [Progress(0.5), step("c"), WorkerStopped()]


def test_what_is_posted_during_a_delivery_has_a_call_of_its_own() -> None:
    """Nothing is left lying, and a fast worker cannot hold the loop in one call for ever."""
    loop = Loop()
    box = ThreadOutbox(
        loop.calls.append, lambda message: (loop.heard.append(message), box.put(step("next")))[0]
    )
    box.put(step("first"))
    assert loop.run() == [step("first")]
    assert loop.run() == [step("next")]
