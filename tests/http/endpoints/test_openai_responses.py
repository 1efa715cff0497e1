# SPDX-License-Identifier: GPL-3.0-only
"""`/v1/responses` over a real socket, through OpenAI's own client, with a scripted runtime behind it."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from support.backend import finish, text_events
from support.http_server import serving
from support.openai_api import chat_bytes, chunks_of, client_for

from modeld.domain.request_events import Delta, Failed, FinishReason
from modeld.errors import EngineFailed, QueueFull
from modeld.runtime.ticket import Ticket

pytestmark = pytest.mark.filterwarnings(
    # The client does not close its own generators behind the last event.
    "ignore:Async generator '(openai|httpx):ResourceWarning"
)
MODEL = "tiny-q4"
WEATHER: Any = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
TEXT_EVENTS = [
    *("output_item.added", "content_part.added", "output_text.delta", "output_text.done"),
    *("content_part.done", "output_item.done"),
]
CALL_EVENTS = [
    *("output_item.added", "function_call_arguments.delta", "function_call_arguments.done"),
    "output_item.done",
]


async def test_an_answer_comes_whole() -> None:
    """The text, what was asked for, and the counts; nothing is stored."""
    async with serving(text_events("Hel", "lo")) as served, client_for(served) as client:
        answer = await client.responses.create(
            model=MODEL, input="Hi", instructions="Be brief.", metadata={"a": "b"}, temperature=0.5
        )
        assert (answer.output_text, answer.status, answer.model) == ("Hello", "completed", "tiny-q4.gguf")
        assert (answer.instructions, answer.metadata, answer.temperature) == ("Be brief.", {"a": "b"}, 0.5)
        assert answer.usage is not None
        assert (answer.usage.input_tokens, answer.usage.output_tokens) == (5, 2)
        messages = served.backend.tickets[0].order.request.messages
        assert [(it.role, it.content) for it in messages] == [("system", "Be brief."), ("user", "Hi")]


def unrepeated(kinds: list[str]) -> list[str]:
    """The kinds of events, those of one kind that follow each other once."""
    return [kind for at, kind in enumerate(kinds) if at == 0 or kinds[at - 1] != kind]


async def test_events_come_in_their_order() -> None:
    """A text and a call, each opened, written and closed; numbers count up, and the last event has it all."""
    parts = [CALL[at : at + 7] for at in range(0, len(CALL), 7)]
    async with serving(text_events("I ", "look.", *parts)) as served, client_for(served) as client:
        stream = await client.responses.create(model=MODEL, input="Hi", tools=[WEATHER], stream=True)
        events = [event async for event in stream]
        kinds = [event.type.removeprefix("response.") for event in events]
        assert unrepeated(kinds) == ["created", "in_progress", *TEXT_EVENTS, *CALL_EVENTS, "completed"]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        last = events[-1]
        assert last.type == "response.completed"
        assert last.response.output_text == "I look."
        call = last.response.output[1]
        assert call.type == "function_call"
        assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Rome"})
        deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
        assert deltas == [call.arguments]


async def test_what_came_back_may_be_sent_again() -> None:
    """Output of one response is input of the next: calls go to their turn, results name their call."""
    async with serving(text_events("I look.", CALL, CALL)) as served, client_for(served) as client:
        answer = await client.responses.create(model=MODEL, input="Hi", tools=[WEATHER])
        calls = [item for item in answer.output if item.type == "function_call"]
        assert len(calls) == 2
        turns: Any = [
            {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            *(item.model_dump(exclude_none=True) for item in answer.output),
            *({"type": "function_call_output", "call_id": call.call_id, "output": "sunny"} for call in calls),
        ]
        await client.responses.create(model=MODEL, input=turns, tools=[WEATHER])
        messages = served.backend.tickets[1].order.request.messages
        assert [it.role for it in messages] == ["user", "assistant", "tool", "tool"]
        assert [call.name for call in messages[1].tool_calls] == ["weather", "weather"]
        assert [it.tool_call_id for it in messages[2:]] == [call.call_id for call in calls]


async def test_only_the_first_call_counts_where_no_more_are_wanted() -> None:
    """With `parallel_tool_calls` false the others are left out."""
    async with serving(text_events(CALL, CALL)) as served, client_for(served) as client:
        answer = await client.responses.create(
            model=MODEL, input="Hi", tools=[WEATHER], parallel_tool_calls=False
        )
        assert len(answer.output) == 1


async def test_an_answer_without_text_is_an_empty_message() -> None:
    """Clients look for a message."""
    async with serving(text_events()) as served, client_for(served) as client:
        answer = await client.responses.create(model=MODEL, input="Hi")
        assert (answer.output_text, len(answer.output)) == ("", 1)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_ran_out_is_incomplete(stream: bool) -> None:
    """Status, reason, and the event of that name."""

    async def script(ticket: Ticket) -> None:
        ticket.put(Delta(text="x"))
        finish(ticket, FinishReason.LENGTH)

    async with serving(script) as served, client_for(served) as client:
        if stream:
            events = [
                event async for event in await client.responses.create(model=MODEL, input="Hi", stream=True)
            ]
            assert events[-1].type == "response.incomplete"
            answer = events[-1].response
        else:
            answer = await client.responses.create(model=MODEL, input="Hi")
        assert answer.status == "incomplete"
        assert answer.incomplete_details is not None
        assert answer.incomplete_details.reason == "max_output_tokens"


async def test_a_failure_in_the_middle_is_an_event() -> None:
    """What is open is closed, and `response.failed` has the error and the text so far."""

    async def script(ticket: Ticket) -> None:
        ticket.put(Delta(text="so far"))
        ticket.put(Failed(problem=EngineFailed("it died").as_problem()))

    async with serving(script) as served, client_for(served) as client:
        events = [
            event async for event in await client.responses.create(model=MODEL, input="Hi", stream=True)
        ]
        last = events[-1]
        assert last.type == "response.failed"
        assert last.response.error is not None
        assert last.response.error.message == "it died"
        assert last.response.output_text == "so far"
        with pytest.raises(openai.InternalServerError, match="it died"):
            await client.responses.create(model=MODEL, input="Hi")


async def test_a_refusal_before_the_first_text_has_its_status() -> None:
    """Also where a stream was asked for."""

    async def script(ticket: Ticket) -> None:
        ticket.put(Failed(problem=QueueFull("no place").as_problem()))

    async with serving(script) as served, client_for(served) as client:
        with pytest.raises(openai.RateLimitError):
            await client.responses.create(model=MODEL, input="Hi", stream=True)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"background": True}, "`background` is not supported"),
    ({"previous_response_id": "resp_1"}, "`previous_response_id` is not supported"),
    ({"conversation": "c"}, "`conversation` is not supported"),
    ({"temperature": 101}, "`temperature`"),
    ({"n": 2}, 'unknown key "n"'),
    ({"tools": [{"type": "function", "name": "f", "parameters": 3}]}, "must be an object"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "no model here has",
    ),
    ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]}, "is a file"),
    ({"input": [{"role": "robot", "content": "x"}]}, "role"),
    ({"input": [{"role": "user"}]}, "lacks its `content`"),
    ({"input": [{"type": "function_call", "name": "f"}]}, "lacks its `call_id`"),
    ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "lacks its `output`"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "refers to an item"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "lacks its `schema`"),
]


async def test_bad_bodies_are_told_why() -> None:
    """Each with a sentence that names the key, in OpenAI's envelope."""
    async with serving() as served, served.client() as client:
        for body, says in BAD:
            reply = await client.post("/v1/responses", json={"input": "Hi"} | body)
            assert reply.status_code == 400, body
            assert says in reply.json()["error"]["message"], body
        assert served.backend.tickets == []


