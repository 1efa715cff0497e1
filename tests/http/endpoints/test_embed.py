# SPDX-License-Identifier: GPL-3.0-only
"""`POST /embed` over a real socket."""

from __future__ import annotations

import struct

import pytest
from support.backend import finish
from support.http_server import serving

from modeld.domain.request_events import Embedded, Failed
from modeld.errors import PromptTooLong
from modeld.runtime.ticket import Ticket


async def two(ticket: Ticket) -> None:
    """Give two vectors, one at a time."""
    for first in range(2):
        ticket.put(Embedded(first, (struct.pack("<2f", first, 1),)))
    finish(ticket)


async def test_each_input_has_its_vector() -> None:
    """A JSON object comes back with the request's id, and the ticket is closed."""
    async with serving(two) as served, served.client() as client:
        reply = await client.post("/embed", json={"input": ["a", "b"]}, headers={"X-Request-ID": "r1"})
        assert reply.status_code == 200
        found = reply.json()
        assert found["embeddings"] == [[0, 1], [1, 1]]
        assert (found["usage"]["prompt_tokens"], found["model"], found["id"]) == (5, "tiny-q4.gguf", "r1")
        await served.backend.wait_closed()


async def test_a_large_answer_is_not_compressed() -> None:
    """To compress megabytes would hold up everybody's streams."""

    async def script(ticket: Ticket) -> None:
        ticket.put(Embedded(0, (struct.pack("<1024f", *[0.123456789] * 1024),) * 200))
        finish(ticket)

    async with serving(script) as served, served.client() as client:
        reply = await client.post("/embed", json={"input": ["a"] * 200})
        assert "content-encoding" not in reply.headers
        assert len(reply.content) > 1 << 20
        assert len(reply.json()["embeddings"]) == 200


@pytest.mark.parametrize("content", [b"[]", b'{"input": {}}', b'{"input": [[1, "a"]]}', b'{"input": [null]}'])
async def test_bad_bodies_are_told(content) -> None:
    """A sentence and a 400, never a 500."""
    async with serving() as served, served.client() as client:
        reply = await client.post("/embed", content=content, headers={"Content-Type": "application/json"})
        assert reply.status_code == 400
        assert reply.json()["type"] == "invalid_request"


async def test_a_failure_has_its_status_and_numbers() -> None:
    """What the engine refuses is told as it is."""

    async def script(ticket: Ticket) -> None:
        error = PromptTooLong("input 3 has 900 tokens", details={"input": 3})
        ticket.put(Failed(problem=error.as_problem()))

    async with serving(script) as served, served.client() as client:
        reply = await client.post("/embed", json={"input": "x"})
        assert (reply.status_code, reply.json()["details"]) == (400, {"input": 3})
        await served.backend.wait_closed()


async def test_leaving_closes_the_ticket() -> None:
    """A client that goes away while its inputs are decoded frees its slot."""
    async with serving() as served:
        raw = await served.connect()
        body = b'{"input": "x"}'
        head = b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        await raw.send(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        ticket = await served.backend.ticket()
        ticket.put(Embedded(0, (b"\0\0\0\0",)))
        raw.stream.socket.close()
        await served.backend.wait_closed()
        assert served.backend.closed == [ticket]
