# SPDX-License-Identifier: GPL-3.0-only
"""The listener's life: many clients, scarce descriptors, and a stop that nobody can delay."""

from __future__ import annotations

import os
import resource
import socket
from functools import partial
from pathlib import Path

import pytest
import trio
from support.backend import finish, text_events
from support.http_server import Raw, Served, infer_bytes, serving

from modeld.config.settings import Settings
from modeld.domain.request_events import Delta
from modeld.http.app import create_app
from modeld.http.limits import http_limits
from modeld.http.server.listener import connection_bound, open_listeners, serve
from modeld.telemetry.metrics import Metrics

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def healthy(served: Served) -> Raw:
    raw = await served.connect()
    await raw.send(HEALTH)
    assert (await raw.answer())[0] == 200
    return raw


async def test_the_stop_closes_idle_connections_at_once() -> None:
    """Connections between two requests, and those that never asked, end with the listener."""
    async with serving(grace_s=30) as served:
        idle = [await healthy(served), await served.connect()]
        await trio.testing.wait_all_tasks_blocked(0.05)
        with trio.fail_after(10):
            served.shutdown.set()
            await served.ended.wait()
        for raw in idle:
            assert await raw.read_to_end() == b""


async def test_the_stop_lets_a_request_end() -> None:
    """A stream under way is finished; its connection is closed after it, and nobody new gets in."""
    async with serving(grace_s=30) as served:
        raw = await served.connect()
        await raw.infer()
        ticket = await served.backend.ticket()
        ticket.put(Delta(text="one"))
        await raw.read_until(b"one")
        served.shutdown.set()
        await trio.testing.wait_all_tasks_blocked(0.05)
        with pytest.raises(OSError, match="all attempts to connect"):
            await served.connect()
        ticket.put(Delta(text="two"))
        finish(ticket)
        tail = await raw.read_to_end()
        assert b"two" in tail
        assert b'"done":true' in tail
        with trio.fail_after(10):
            await served.ended.wait()


async def test_the_stop_says_close_in_answers_that_begin_after_it() -> None:
    """Who gets its status line after the stop is told not to send another request."""
    async with serving(grace_s=30) as served:
        raw = await served.connect()
        await raw.infer()
        ticket = await served.backend.ticket()
        served.shutdown.set()
        await trio.testing.wait_all_tasks_blocked(0.05)
        finish(ticket)
        assert (await raw.answer())[1]["connection"] == "close"


async def test_the_stop_cuts_what_does_not_end() -> None:
    """After the grace nothing is left: the slot is free, and `serve` returns."""
    async with serving(grace_s=0.3) as served:
        raw = await served.connect()
        await raw.infer()
        await served.backend.ticket()
        began = trio.current_time()
        served.shutdown.set()
        with trio.fail_after(3):
            await served.ended.wait()
            await served.backend.wait_closed()
        assert 0.2 < trio.current_time() - began < 2


async def test_cancellation_cuts_everything_at_once() -> None:
    """A cancelled `serve` leaves nothing behind, also with a client in the middle of a stream."""
    async with serving() as served:
        app = create_app(served.backend, served.app.context.settings, Metrics())
        async with trio.open_nursery() as nursery:

            async def run(*, task_status: trio.TaskStatus[list[str]]) -> None:
                await serve(app, ["127.0.0.1:0"], shutdown=trio.Event(), task_status=task_status)

            [url] = await nursery.start(run)
            raw = Raw(await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2])))
            await raw.infer()
            ticket = await served.backend.ticket()
            nursery.cancel_scope.cancel()
        await served.backend.wait_closed()
        assert served.backend.closed == [ticket]
        await raw.stream.aclose()


async def test_an_address_in_use_is_an_error_before_the_start() -> None:
    """`serve` raises OSError, by which the caller can say which address it was."""
    async with serving() as served:
        with pytest.raises(OSError, match="in use"):
            await serve(served.app, [f"127.0.0.1:{served.port}"], shutdown=trio.Event())


@pytest.mark.slow
async def test_five_hundred_idle_clients_stop_nobody() -> None:
    """Many clients that say nothing, or half of something, leave room for one that asks."""
    async with serving() as served:
        for number in range(500):
            raw = await served.connect()
            if number % 2:
                await raw.send(b"GET /healthz HT")
        began = trio.current_time()
        await healthy(served)
        assert trio.current_time() - began < 10


