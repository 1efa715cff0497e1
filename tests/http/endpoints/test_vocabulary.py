# SPDX-License-Identifier: GPL-3.0-only
"""`POST /tokenize`, `/detokenize`, `/apply-template` over a real socket."""

from __future__ import annotations

import pytest
import trio
from support.backend import finish
from support.http_server import serving

from modeld.domain.request import TokenizeRequest
from modeld.domain.request_events import Detokenized, Failed, Loading, Queued, Templated, Tokenized
from modeld.errors import Draining, InvalidRequest
from modeld.runtime.ticket import Ticket


def says(event):
    """A script that waits a little, answers with this event, and ends."""

    async def script(ticket: Ticket) -> None:
        ticket.put(Queued(1))
        await trio.lowlevel.checkpoint()
        ticket.put(Loading(0.5))
        ticket.put(event)
        finish(ticket)

    return script


@pytest.mark.parametrize(
    ("path", "body", "event", "answer"),
    [
        ("/tokenize", {"content": "x"}, Tokenized((1, 2)), {"tokens": [1, 2]}),
        ("/detokenize", {"tokens": [1]}, Detokenized(b"x"), {"content": "x"}),
        (
            "/apply-template",
            {"messages": [{"role": "user", "content": "x"}]},
            Templated("<s>x"),
            {"prompt": "<s>x"},
        ),
    ],
)
async def test_each_path_answers(path, body, event, answer) -> None:
    """A JSON object comes back, and the ticket is closed."""
    async with serving(says(event)) as served, served.client() as client:
        reply = await client.post(path, json=body)
        assert (reply.status_code, reply.json()) == (200, answer)
        assert reply.headers["content-type"] == "application/json"
        await served.backend.wait_closed()
        assert served.backend.tickets[0].order.needs_no_slot


@pytest.mark.parametrize(
    ("path", "content", "status"),
    [
        ("/tokenize", b"[]", 400),
        ("/tokenize", b'{"content": null}', 400),
        ("/detokenize", b'{"tokens": [1, "x"]}', 400),
        ("/detokenize", b'{"tokens": 7}', 400),
        ("/apply-template", b'{"messages": "hi"}', 400),
        ("/tokenize", b'{"content": "x", "model": "nobody"}', 404),
    ],
)
async def test_bad_bodies_are_told(path, content, status) -> None:
    """A sentence and a 4xx, never a 500."""
    async with serving() as served, served.client() as client:
        reply = await client.post(path, content=content, headers={"Content-Type": "application/json"})
        assert reply.status_code == status
        assert reply.json()["code"] == status
        assert (await client.get(path)).status_code == 405


async def test_what_the_engine_refuses_has_its_status() -> None:
    """A failure that is only known later is told with its status, and so is a shutdown."""

    async def script(ticket: Ticket) -> None:
        ticket.put(Failed(problem=InvalidRequest("there is no token 99").as_problem()))

    async with serving(script) as served, served.client() as client:
        reply = await client.post("/detokenize", json={"tokens": [99]})
        assert (reply.status_code, reply.json()["error"]) == (400, "there is no token 99")
        served.backend.refusal = Draining("going down")
        reply = await client.post("/tokenize", json={"content": "x"})
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")


async def test_leaving_closes_the_ticket() -> None:
    """A client that goes away while the model loads frees its place."""
    async with serving() as served:
        raw = await served.connect()
        body = b'{"content": "x"}'
        head = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        await raw.send(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        ticket = await served.backend.ticket()
        assert ticket.order.request == TokenizeRequest(content="x")
        raw.stream.socket.close()
        await served.backend.wait_closed()
