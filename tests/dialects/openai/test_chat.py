# SPDX-License-Identifier: GPL-3.0-only
"""Bodies of OpenAI's API: what they become, and with which sentence the others are refused."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from modeld.dialects.openai import ParsedRequest, parse_chat, parse_completion, parse_embeddings
from modeld.domain.request import ConstraintKind, GenerateRequest
from modeld.errors import InvalidRequest

USER: dict[str, Any] = {"role": "user", "content": "Hi"}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "description": "d", "parameters": {"type": "object", "properties": {}}},
}
TIME: dict[str, Any] = {"type": "function", "function": {"name": "time"}}


def chat(**body: Any) -> ParsedRequest:
    return parse_chat(json.dumps({"messages": [USER]} | body).encode())


def asked_for(asked: ParsedRequest) -> GenerateRequest:
    request = asked.orders[0].request
    assert isinstance(request, GenerateRequest)
    return request


def test_what_is_left_out_is_modelds_default() -> None:
    """Sampling as everywhere, one choice, no stream; text may fill a slot's share of the cells."""
    asked = chat()
    request = asked_for(asked)
    assert (asked.n, asked.stream, len(asked.orders), asked.orders[0].model) == (1, False, 1, None)
    assert request.sampling == GenerateRequest().sampling
    assert request.max_tokens == 0


def test_null_means_the_default() -> None:
    """Clients write null for what they do not set, also for keys that are not supported."""
    keys = (
        *("temperature", "top_p", "n", "stop", "seed", "logit_bias", "logprobs", "top_logprobs", "tools"),
        *(
            "tool_choice",
            "response_format",
            "max_tokens",
            "max_completion_tokens",
            "stream",
            "stream_options",
        ),
        *("user", "metadata", "store", "audio", "reasoning_effort", "functions", "model", "service_tier"),
    )
    assert chat(**dict.fromkeys(keys)) == chat()


def test_every_key_reaches_the_engine() -> None:
    """Each under the name that the core has for it."""
    asked = chat(
        model="m", temperature=1.5, top_p=0, presence_penalty=-2, frequency_penalty=2, seed=-1, stop="x", n=2,
        logit_bias={"5": -100}, max_completion_tokens=7, logprobs=True, top_logprobs=3, top_k=9, min_p=0.5,
        repeat_penalty=1.5, ignore_eos=True, timeout="5s", priority="low", keep_alive="1m", user="u",
        stream=True, stream_options={"include_usage": True},
    )  # fmt: skip
    request = asked_for(asked)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (1.5, 0, 9, 0.5)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repeat_penalty) == (-2, 2, 1.5)
    assert (sampling.logit_bias, request.stop, request.max_tokens) == (((5, -100.0),), ("x",), 7)
    assert (request.logprobs, request.ignore_eos) == (3, True)
    assert (asked.stream, asked.include_usage, asked.n) == (True, True, 2)
    terms = asked.orders[1]
    assert (terms.model, terms.timeout_s, terms.priority, terms.keep_alive_s) == ("m", 5, "low", 60)
    seeds = [
        order.request.sampling.seed for order in asked.orders if isinstance(order.request, GenerateRequest)
    ]
    assert seeds[1] == (seeds[0] + 1) % (2**32 - 1)