async def test_beyond_the_bound_the_longest_idle_connection_goes() -> None:
    """`max_connections` is kept by letting idle ones go, never busy ones."""
    async with serving(max_connections=3) as served:
        busy = await served.connect()
        await busy.infer()
        ticket = await served.backend.ticket()
        first = await healthy(served)
        second = await healthy(served)
        third = await healthy(served)
        assert await first.read_to_end() == b""
        await third.send(HEALTH)
        assert (await third.answer())[0] == 200
        finish(ticket)
        assert (await busy.answer())[0] == 200
        assert second is not third


async def test_at_the_bound_nobody_goes_before_somebody_comes() -> None:
    """The last connection that fits may take its time to say something."""
    async with serving(max_connections=1) as served:
        only = await served.connect()
        await trio.testing.wait_all_tasks_blocked(0.3)
        await only.send(HEALTH)
        assert (await only.answer())[0] == 200


async def test_the_stop_forgets_who_waits_for_room() -> None:
    """A client that was accepted and found no room is let go with the listener."""
    async with serving(max_connections=1) as served:
        busy = await served.connect()
        await busy.infer()
        ticket = await served.backend.ticket()
        waiting = await served.connect()
        await trio.testing.wait_all_tasks_blocked(0.05)
        served.shutdown.set()
        assert await waiting.read_to_end() == b""
        finish(ticket)
        assert (await busy.answer())[0] == 200


async def test_at_the_bound_a_connection_that_becomes_idle_makes_room() -> None:
    """A client that waits for room gets it when a busy one has its answer, without its leaving."""
    async with serving(max_connections=1) as served:
        busy = await served.connect()
        await busy.infer()
        ticket = await served.backend.ticket()
        waiting = await served.connect()
        await waiting.send(HEALTH)
        await trio.testing.wait_all_tasks_blocked(0.05)
        finish(ticket)
        assert (await busy.answer())[0] == 200
        assert (await waiting.answer())[0] == 200


async def test_scarce_descriptors_are_waited_out(caplog: pytest.LogCaptureFixture) -> None:
    """Without descriptors the listener waits, complains once, and serves when there are some again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with serving() as served:
        waiting = [trio.socket.socket() for _ in range(3)]
        used = waiting[-1].fileno() + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
        try:
            for sock in waiting:
                await sock.connect(("127.0.0.1", served.port))
            await trio.sleep(0.4)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for sock in waiting:
            raw = Raw(trio.SocketStream(sock))
            await raw.send(HEALTH)
            assert (await raw.answer())[0] == 200
            await raw.stream.aclose()
    complaints = [
        record for record in caplog.records if "no connection can be accepted" in record.getMessage()
    ]
    assert len(complaints) == 1


async def test_a_unix_socket_serves_too(tmp_path: Path) -> None:
    """`unix:/path` works, takes the place of a dead socket, and leaves a live one alone."""
    path = tmp_path / "modeld.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with serving() as served, trio.open_nursery() as nursery:
        shutdown = trio.Event()
        bind = f"unix:{path}"
        [url] = await nursery.start(partial(serve, served.app, [bind], shutdown=shutdown))
        assert url == bind
        raw = Raw(await trio.open_unix_socket(path))
        await raw.send(HEALTH)
        assert (await raw.answer())[0] == 200
        with pytest.raises(OSError, match="in use"):
            await serve(served.app, [bind], shutdown=trio.Event())
        assert path.is_socket(), "the start that failed has not taken it away"
        await raw.stream.aclose()
        shutdown.set()
    assert not path.exists()


@pytest.mark.parametrize("how", ["address in use", "no socket file", "cancelled"])
async def test_a_start_that_fails_leaves_no_socket_file(tmp_path: Path, how: str) -> None:
    """Neither when another address cannot be had, nor when it is given up."""
    path = tmp_path / "modeld.sock"
    (tmp_path / "file").touch()
    async with serving() as served:
        taken = {
            "address in use": served.url.removeprefix("http://"),
            "no socket file": f"unix:{tmp_path}/file",
        }
        if how == "cancelled":
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    start = partial(serve, served.app, [f"unix:{path}"], shutdown=trio.Event())
                    await nursery.start(start)
                    assert path.is_socket()
                    scope.cancel()
        else:
            with pytest.raises(OSError, match="in use"):
                await serve(served.app, [f"unix:{path}", taken[how]], shutdown=trio.Event())
    assert not path.exists()
    assert (tmp_path / "file").exists()


async def test_a_socket_file_of_another_daemon_stays(tmp_path: Path) -> None:
    """One that was bound meanwhile under the same path, and one that somebody else has opened for us."""
    path = tmp_path / "modeld.sock"
    listeners = open_listeners([f"unix:{path}"])
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        listeners.close()
        assert path.is_socket()
        other.listen()
        open_listeners([f"fd://{os.dup(other.fileno())}"]).close()
        assert path.is_socket()


async def test_a_socket_file_goes_before_its_socket(tmp_path: Path) -> None:
    """Else another daemon could take it for a dead one's and put its own there, which would go."""
    path = tmp_path / "modeld.sock"
    listeners = open_listeners([f"unix:{path}"])
    [listener] = listeners.sockets
    seen: list[bool] = []
    close = type(listener.socket).close
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(listener.socket), "close", lambda it: (seen.append(path.exists()), close(it))[0])
        listeners.close()
    assert seen == [False]
    path.touch()
    listeners.close()
    assert path.exists()


