# SPDX-License-Identifier: GPL-3.0-only
"""Pass a worker thread's messages to the event loop, batched."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from modeld.worker.host import OnMessage
from modeld.worker.messages import FromWorker, StepDone

CallSoon = Callable[[Callable[[], None]], None]
"""Has the event loop call a function soon; may be asked from any thread."""


class ThreadOutbox:
    """Messages on their way. One thread puts, the event loop takes.

    Waking the event loop costs more than a message. When it is behind, it is called once for several
    messages, and the steps among these become one: their token lines share a write.
    """

    def __init__(self, call_soon: CallSoon, on_message: OnMessage) -> None:
        self._call_soon = call_soon
        self._on_message = on_message
        self._messages: deque[FromWorker] = deque()
        self._called = False

    def put(self, message: FromWorker) -> None:
        """Post a message, from the worker's thread."""
        self._messages.append(message)
        if not self._called:  # `_deliver` says so before it looks for messages, so none is missed.
            self._called = True
            self._call_soon(self._deliver)

    def _deliver(self) -> None:
        self._called = False
        count = len(self._messages)  # For what comes meanwhile there will be another call.
        for message in merged(self._messages.popleft() for _ in range(count)):
            self._on_message(message)


def merged(messages: Iterable[FromWorker]) -> Iterator[FromWorker]:
    """Yield messages in their order, with steps that follow one another made one."""
    steps: list[StepDone] = []
    for message in messages:
        if isinstance(message, StepDone):
            steps.append(message)
            continue
        yield from _one_step(steps)
        steps.clear()
        yield message
    yield from _one_step(steps)


def _one_step(steps: list[StepDone]) -> Iterator[StepDone]:
    if len(steps) == 1:
        yield steps[0]
    elif steps:
        outputs = tuple(output for step in steps for output in step.outputs)
        yield StepDone(outputs, sum(step.seconds for step in steps))