def test_messages_in_every_form() -> None:
    """Parts are put together, roles have the names that templates know, calls and results keep their ids."""
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    request = asked_for(
        chat(
            messages=[
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "audio": None},
                {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
                {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            ]
        )
    )
    assert [(it.role, it.content) for it in request.messages] == [
        ("system", "Be brief."), ("user", "a\nb"), ("assistant", ""), ("tool", "sunny"), ("assistant", "no"),
    ]  # fmt: skip
    assert request.messages[2].tool_calls[0].name == "weather"
    assert request.messages[3].tool_call_id == "c1"


@pytest.mark.parametrize(
    ("choice", "told", "bound"),
    [
        (None, 2, []),
        ("auto", 2, []),
        ("none", 0, []),
        ("required", 2, ["weather", "time"]),
        ({"type": "function", "function": {"name": "time"}}, 2, ["time"]),
    ],
)
def test_choices_of_tools(choice: object, told: int, bound: list[str]) -> None:
    """None tells the model of no tool; required and a name bind the text to a call."""
    request = asked_for(chat(tools=[WEATHER, TIME], tool_choice=choice))
    assert len(request.tools) == told
    tools = () if request.constraint is None else request.constraint.tools
    assert [tool.name for tool in tools] == bound


def test_formats_of_the_answer() -> None:
    """A schema, any object, or either that or a call."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    constraint = asked_for(chat(response_format=wanted)).constraint
    assert constraint is not None
    assert (constraint.kind, json.loads(constraint.text)) == (ConstraintKind.JSON_SCHEMA, schema)
    assert constraint.strict
    constraint = asked_for(chat(response_format={"type": "json_object"})).constraint
    assert constraint is not None
    assert json.loads(constraint.text) == {"type": "object"}
    assert asked_for(chat(response_format={"type": "text"})).constraint is None
    constraint = asked_for(chat(response_format=wanted, tools=[TIME])).constraint
    assert constraint is not None
    assert (constraint.kind, json.loads(constraint.text)) == (ConstraintKind.CALL, schema)
    assert constraint.strict
    assert [tool.name for tool in constraint.tools] == ["time"]


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
BAD_CHATS: list[tuple[dict[str, Any], str]] = [
    ({"temperature": 101}, "`temperature` must be"),
    ({"temperature": -0.1}, "`temperature` must be"),
    ({"top_p": 1.1}, "`top_p`"),
    ({"presence_penalty": 100.5}, "`presence_penalty`"),
    ({"frequency_penalty": -101}, "`frequency_penalty`"),
    ({"n": 0}, "`n`"),
    ({"n": 1000}, "`n`"),
    ({"stop": ["a"] * 129}, "`stop`"),
    ({"logit_bias": {"x": 1}}, "no token id"),
    ({"logit_bias": {"1": 101}}, "`logit_bias"),
    ({"max_tokens": 0}, "`max_tokens`"),
    ({"max_tokens": 1, "max_completion_tokens": 2}, "mean the same"),
    ({"top_logprobs": 2}, "needs `logprobs`"),
    ({"logprobs": True, "top_logprobs": 21}, "`top_logprobs`"),
    ({"stream_options": {"include_usage": True}}, "are for streams"),
    ({"store": True}, "`store` is not supported"),
    ({"audio": {}}, "`audio` is not supported"),
    ({"modalities": ["audio"]}, "`modalities"),
    ({"reasoning_effort": "low"}, "`reasoning_effort` is not supported"),
    ({"functions": []}, "`functions` is not supported"),
    ({"metadata": {"a": "b"}}, "`metadata` is not supported"),
    ({"web_search_options": {}}, "`web_search_options` is not supported"),
    ({"temprature": 1}, 'unknown key "temprature"; did you mean'),
    ({"messages": []}, "`messages` is empty"),
    ({"messages": None}, "`messages` must be"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages"),
    ({"messages": [{"role": "user"}]}, "lacks its `content`"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "is an image, and no model here has vision"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}, "is audio"),
    ({"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]}, "is a file"),
    ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "content"),
    ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "type"),
    ({"messages": [{"role": "user", "content": {"text": "x"}}]}, "content"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [
        {"id": "c", "function": {"name": "f", "arguments": "{}"}}]}]}, "for an assistant's turn"),
    ({"tools": [{"type": "web_search"}]}, "tools"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "letters"),
    ({"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]}, "must be an object"),
    ({"tools": [{"type": "function", "function": {"name": "a", "parameters": "x"}}]}, "must be an object"),
    ({"tools": [TIME, TIME]}, "two functions"),
    ({"tool_choice": "required"}, "there are no `tools`"),
    ({"tools": [TIME], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "not among"),
    ({"tools": [TIME], "tool_choice": "sometimes"}, "tool_choice"),
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "lacks its `schema`"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": 3}}}, "object"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "says"), BAD_CHATS, ids=[str(body)[:60] for body, _ in BAD_CHATS])
def test_bad_chats_are_told_why(body: dict[str, Any], says: str) -> None:
    """A sentence names the key; nothing is passed over in silence."""
    with pytest.raises(InvalidRequest) as caught:
        chat(**body)
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"prompt": "x", "suffix": "y"}, "`suffix` is not supported"),
        ({"prompt": "x", "best_of": 2}, "not ranked"),
        ({"prompt": "x", "logprobs": 6}, "`logprobs`"),
        ({"prompt": "x", "echo": True, "logprobs": 1}, "do not go together"),
        ({"prompt": [1, 2], "echo": True}, "give the `prompt` as text"),
        ({"prompt": []}, "`prompt`"),
        ({"prompt": ""}, "`prompt` is empty"),
        ({"prompt": ["a", ""]}, "`prompt[1]` is empty"),
        ({"prompt": [1, "a"]}, "mixes token ids"),
        ({"prompt": [-1]}, "`prompt"),
        ({"prompt": ["a"] * 100, "n": 2}, "200 choices"),
        ({"prompt": "x", "messages": []}, "unknown key"),
        ({}, "lacks the key"),
    ],
)
def test_bad_completions_are_told_why(body: dict[str, Any], says: str) -> None:
    """The old endpoint has keys of its own."""
    with pytest.raises(InvalidRequest) as caught:
        parse_completion(json.dumps(body).encode())
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("parse", "body"),
    [
        (parse_chat, b'{"messages": [{"role": "user", "content": "\\ud83d"}]}'),
        (parse_completion, b'{"prompt": "\\ud83d"}'),
        (parse_embeddings, b'{"input": "\\ud83d"}'),
    ],
)
def test_half_a_character_is_refused(parse: Callable[[bytes], object], body: bytes) -> None:
    """An escape that is half of a surrogate pair is worth a sentence of its own."""
    with pytest.raises(InvalidRequest, match="half of a character"):
        parse(body)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"messages": ' + b"[" * 100_000, b"\xff"])
def test_what_is_no_json_is_refused(body: bytes) -> None:
    """Empty, broken, nested without end, not UTF-8."""
    for parse in (parse_chat, parse_completion, parse_embeddings):
        with pytest.raises(InvalidRequest):
            parse(body)


@pytest.mark.slow
def test_ten_thousand_messages_are_read_at_once() -> None:
    """A long conversation costs milliseconds, whatever the model says to its length."""
    body = json.dumps({"messages": [USER, {"role": "assistant", "content": "Hello"}] * 5000}).encode()
    began = time.process_time()
    assert len(asked_for(parse_chat(body)).messages) == 10_000
    assert time.process_time() - began < 5
