# SPDX-License-Identifier: GPL-3.0-only
"""Bodies of `/embed`, and vectors as JSON."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.dialects.common.body import MOST_INPUTS
from modeld.dialects.common.streaming import number_list
from modeld.dialects.native.embed import EmbedRenderer, parse_embed
from modeld.domain.request import EmbedRequest, Pooling
from modeld.domain.request_events import Embedded, Failed, Finished, FinishReason, Loading, Stats, Usage
from modeld.errors import Draining, InvalidRequest


def body(**keys: object) -> bytes:
    return json.dumps(keys).encode()


@pytest.mark.parametrize(
    ("given_", "inputs"),
    [
        ("hi", ("hi",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
        (["a", [3]], ("a", (3,))),
    ],
)
def test_inputs_are_texts_ids_or_lists_of_them(given_, inputs) -> None:
    """A plain list of numbers is one input."""
    assert parse_embed(body(input=given_)).order.request == EmbedRequest(inputs=inputs)


def test_terms_are_read() -> None:
    """Pooling, normalisation and the terms of every request."""
    order = parse_embed(body(input="a", pooling="last", normalize=False, model="m", timeout=3)).order
    assert order.request == EmbedRequest(inputs=("a",), normalize=False, pooling=Pooling.LAST)
    assert (order.model, order.timeout_s, order.needs_no_slot) == ("m", 3.0, False)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "the body is empty"),
        (body(), 'lacks the key "input"'),
        (body(input=[]), "length >= 1"),
        (body(input=""), "`input` is empty"),
        (body(input=["a", ""]), "`input[1]` is empty"),
        (body(input=[[1], []]), "`input[1]` is empty"),
        (body(input=[1, "a"]), "mixes token ids"),
        (body(input=[-1]), "must be a whole number >= 0"),
        (body(input=[1.5]), "`input[0]` must be"),
        (body(input=None), "`input` must be a string or a list"),
        (body(input="a", pooling="max"), "`pooling` must be one of mean, cls, last"),
        (body(input="a", dimensions=3), 'unknown key "dimensions"'),
        (body(input=["a"] * (MOST_INPUTS + 1)), f"has {MOST_INPUTS + 1} inputs"),
    ],
)
def test_what_is_wrong_is_said_with_its_key(data, says) -> None:
    """A sentence that names the key and what it should be."""
    with pytest.raises(InvalidRequest) as caught:
        parse_embed(data)
    assert says in caught.value.message


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=20))
def test_numbers_come_back_exactly(numbers) -> None:
    """Each 32-bit float is the same after a way through JSON."""
    data = struct.pack(f"<{len(numbers)}f", *numbers)
    kind = f"<{len(numbers)}f"
    back = struct.pack(kind, *json.loads(number_list(data)))
    assert struct.unpack(kind, back) == struct.unpack(kind, data)  # (0 and -0 are equal)


def test_vectors_stand_in_the_order_of_their_inputs() -> None:
    """The answer is whole when the last event came; waiting is not told."""
    renderer = EmbedRenderer(model="m.gguf", request_id='r"1')
    assert renderer.take([Loading(0.5), Embedded(0, (struct.pack("<2f", 1, -0.5),))]) is None
    usage = Usage(prompt_tokens=7)
    ended = Finished(reason=FinishReason.STOP, usage=usage, stats=Stats(duration_s=0.25))
    answer = renderer.take([Embedded(1, (struct.pack("<2f", 0.25, 2),)), ended])
    assert answer is not None
    found = json.loads(answer)
    assert found["embeddings"] == [[1, -0.5], [0.25, 2]]
    assert found["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert (found["stats"]["duration_ms"], found["model"], found["id"]) == (250, "m.gguf", 'r"1')


def test_a_failure_is_kept_for_the_route() -> None:
    """It has no body of its own."""
    renderer = EmbedRenderer(model="m.gguf", request_id="r")
    failed = Failed(problem=Draining("going down").as_problem())
    assert renderer.take([failed]) is None
    assert renderer.last is failed
