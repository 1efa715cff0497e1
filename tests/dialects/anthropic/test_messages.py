# SPDX-License-Identifier: GPL-3.0-only
"""What the dialect of Anthropic takes, what it says about everything else, and what it writes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from support.parser_checks import VALUES, is_taken_or_refused

from modeld.dialects.anthropic import (
    MessageRenderer,
    ParsedMessages,
    error_answer,
    parse_count,
    parse_messages,
)
from modeld.dialects.anthropic.messages import MOST_CHARACTERS
from modeld.domain.request import ConstraintKind, Message, Order, Sampling, TemplateRequest
from modeld.domain.request_events import Delta, Failed, Finished, FinishReason, Started, Stats, Usage
from modeld.errors import (
    DoesNotFit,
    Draining,
    EngineFailed,
    InvalidGrammar,
    InvalidRequest,
    ModelNotFound,
    QueueFull,
)

USER = {"role": "user", "content": "Hello"}
WEATHER = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'


def body(*turns: object, **keys) -> bytes:
    return json.dumps({"model": "m", "max_tokens": 9, "messages": turns or [USER], **keys}).encode()


def parse(*turns: object, **keys) -> ParsedMessages:
    return parse_messages(body(*turns, **keys))


def refusal(*turns: object, **keys) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse(*turns, **keys)
    return caught.value.message


def finished(reason: FinishReason = FinishReason.STOP, tokens: int = 3, stop: str = "") -> Finished:
    usage = Usage(prompt_tokens=7, cached_tokens=2, completion_tokens=tokens)
    return Finished(reason=reason, usage=usage, stats=Stats(), stop=stop)


def stream(
    asked: ParsedMessages, *texts: str, last: Finished | Failed | None = None
) -> list[tuple[str, Any]]:
    """Names and data of the events of an answer."""
    renderer = MessageRenderer(asked, model="m.gguf", request_id="r1")
    events = [Started(Usage(prompt_tokens=7, cached_tokens=2)), *(Delta(text) for text in texts)]
    data = b"".join(renderer.lines([event]) for event in (*events, last or finished()))
    assert renderer.last is not None
    found: list[tuple[str, Any]] = []
    for block in data.decode().split("\n\n")[:-1]:
        name, value = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(value.removeprefix("data: "))))
    assert all(name == value["type"] for name, value in found)
    return found


def whole(asked: ParsedMessages, *texts: str, last: Finished | None = None) -> dict[str, Any]:
    renderer = MessageRenderer(asked, model="m.gguf", request_id="r1")
    assert renderer.take([Delta(text) for text in texts]) is None
    answer = renderer.take([last or finished()])
    assert answer is not None
    return json.loads(answer)


def test_a_message_takes_the_defaults_of_anthropic() -> None:
    """All tokens by their probability, no stream, and the bound that must be given."""
    asked = parse()
    request = asked.request
    assert (asked.order.model, asked.stream, request.max_tokens) == ("m", False, 9)
    assert request.messages == (Message(role="user", content="Hello"),)
    assert request.sampling == Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)


def test_every_key_reaches_the_order() -> None:
    """What means something here is not dropped; what means nothing is accepted."""
    asked = parse(
        temperature=0,
        top_p=0.5,
        top_k=3,
        stop_sequences=["a"],
        stream=True,
        system="S",
        metadata={"user_id": "u"},
        service_tier="auto",
        thinking={"type": "disabled"},
    )
    assert asked.stream
    assert asked.request.stop == ("a",)
    assert asked.request.sampling == Sampling(temperature=0, top_p=0.5, top_k=3, min_p=0.0)
    assert asked.request.messages[0] == Message(role="system", content="S")
    nulls = dict.fromkeys(["system", "tools", "tool_choice", "stop_sequences", "temperature", "metadata"])
    assert parse(**nulls) == parse()


def test_turns_of_one_role_are_one() -> None:
    """Templates want roles to alternate. Text in blocks is text, thoughts are left out."""
    blocks = [
        {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "b"},
    ]
    thought = [
        {"type": "thinking", "thinking": "hm", "signature": "x"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "text", "text": "d"},
    ]
    asked = parse(
        {"role": "user", "content": blocks},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": thought},
        USER,
        system=[{"type": "text", "text": "S"}],
    )
    turns = [(turn.role, turn.content) for turn in asked.request.messages]
    assert turns == [("system", "S"), ("user", "a\nb\nc"), ("assistant", "d"), ("user", "Hello")]


def test_results_of_functions_are_turns_of_their_own() -> None:
    """They carry the name of their function, and come before the text alongside them."""
    use = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "sun"}]}
    failed = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "no", "is_error": True}
    text = {"type": "text", "text": "and?"}
    _, called, answered, error, asks = parse(
        USER, {"role": "assistant", "content": [use]}, {"role": "user", "content": [text, result, failed]}
    ).request.messages
    [call] = called.tool_calls
    assert (call.id, call.name, json.loads(call.arguments)) == ("toolu_1", "weather", {"city": "Rome"})
    assert (answered.role, answered.name, answered.content) == ("tool", "weather", "sun")
    assert (error.content, asks.content) == ("Error: no", "and?")


def test_choices_of_functions() -> None:
    """Forced ones by a constraint; with a schema the text is one of both; `none` offers none."""
    auto = parse(tools=[WEATHER])
    assert [tool.name for tool in auto.request.tools] == ["weather"]
    assert auto.request.constraint is None
    assert parse(tools=[WEATHER], tool_choice={"type": "none"}).request.tools == ()
    named = {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}
    for choice in ({"type": "any"}, named):
        forced = parse(tools=[WEATHER], tool_choice=choice)
        assert forced.request.constraint is not None
        assert [tool.name for tool in forced.request.constraint.tools] == ["weather"]
    assert forced.one_call
    schema = {"format": {"type": "json_schema", "schema": {"type": "object", "title": "T"}}}
    plain = parse(output_config=schema).request.constraint
    assert plain is not None
    assert (plain.kind, json.loads(plain.text)["title"]) == (ConstraintKind.JSON_SCHEMA, "T")
    both = parse(tools=[WEATHER], output_config=schema).request.constraint
    assert both is not None
    assert (both.kind, json.loads(both.text)["title"]) == (ConstraintKind.CALL, "T")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"max_tokens": 0}, "`max_tokens` must be a whole number >= 1"),
        ({"max_tokens": None}, "`max_tokens` must be a whole number"),
        ({"temperature": 1.5}, "`temperature` must be a number <= 1"),
        ({"model": ""}, "`model` must be a string"),
        ({"messages": []}, "`messages` must be a list"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, '`thinking` of type "enabled"'),
        ({"output_config": {"effort": "high"}}, "`output_config.effort` is not served"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "runs on Anthropic's servers"),
        ({"tools": [{"name": "x"}]}, '`tools[0]` lacks the key "input_schema"'),
        ({"tools": [{"name": "x", "input_schema": []}]}, "`tools[0].parameters` must be an object"),
        ({"tools": [WEATHER, WEATHER]}, "two functions"),
        ({"tool_choice": {"type": "any"}}, "there are no `tools`"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, '"x", which is not among'),
        ({"tools": [WEATHER], "tool_choice": {"type": "some"}}, "must be one of any, auto, none, tool"),
        ({"container": "c"}, 'unknown key "container"'),
        ({"prompt": "x"}, 'unknown key "prompt"'),
        ({"system": [{"type": "image"}]}, "`system[0].type` must be one of text"),
    ],
)
def test_what_is_not_served_is_named(keys: dict, said: str) -> None:
    """A sentence with the key, and what to do."""
    assert said in refusal(**keys)


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ({"role": "tool", "content": "x"}, "`messages[0].role` must be one of assistant, system, user"),
        ({"role": "user", "content": ""}, "no text"),
        ({"role": "assistant", "content": "x"}, "does not continue one"),
        (
            {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://x"}}]},
            "`messages[0].content[0]` is an image, and no model has vision",
        ),
        ({"role": "user", "content": [{"type": "document", "source": {}}]}, "is a document"),
        ({"role": "user", "content": [{"type": "audio"}]}, "`messages[0].content[0].type` must be one of"),
        ({"role": "user", "content": [{"text": "x"}]}, '`messages[0].content[0]` lacks the key "type"'),
        ({"role": "user", "content": [{"type": "text"}]}, 'lacks the key "text"'),
        ({"role": "user", "content": 7}, "`messages[0].content` must be"),
        (
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "x"}]},
            "is the id of no `tool_use`",
        ),
        (
            {"role": "user", "content": [{"type": "tool_use", "id": "t", "name": "x", "input": {}}]},
            "belongs into a turn of role assistant",
        ),
    ],
)
def test_bad_turns_are_told(turn: dict, said: str) -> None:
    """Which it is, and what is wrong with it."""
    assert said in refusal(turn)


def test_counting_takes_what_messages_take() -> None:
    """The same prompt, without what is only for an answer."""
    order = parse_count(json.dumps({"model": "m", "messages": [USER], "tools": [WEATHER]}).encode())
    assert isinstance(order.request, TemplateRequest)
    assert order.request.count
    assert order.request.messages == parse().request.messages
    long = {"role": "user", "content": "x" * (MOST_CHARACTERS + 1)}
    with pytest.raises(InvalidRequest, match=f"send {MOST_CHARACTERS} at most"):
        parse_count(json.dumps({"model": "m", "messages": [long]}).encode())


def test_events_come_in_their_order() -> None:
    """As Anthropic's own server sends them."""
    found = stream(parse(stream=True), "Hel", "lo")
    assert [name for name, _ in found] == [
        *("message_start", "content_block_start", "ping", "content_block_delta", "content_block_delta"),
        *("content_block_stop", "message_delta", "message_stop"),
    ]
    start = found[0][1]["message"]
    assert (start["id"], start["model"], start["content"]) == ("msg_r1", "m.gguf", [])
    assert start["stop_reason"] is None
    assert (start["usage"]["input_tokens"], start["usage"]["cache_read_input_tokens"]) == (5, 2)
    assert found[1][1] == {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "text", "text": ""},
    }
    assert found[3][1]["delta"] == {"type": "text_delta", "text": "Hel"}
    assert found[6][1]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert found[6][1]["usage"]["output_tokens"] == 3


