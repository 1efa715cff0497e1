# SPDX-License-Identifier: GPL-3.0-only
"""What a client sends, on its way to the exchange: bodies, and leaving."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from werkzeug.exceptions import RequestEntityTooLarge

from modeld.http.server.request_stream import RequestBody, RequestStream, request_stream_of


def part(data: bytes, *, more: bool) -> dict[str, object]:
    """Return a part of a body, as the listener gives it."""
    return {"type": "http.request", "body": data, "more_body": more}


LEFT = {"type": "http.disconnect"}


async def attached(limit: int | None = None) -> tuple[RequestStream, RequestBody, trio.CancelScope]:
    """Return the request_stream side of an exchange that has begun."""
    request_stream, body, scope = RequestStream(), RequestBody(None, limit), trio.CancelScope()
    request_stream.bind(body, scope)
    return request_stream, body, scope


async def test_what_comes_before_the_exchange_began_is_kept_in_order() -> None:
    """A short request is whole before its task runs for the first time."""
    request_stream, body, scope = RequestStream(), RequestBody(None, None), trio.CancelScope()
    for message in (part(b"one ", more=True), part(b"two", more=True), part(b"", more=False)):
        await request_stream.feed(message)
    request_stream.bind(body, scope)
    assert await body == b"one two"
    assert not scope.cancel_called


async def test_a_body_grows_while_it_is_waited_for() -> None:
    """Parts wake whoever waits for the body, and the last one completes it."""
    request_stream, body, _ = await attached()
    got: list[bytes] = []

    async def read() -> None:
        got.append(await body)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        await request_stream.feed(part(b"a", more=True))
        await trio.testing.wait_all_tasks_blocked()
        assert got == []
        await request_stream.feed(part(b"b", more=False))
    assert got == [b"ab"]


async def test_a_client_that_leaves_in_the_middle_of_its_body_ends_the_exchange() -> None:
    """Nobody will ever send the rest."""
    request_stream, _, scope = await attached()
    await request_stream.feed(part(b"half", more=True))
    await request_stream.feed(LEFT)
    assert scope.cancel_called


async def test_a_whole_request_of_a_client_that_left_ends_when_its_work_begins() -> None:
    """Who closed only his half still reads what is refused until then."""
    request_stream, _, scope = await attached()
    await request_stream.feed(part(b"{}", more=False))
    await request_stream.feed(LEFT)
    assert not scope.cancel_called
    request_stream.cancel_on_disconnect()
    assert scope.cancel_called


async def test_a_client_that_leaves_during_the_work_ends_it() -> None:
    """At once, in the turn of whoever noticed."""
    request_stream, _, scope = await attached()
    await request_stream.feed(part(b"{}", more=False))
    request_stream.cancel_on_disconnect()
    assert not scope.cancel_called
    await request_stream.feed(LEFT)
    assert scope.cancel_called


async def test_a_client_that_left_before_the_exchange_began_ends_it() -> None:
    """What it had sent until then was not all of it."""
    request_stream, scope = RequestStream(), trio.CancelScope()
    await request_stream.feed(part(b"half", more=True))
    await request_stream.feed(LEFT)
    request_stream.bind(RequestBody(None, None), scope)
    assert scope.cancel_called


async def test_what_comes_after_the_end_is_nobodys() -> None:
    """The rest of a body that was refused is not kept, and leaving cancels nothing."""
    request_stream, body, scope = await attached()
    request_stream.unbind()
    await request_stream.feed(part(b"late", more=False))
    await request_stream.feed(LEFT)
    request_stream.cancel_on_disconnect()
    assert not scope.cancel_called
    body.set_complete()
    assert await body == b""


async def test_a_body_over_the_limit_is_refused_and_not_kept() -> None:
    """At the first byte over it; parts that follow add nothing."""
    request_stream, body, _ = await attached(limit=4)
    for _ in range(1000):
        await request_stream.feed(part(b"12345", more=True))
    with pytest.raises(RequestEntityTooLarge):
        await body
    assert len(body._data) == 5


@pytest.mark.parametrize("early", [True, False])
async def test_a_body_that_says_it_is_too_large_is_refused_before_it_came(early: bool) -> None:
    """Whether the exchange has begun or not; what had come does not matter any more."""
    request_stream, body, scope = RequestStream(), RequestBody(None, None), trio.CancelScope()
    await request_stream.feed(part(b"some", more=True))
    if early:
        request_stream.refuse_body()
        request_stream.bind(body, scope)
    else:
        request_stream.bind(body, scope)
        request_stream.refuse_body()
    with pytest.raises(RequestEntityTooLarge):
        await body


def test_another_server_has_none() -> None:
    """The app needs the listener of `modeld.http.server.listener`."""
    with pytest.raises(KeyError):
        request_stream_of({"state": {}})