async def test_a_format_binds_the_text() -> None:
    """A schema becomes the constraint of the generation, and comes back in the answer."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    wanted: Any = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
    async with serving(text_events("{}")) as served, client_for(served) as client:
        answer = await client.responses.create(model=MODEL, input="Hi", text=wanted)
        constraint = served.backend.tickets[0].order.request.constraint
        assert json.loads(constraint.text) == schema
        assert answer.text is not None
        assert answer.text.format is not None
        assert answer.text.format.type == "json_schema"


@pytest.mark.parametrize("kind", ["created", "in_progress", *TEXT_EVENTS[:3]])
async def test_a_stream_may_be_abandoned_at_each_event(kind: str) -> None:
    """Whatever event was read last, the slot is free afterwards."""
    async with serving() as served:
        raw = await served.connect()
        await raw.send(chat_bytes("/v1/responses", stream=True))
        ticket = await served.backend.ticket()
        ticket.put(Delta(text="one"))
        await raw.read_until(f"event: response.{kind}\n".encode())
        raw.stream.socket.close()
        await served.backend.wait_closed()
        assert served.backend.closed == [ticket]


async def test_events_are_named_twice() -> None:
    """In the `event` line, as server-sent events have it, and as `type`."""
    async with serving(text_events("x")) as served, served.client() as client:
        reply = await client.post("/v1/responses", json={"input": "Hi", "stream": True})
        names = [line[7:] for line in reply.text.splitlines() if line.startswith("event: ")]
        assert names == [event["type"] for event in chunks_of(reply.content)]
        assert names[-1] == "response.completed"