def test_calls_are_blocks_of_their_own() -> None:
    """Text before, then the call with its arguments in parts; whole as blocks in the same order."""
    asked = parse(tools=[WEATHER], stream=True)
    found = stream(asked, "Let me see. ", CALL[:30], CALL[30:])
    starts = [value["content_block"] for name, value in found if name == "content_block_start"]
    assert [block["type"] for block in starts] == ["text", "tool_use"]
    assert starts[1]["id"].startswith("toolu_")
    assert (starts[1]["name"], starts[1]["input"]) == ("weather", {})
    deltas = [value["delta"] for name, value in found if name == "content_block_delta"]
    arguments = "".join(delta.get("partial_json", "") for delta in deltas)
    assert json.loads(arguments) == {"city": "Rome"}
    assert [value["index"] for name, value in found if name == "content_block_stop"] == [0, 1]
    assert found[-2][1]["delta"]["stop_reason"] == "tool_use"
    answer = whole(asked, "Let me see. ", CALL)
    text, call = answer["content"]
    assert (text["type"], text["text"]) == ("text", "Let me see. ")
    assert (call["id"], call["input"]) == (starts[1]["id"], {"city": "Rome"})
    assert answer["stop_reason"] == "tool_use"


def test_calls_behind_the_first_can_be_left_out() -> None:
    """`disable_parallel_tool_use` is kept whatever the model says."""
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    alone = whole(parse(tools=[WEATHER], tool_choice=choice), CALL + CALL)
    assert len(alone["content"]) == 1
    assert len(whole(parse(tools=[WEATHER]), CALL + CALL)["content"]) == 2


