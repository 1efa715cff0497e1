# SPDX-License-Identifier: GPL-3.0-only
"""The paths of Anthropic over a real socket with a scripted runtime behind them, and its client's retries."""

from __future__ import annotations

import json

import anthropic
import pytest
import trio
from support.backend import TINY, finish, start_events, text_events
from support.http_server import abandoned, serving

from modeld.domain.request import TemplateRequest
from modeld.domain.request_events import Delta, Failed, Started, Templated
from modeld.errors import QueueFull
from modeld.runtime.ticket import Ticket

BODY = {"model": "tiny-q4", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello"}]}


def request_bytes(**keys: object) -> bytes:
    data = json.dumps({**BODY, **keys}).encode()
    head = "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def names_of(data: bytes) -> list[str]:
    return [line[7:].decode() for line in data.splitlines() if line.startswith(b"event: ")]


async def test_a_message_is_whole_or_a_stream() -> None:
    """Versions and betas that the client names are accepted; the id is in a header."""
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "x", "X-Request-ID": "abc"}
    async with serving(text_events("Hel", "lo")) as served, served.client(headers=headers) as client:
        reply = await client.post("/v1/messages?beta=true", json=BODY)
        assert reply.json()["content"] == [{"type": "text", "text": "Hello"}]
        assert (reply.json()["id"], reply.headers["request-id"]) == ("msg_abc", "abc")
        stream = await client.post("/v1/messages", json={**BODY, "stream": True})
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert names_of(stream.content)[0] == "message_start"
        assert names_of(stream.content)[-1] == "message_stop"
        start = json.loads(stream.content.splitlines()[1].removeprefix(b"data: "))
        assert start["message"]["usage"]["input_tokens"] == 5


async def test_silence_carries_pings() -> None:
    """Before there is a block, and in it."""

    async def script(ticket: Ticket) -> None:
        ticket.put(Started(usage=ticket.usage))
        ticket.put(Delta(text="x"))

    async with serving(script, stream_keep_alive_s=0.01) as served:
        raw = await served.connect()
        await raw.send(request_bytes(stream=True))
        head = await raw.read_until(b"event: ping")
        assert names_of(head)[:2] == ["message_start", "content_block_start"]
        await raw.read_until(b"event: ping")
        await raw.read_until(b"event: ping")
        finish(await served.backend.ticket())
        await raw.read_until(b"message_stop")


@pytest.mark.parametrize("events", range(4))
async def test_a_stream_that_is_abandoned_frees_its_slot(events: int) -> None:
    """After each of its events."""
    async with serving(start_events(events)) as served:
        until = b'"text":"a"' if events > 1 else b""
        ticket = await abandoned(served, request_bytes(stream=True), until)
        assert ticket.closed


async def test_tokens_are_counted_without_a_slot() -> None:
    """The prompt of the template, counted; the answer is a number."""

    async def script(ticket: Ticket) -> None:
        ticket.put(Templated("<s>Hello", 3))
        finish(ticket)

    async with serving(script) as served, served.client() as client:
        body = {key: value for key, value in BODY.items() if key != "max_tokens"}
        reply = await client.post("/v1/messages/count_tokens", json=body)
        assert reply.json() == {"input_tokens": 3}
        order = served.backend.tickets[0].order
        assert isinstance(order.request, TemplateRequest)
        assert order.needs_no_slot


@pytest.mark.parametrize("stream", [True, False])
async def test_refusals_have_their_status_and_envelope(stream: bool) -> None:
    """529 and Retry-After; what is wrong with a request or a path is told alike."""

    async def fails(ticket: Ticket) -> None:
        ticket.put(Failed(problem=QueueFull("full", retry_after_s=7).as_problem()))

    async with serving(fails) as served, served.client() as client:
        reply = await client.post("/v1/messages", json={**BODY, "stream": stream})
        assert (reply.status_code, reply.json()["error"]["type"]) == (529, "overloaded_error")
        assert reply.headers["retry-after"] == "7"
        assert reply.json()["request_id"] == reply.headers["x-request-id"]
        missing = await client.post("/v1/messages", json={**BODY, "model": "nobody", "stream": stream})
        assert missing.status_code == 404
        assert missing.json()["error"] == {
            "type": "not_found_error",
            "message": "no model is called nobody; see GET /v1/models",
        }
        wrong = await client.get("/v1/messages")
        assert (wrong.status_code, wrong.json()["type"]) == (405, "error")
        typeless = await client.post("/v1/messages", content=b"{}")
        assert (typeless.status_code, typeless.json()["error"]["type"]) == (415, "invalid_request_error")


@pytest.mark.slow
async def test_the_client_tries_again_when_it_was_told_to() -> None:
    """It waits as long as Retry-After says, and then has its answer; without retries it raises."""
    async with serving(text_events("Hello")) as served:
        served.backend.refusals = [QueueFull("full", retry_after_s=1) for _ in range(2)]
        async with anthropic.AsyncAnthropic(base_url=served.url, api_key="x", max_retries=0) as hasty:
            with pytest.raises(anthropic.InternalServerError) as caught:
                await hasty.messages.create(**BODY)
            assert caught.value.status_code == 529
            began = trio.current_time()
            message = await hasty.with_options(max_retries=1).messages.create(**BODY)
            assert trio.current_time() - began >= 1
            assert message.content[0].text == "Hello"
            assert served.backend.refusals == []


async def test_the_client_lists_models() -> None:
    """The paths are OpenAI's, too; the header of a version tells who asks."""
    async with serving() as served:
        async with anthropic.AsyncAnthropic(base_url=served.url, api_key="x", max_retries=0) as found:
            page = await found.models.list()
            assert [model.id for model in page.data] == [TINY.id]
            assert (page.first_id, page.last_id, page.has_more) == (TINY.id, TINY.id, False)
            one = await found.models.retrieve("tiny-q4")
            assert (one.id, one.type, one.display_name) == (TINY.id, "model", "Tiny")
            assert one.created_at.year == 2023
            with pytest.raises(anthropic.NotFoundError):
                await found.models.retrieve("nobody")
        async with served.client() as client:
            assert (await client.get("/v1/models")).json()["object"] == "list"