def test_a_daemon_with_a_full_backlog_does_not_hang_our_start(tmp_path: Path) -> None:
    """A live socket that cannot even queue us is left alone, at once."""
    path = tmp_path / "modeld.sock"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as queued:
        busy.bind(str(path))
        busy.listen(0)
        queued.connect(str(path))
        with pytest.raises(OSError, match="in use"):
            open_listeners([f"unix:{path}"])


def test_some_files_are_left_for_models() -> None:
    """Connections never take the last descriptors, whatever the limit is."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert connection_bound(10) == 10
    assert connection_bound(10**9) < soft


async def test_limits_follow_the_settings() -> None:
    """The operator's timeouts and sizes reach the context."""
    async with serving() as served:
        settings = served.app.context.settings
        limits = http_limits(settings)
        assert limits.write_timeout_s == settings.write_timeout
        assert limits.shutdown_timeout_s == settings.shutdown_timeout
        assert limits.max_body_bytes == settings.max_body_bytes
    settings = Settings(
        header_timeout=1, body_timeout=2, idle_timeout=3, max_header_bytes=4000, max_connections=5
    )
    limits = http_limits(settings)
    assert (limits.header_timeout_s, limits.body_timeout_s, limits.keep_alive_s) == (1, 2, 3)
    assert (limits.max_header_bytes, limits.max_connections) == (4000, 5)


@pytest.mark.slow
async def test_the_operators_limits_bite() -> None:
    """Slow headers and bodies are 408, large headers 431, idle connections end, each when he says so."""
    settings = Settings(header_timeout=0.3, body_timeout=0.3, max_header_bytes=2000)
    async with serving(settings=settings) as served:
        slow = await served.connect()
        await slow.send(HEALTH[:-2])
        status, _, body = await slow.answer()
        assert status == 408
        assert b"longer than 0.3 s" in body
        slow = await served.connect()
        await slow.send(infer_bytes()[:-3])
        status, _, body = await slow.answer()
        assert status == 408
        assert b"within 0.3 s (body_timeout)" in body
        large = await served.connect()
        await large.send(b"GET /healthz HTTP/1.1\r\nX-Large: " + b"x" * 3000)
        assert (await large.answer())[0] == 431
    async with serving(settings=Settings(idle_timeout=0.3)) as served:
        assert await (await served.connect()).read_to_end() == b""


async def test_the_operators_number_of_connections_bites() -> None:
    """Of three clients that have been served, the first goes when only two are allowed."""
    async with serving(settings=Settings(max_connections=2)) as served:
        first, _, third = await healthy(served), await healthy(served), await healthy(served)
        assert await first.read_to_end() == b""
        await third.send(HEALTH)
        assert (await third.answer())[0] == 200


async def test_requests_share_connections() -> None:
    """Keep-alive: a hundred requests on one connection, streams among them."""
    async with serving(text_events("a")) as served:
        raw = await served.connect()
        for _ in range(50):
            await raw.send(HEALTH)
            assert (await raw.answer())[0] == 200
            await raw.send(infer_bytes())
            assert (await raw.answer())[0] == 200