@pytest.mark.parametrize(
    ("last", "reason", "sequence"),
    [
        (finished(), "end_turn", None),
        (finished(stop="\n\n"), "stop_sequence", "\n\n"),
        (finished(FinishReason.LENGTH, tokens=9), "max_tokens", None),
        (finished(FinishReason.LENGTH, tokens=8), "model_context_window_exceeded", None),
    ],
)
def test_reasons(last: Finished, reason: str, sequence: str | None) -> None:
    """Each is one of Anthropic's, streamed or not."""
    answer = whole(parse(), "x", last=last)
    assert (answer["stop_reason"], answer["stop_sequence"]) == (reason, sequence)
    delta = stream(parse(stream=True), "x", last=last)[-2][1]["delta"]
    assert delta == {"stop_reason": reason, "stop_sequence": sequence}


def test_a_silent_model_gives_an_empty_message() -> None:
    """Without a block, and legal."""
    assert whole(parse())["content"] == []
    assert [name for name, _ in stream(parse(stream=True))] == [
        *("message_start", "message_delta", "message_stop")
    ]


@pytest.mark.parametrize(
    ("last", "kind"),
    [
        (Failed(problem=EngineFailed("died").as_problem()), "api_error"),
        (finished(FinishReason.SHUTDOWN), "overloaded_error"),
        (finished(FinishReason.TIMEOUT), "timeout_error"),
    ],
)
def test_what_breaks_ends_with_an_error(last: Finished | Failed, kind: str) -> None:
    """In the stream as an event; a whole answer has none, and becomes a refusal."""
    name, value = stream(parse(stream=True), "x", last=last)[-1]
    assert (name, value["error"]["type"], value["request_id"]) == ("error", kind, "r1")
    renderer = MessageRenderer(parse(), model="m", request_id="r1")
    assert renderer.take([Delta("x"), last]) is None
    assert isinstance(renderer.last, Failed)


