# SPDX-License-Identifier: GPL-3.0-only
"""SIGTERM in every phase: each request gets its legal last line, and the exit is 0 and in time."""

from __future__ import annotations

import json
import signal
import socket
import time

import httpx2
import pytest
import trio
from support.daemon_process import Q4_0, Q8_0, Daemon, body, client, daemon, infer, until

pytestmark = [pytest.mark.e2e, pytest.mark.real]

SHUTDOWN_S = 5.0
LONG_PROMPT = "The quick brown fox jumps over the lazy dog near the old stone bridge. " * 130


class Outcome:
    """What one client saw: a refusal with its status, or the lines of a stream."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: httpx2.Headers = httpx2.Headers()
        self.lines: list[dict[str, object]] = []


async def _ask(running: Daemon, outcome: Outcome, **more: object) -> None:
    terms = {"max_tokens": 4000, "ignore_eos": True, **more}
    async with client(running) as http, http.stream("POST", "/infer", json=body(**terms)) as response:
        outcome.status = response.status_code
        outcome.headers = response.headers
        outcome.lines = [json.loads(line) async for line in response.aiter_lines() if line]


async def _stop_and_time(running: Daemon) -> float:
    """SIGTERM; returns the seconds until the process was gone."""
    began = time.perf_counter()
    running.process.send_signal(signal.SIGTERM)
    code = await trio.to_thread.run_sync(running.wait, 30.0)
    assert code == 0, running.log
    return time.perf_counter() - began


def _is_legal(outcome: Outcome) -> bool:
    """A refusal is one object with its error; a stream has exactly one last line, at the end."""
    if outcome.status != 200:
        return outcome.status == 503 and "error" in outcome.lines[0] and bool(outcome.headers["Retry-After"])
    ends = [line for line in outcome.lines if line.get("done")]
    return len(ends) == 1 and outcome.lines[-1] is ends[0]


async def test_streams_and_queue_end_legally() -> None:
    """Four stream and three wait: the streams end with `shutdown` and their text, the waiters with 503."""
    outcomes = [Outcome() for _ in range(7)]
    with daemon() as running:
        async with client(running) as http:
            await infer(http, max_tokens=1)
            async with trio.open_nursery() as nursery:
                for outcome in outcomes:
                    nursery.start_soon(lambda outcome=outcome: _ask(running, outcome, max_tokens=1500))
                await until(http, inflight=4, queue_len=3)
                took = await _stop_and_time(running)
    assert took < SHUTDOWN_S + 1
    assert all(_is_legal(outcome) for outcome in outcomes), [outcome.__dict__ for outcome in outcomes]
    streams = [outcome for outcome in outcomes if outcome.status == 200]
    assert len(streams) == 4
    for outcome in streams:
        last = outcome.lines[-1]
        assert last["finish_reason"] == "shutdown"
        assert last["content"] == "".join(str(line["token"]) for line in outcome.lines[:-1])


async def test_a_prefill_and_a_load_end_legally() -> None:
    """One model reads a long prompt, another one is being loaded: both clients are told, in time."""
    prefilling, loading = Outcome(), Outcome()
    with daemon("--drain-timeout", "100ms") as running:
        async with client(running) as http:
            await infer(http, max_tokens=1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: _ask(running, prefilling, prompt=LONG_PROMPT))
                await until(http, inflight=1)
                nursery.start_soon(lambda: _ask(running, loading, model=Q8_0))
                await until(http, Q8_0, state="loading")
                took = await _stop_and_time(running)
    assert took < SHUTDOWN_S + 1
    assert _is_legal(prefilling), prefilling.__dict__
    assert _is_legal(loading), loading.__dict__


async def test_a_short_answer_is_finished_while_draining() -> None:
    """What can end within drain_timeout ends as if nothing had happened; new requests get 503."""
    outcome = Outcome()
    with daemon("--drain-timeout", "20s", "--shutdown-timeout", "25s") as running:
        async with client(running) as http:
            await infer(http, max_tokens=1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: _ask(running, outcome, max_tokens=120))
                await until(http, inflight=1)
                running.process.send_signal(signal.SIGTERM)
                with trio.fail_after(5):
                    while (await http.get("/readyz")).text.strip() != "draining":
                        await trio.sleep(0.02)
                refused = await http.post("/infer", json=body())
        code = await trio.to_thread.run_sync(running.wait, 30.0)
    assert code == 0
    assert refused.status_code == 503
    assert refused.headers["Retry-After"]
    assert outcome.lines[-1]["finish_reason"] == "length"


async def test_a_second_signal_does_not_wait() -> None:
    """SIGINT twice: the stream ends at once with its last line, although there was time to drain."""
    outcome = Outcome()
    with daemon("--drain-timeout", "25s", "--shutdown-timeout", "30s") as running:
        async with client(running) as http:
            await infer(http, max_tokens=1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: _ask(running, outcome))
                await until(http, inflight=1)
                running.process.send_signal(signal.SIGINT)
                await trio.sleep(0.5)
                began = time.perf_counter()
                running.process.send_signal(signal.SIGINT)
                code = await trio.to_thread.run_sync(running.wait, 30.0)
    assert code == 0
    assert time.perf_counter() - began < 3.0
    assert outcome.lines[-1]["finish_reason"] == "shutdown"


async def test_a_client_that_stopped_reading_cannot_delay_it() -> None:
    """Its socket buffers are full and it reads no more; the exit is in time all the same."""
    with daemon("--max-stream-backlog", "64KiB") as running:
        async with client(running) as http:
            await infer(http, max_tokens=1)
            sockets = [_stream_without_reading(running.port) for _ in range(3)]
            await until(http, inflight=3)
            await trio.sleep(1.0)
            took = await _stop_and_time(running)
            for sock in sockets:
                sock.close()
    assert took < SHUTDOWN_S + 1


def _stream_without_reading(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    sock.connect(("127.0.0.1", port))
    content = json.dumps(body(max_tokens=1500, ignore_eos=True)).encode()
    head = (
        f"POST /infer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    sock.sendall(head.encode() + content)
    return sock


async def test_an_idle_daemon_stops_at_once() -> None:
    """No request, idle keep-alive connections: gone within a second or so, and nothing is left."""
    with daemon() as running:
        async with client(running) as http:
            await infer(http, model=Q4_0, max_tokens=1)
            took = await _stop_and_time(running)
    assert took < 2.0
