# SPDX-License-Identifier: GPL-3.0-only
"""Calls in answers over a real socket, in every dialect: only those that the model made, each whole."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from support.backend import Script
from support.http_server import serving
from support.tool_answers import DIALECTS, MAX_TOKENS, PARAMETERS, Answer, Dialect, events_of
from trio.testing import MockClock

from modeld.domain.request_events import Delta, Finished, FinishReason, Started, Stats, Usage
from modeld.runtime.ticket import Ticket

CALL = '<tool_call>{"name": "weather", "arguments": {"city":"Rome"}}</tool_call>'
BARE = '{"name": "weather", "arguments": {"city":"Rome"}}'
ROME = ("weather", '{"city":"Rome"}')
QUOTED = json.dumps({"name": "weather", "parameters": PARAMETERS})
CASES: dict[str, tuple[str, str, list[str | tuple[str, str]], str]] = {
    # the thought that the prompt ends with, the answer, what it is, and its end
    "a call": ("", f"I look. {CALL}", ["I look. ", ROME], "stop"),
    "a call without a marker": ("", BARE, [ROME], "stop"),
    "a name with a description": (
        "",
        '{"name": "weather", "description": "Tells it"}',
        ['{"name": "weather", "description": "Tells it"}'],
        "stop",
    ),
    "a definition": ("", QUOTED, [QUOTED], "stop"),
    "cut behind the name": ("", CALL[:29], [CALL[:29]], "length"),
    "cut in the arguments": ("", CALL[:50], [CALL[:50]], "length"),
    "cut behind a call": ("", CALL[:-5], [ROME], "length"),
    "a draft": (
        "",
        f"<think>Maybe {CALL}</think>{CALL}",
        [f"<think>Maybe {CALL}</think>", ROME],
        "stop",
    ),
    "a draft in a thought of the prompt": ("<think>", f"{CALL}</think>No.", [f"{CALL}</think>No."], "stop"),
    "no arguments": (
        "",
        CALL.replace('{"city":"Rome"}', "null"),
        [CALL.replace('{"city":"Rome"}', "null")],
        "stop",
    ),
    "arguments of no JSON": ("", CALL.replace('"}', '",}'), [CALL.replace('"}', '",}')], "stop"),
}


def saying(thought: str, text: str, reason: FinishReason) -> Script:
    async def script(ticket: Ticket) -> None:
        usage = Usage(prompt_tokens=5, completion_tokens=MAX_TOKENS)
        ticket.put(Started(usage, thought))
        for at in range(0, len(text), 3):
            ticket.put(Delta(text[at : at + 3]))
        ticket.put(Finished(reason=reason, usage=usage, stats=Stats()))

    return script


def compact(answer: Answer) -> list[str | tuple[str, str]]:
    return [
        part if isinstance(part, str) else (part[0], json.dumps(json.loads(part[1]), separators=(",", ":")))
        for part in answer.parts
    ]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
async def test_only_what_the_model_called_is_called(dialect: Dialect, stream: bool) -> None:
    """The parts of each answer in their order, and its end."""
    async with serving() as served, served.client() as client:
        for name, (thought, text, parts, end) in CASES.items():
            served.backend.script = saying(thought, text, FinishReason(end))
            reply = await client.post(dialect.path, json=dialect.asking(stream=stream))
            assert reply.status_code == 200, name
            found = (dialect.streamed if stream else dialect.whole)(reply.content)
            assert compact(found) == parts, name
            called = end == "stop" and any(isinstance(part, tuple) for part in parts)
            assert found.finish == dialect.finishes["calls" if called else end], name


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_each_of_several_choices_has_its_own_thought(stream: bool) -> None:
    """Also where both begin before there is text of either."""
    dialect = DIALECTS["chat"]

    async def script(ticket: Ticket) -> None:
        await saying("<think>" if ticket.id else "", CALL, FinishReason.STOP)(ticket)

    async with serving(script) as served, served.client() as client:
        reply = await client.post(dialect.path, json=dialect.asking(stream=stream, n=2))
    values = list(events_of(reply.content)) if stream else [reply.json()]
    finishes = {
        choice["index"]: choice["finish_reason"]
        for value in values
        for choice in value["choices"]
        if choice["finish_reason"]
    }
    assert finishes == {0: "tool_calls", 1: "stop"}


async def test_what_ends_before_any_text_has_its_status() -> None:
    """Also where it has begun, and where what clients see as an error is an end."""

    async def script(ticket: Ticket) -> None:
        ticket.put(Started(Usage()))
        await trio.testing.wait_all_tasks_blocked(0.05)
        ticket.put(Finished(reason=FinishReason.SHUTDOWN, usage=Usage(), stats=Stats()))

    async with serving(script) as served, served.client() as client:
        dialect = DIALECTS["chat"]
        reply = await client.post(dialect.path, json=dialect.asking(stream=True))
        assert reply.status_code == 503


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
@pytest.mark.slow
async def test_a_stream_is_kept_alive_while_a_call_is_held(dialect: Dialect, mock_clock: MockClock) -> None:
    """A long call tells nothing for minutes; signs of life come all the same, and the call behind them."""
    text = CALL.replace("Rome", "Rome" * 40)

    async def slowly(ticket: Ticket) -> None:
        mock_clock.rate = 60  # From here on: a slow machine must not run into the bounds of a request.
        ticket.put(Started(Usage()))
        for letter in text:
            ticket.put(Delta(letter))
            await trio.sleep(1)
        ticket.put(Finished(reason=FinishReason.STOP, usage=Usage(), stats=Stats()))

    async with serving(slowly) as served:
        raw = await served.connect()
        raw.patience_s = 1e6
        data = json.dumps(dialect.asking(stream=True)).encode()
        head = f"POST {dialect.path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        await raw.send(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        _, _, body = await raw.answer()
    signs: dict[str, Any] = {"ollama": b'"content":""},"done":false', "anthropic": b"event: ping"}
    sign = next((signs[name] for name in signs if dialect is DIALECTS[name]), b": still here")
    before, _, _ = body.partition(b"RomeRome")
    every_s = served.app.context.limits.stream_keep_alive_s
    assert before.count(sign) >= len(text) // every_s - 2
    [call] = dialect.streamed(body).calls
    assert json.loads(call[1]) == {"city": "Rome" * 40}