def test_a_cut_answer_does_not_blame_a_shutdown_alone() -> None:
    """An operator who unloads a model by force cuts it, too: clients are told of both."""
    _, value = stream(parse(stream=True), "x", last=finished(FinishReason.SHUTDOWN))[-1]
    assert "unloaded by force" in value["error"]["message"]


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidRequest("x"), 400, "invalid_request_error"),
        (InvalidGrammar("x"), 400, "invalid_request_error"),
        (ModelNotFound("x"), 404, "not_found_error"),
        (QueueFull("x"), 529, "overloaded_error"),
        (Draining("x"), 529, "overloaded_error"),
        (DoesNotFit("x"), 400, "invalid_request_error"),
        (EngineFailed("x"), 500, "api_error"),
    ],
)
def test_errors_have_anthropics_types(error: Any, status: int, kind: str) -> None:
    """And its statuses: what is worth another try is one that clients try again."""
    found, data = error_answer(error.as_problem(), "r1")
    assert found == status
    assert json.loads(data) == {
        "type": "error",
        "error": {"type": kind, "message": "x"},
        "request_id": "r1",
    }


@given(VALUES)
@settings(max_examples=50)
def test_no_body_breaks_the_parsers(value: object) -> None:
    """Whatever comes is taken or refused."""
    bodies = [value, {"model": "m", "max_tokens": 1, "messages": value}]
    bodies += [{"model": "m", "max_tokens": 1, "messages": [USER], key: value} for key in ("system", "tools")]
    bodies.append({"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": [value]}]})
    for one in bodies:
        assert is_taken_or_refused(parse_messages, one, ParsedMessages)
        assert is_taken_or_refused(parse_count, one, Order)
