# SPDX-License-Identifier: GPL-3.0-only
"""Messages survive the way to a process and back, in whatever pieces; anything else is noticed."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.domain.model import Isolation, LoadOptions, ModelFacts
from modeld.domain.request import Constraint, ConstraintKind, GenerateRequest, Message, Sampling
from modeld.domain.request_events import FinishReason, Logprobs, TokenLogprob, Usage
from modeld.engine.protocol import (
    EngineInfo,
    LoadSpec,
    RequestAdmitted,
    RequestDone,
    RequestFailed,
    TokenOutput,
)
from modeld.errors import DoesNotFit
from modeld.worker.messages import (
    LENGTH,
    MOST_FROM_WORKER,
    CancelRequest,
    Close,
    FrameError,
    Progress,
    SetThreads,
    Start,
    StepDone,
    SubmitRequest,
    WorkerDied,
    WorkerLoadFailed,
    WorkerReady,
    WorkerStopped,
    encode,
    frames_from_worker,
    frames_to_worker,
)

PROBLEM = DoesNotFit("no", details={"a": 1, "b": None, "c": "x", "d": 0.5}, retry_after_s=2.0).as_problem()
REQUEST = GenerateRequest(
    messages=(Message(role="user", content="Grüße \U0001f600\0"),),
    sampling=Sampling(logit_bias=((1, float("-inf")), (2, 0.5), ("x", 1.0)), seed=2**63),
    stop=("a", "b"),
    constraint=Constraint(kind=ConstraintKind.GRAMMAR, text="root ::= x"),
    logprobs=3,
)
LOGPROBS = (Logprobs(chosen=TokenLogprob(5, b"\xff\xfe", -0.25), top=(TokenLogprob(6, b"", -1.0),)),)
FROM = [
    Progress(0.25),
    WorkerReady(EngineInfo(slots=2, cells=512, context=256, trained_context=256, vocabulary=9)),
    StepDone((), 0.5),
    StepDone(
        (
            RequestAdmitted(1, 20, 4),
            TokenOutput(1, "é", 2, LOGPROBS),
            RequestDone(1, FinishReason.STOP, Usage(prompt_tokens=3)),
            RequestFailed(2, PROBLEM),
        ),
        0.01,
    ),
    WorkerStopped(),
    WorkerLoadFailed(PROBLEM),
    WorkerDied(PROBLEM),
]
LOAD = LoadSpec(
    model_id="m",
    path="/m",
    options=LoadOptions(isolation=Isolation.PROCESS),
    facts=ModelFacts(architecture="llama", kv_heads=(1, 2), matrix_bytes=(("Q4_0", 7),)),
)
TO = [
    Start(LOAD, b"/\xff", 20),
    SubmitRequest(1, REQUEST),
    CancelRequest(1, urgent=True),
    SetThreads(3),
    Close(),
]


@given(cuts=st.lists(st.integers(0, 3000), max_size=12))
def test_all_messages_come_back_whole_from_any_pieces(cuts: list[int]) -> None:
    """Wherever the stream is cut, the same values come out in the same order."""
    for messages, frames in ((FROM, frames_from_worker()), (TO, frames_to_worker())):
        data = b"".join(bytes(encode(message)) for message in messages)
        places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
        pieces = [data[begin:end] for begin, end in pairwise(places)]
        assert [message for piece in pieces for message in frames.feed(piece)] == messages
        assert frames.unfinished == 0


@given(noise=st.binary(min_size=16, max_size=200))
def test_noise_is_an_error_or_waits_for_more_and_nothing_else(noise: bytes) -> None:
    """Random bytes never come out as anything but a message; what is told fits into a sentence."""
    frames = frames_from_worker()
    heard = []
    with suppress(FrameError):
        heard += frames.feed(noise)
        assert frames.unfinished > 0 or heard
    assert all(isinstance(message, tuple(map(type, FROM))) for message in heard)


@pytest.mark.parametrize("length", [0, MOST_FROM_WORKER + 1, 2**32 - 1])
def test_a_length_out_of_bounds_is_refused_before_it_is_waited_for(length: int) -> None:
    """What is whole before it is still delivered."""
    messages = frames_from_worker().feed(bytes(encode(WorkerStopped())) + LENGTH.pack(length))
    assert next(messages) == WorkerStopped()
    with pytest.raises(FrameError, match=str(length)):
        next(messages)


def test_text_that_is_no_unicode_does_not_stop_a_message() -> None:
    """Half a surrogate pair, as a path that is not UTF-8 brings it into a sentence, becomes a mark."""
    problem = DoesNotFit("no file /\udcff", details={"path": "\ud800", "mb": 1}).as_problem()
    (heard,) = frames_from_worker().feed(bytes(encode(WorkerLoadFailed(problem))))
    assert heard == WorkerLoadFailed(DoesNotFit("no file /?", details={"path": "?", "mb": 1}).as_problem())


def test_a_message_of_the_other_direction_is_refused() -> None:
    """A worker cannot submit requests."""
    with pytest.raises(FrameError, match="no message"):
        list(frames_from_worker().feed(bytes(encode(SubmitRequest(1, REQUEST)))))
