# SPDX-License-Identifier: GPL-3.0-only
"""`GET /events` on a real socket: two formats, filters, going on, slow readers, and every way to end."""

from __future__ import annotations

import json
import socket

import pytest
import trio
import trio.lowlevel
from support.backend import TINY
from support.event_client import event_client
from support.http_server import Raw, Served, serving

from modeld.domain.daemon_events import EventKind
from modeld.runtime.reporting.event_log import MOST_READERS, EventLog

PATIENCE_S = 60.0


def log_of(served: Served) -> EventLog:
    return served.backend.events


async def until_readers(served: Served, count: int) -> None:
    with trio.fail_after(PATIENCE_S):
        while log_of(served).readers != count:
            await trio.sleep(0.005)


async def ask(served: Served, target: str = "/events", headers: str = "") -> Raw:
    """A reader that has its head, and the first bytes of its stream."""
    raw = await served.connect()
    raw.patience_s = PATIENCE_S
    await raw.send(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode())
    return raw


async def test_events_come_as_server_sent_events() -> None:
    """With id, kind and JSON, as browsers read them; the head is there before anything happens."""
    async with serving() as served:
        log = log_of(served)
        raw = await ask(served)
        head = await raw.read_until(b"retry: 2000\n\n")
        assert b"content-type: text/event-stream" in head.lower()
        assert b"cache-control: no-store" in head.lower()
        log.record(EventKind.EVICTING, model=TINY.id, cause="room", for_model="b", numbers={"frees_mb": 4})
        data = await raw.read_until(b"}\n\n")
        frame = data[data.index(b"id: ") :].decode().split("\n")
        assert frame[:2] == [f"id: {log.run}-1", "event: evicting"]
        told = json.loads(frame[2].removeprefix("data: "))
        assert (told["seq"], told["kind"], told["model"]) == (1, "evicting", TINY.id)
        assert (told["cause"], told["for_model"], told["numbers"]) == ("room", "b", {"frees_mb": 4})
        log.close()


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("application/x-ndjson", "application/x-ndjson"),
        ("application/json", "application/x-ndjson"),
        ("text/event-stream, application/x-ndjson;q=0.5", "text/event-stream"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "text/event-stream"),
        ("image/png", "text/event-stream"),
    ],
)
async def test_the_format_is_what_the_client_accepts(accept: str, content_type: str) -> None:
    """JSON lines for who asks for JSON, server-sent events for everybody else; HEAD says which, and ends."""
    async with serving() as served, served.client() as client:
        async with event_client(served.port, Accept=accept) as reader:
            assert (reader.status, reader.headers["content-type"]) == (200, content_type)
        head = await client.head("/events", headers={"Accept": accept})
        assert (head.status_code, head.headers["content-type"], head.content) == (200, content_type, b"")
        await until_readers(served, 0)


async def test_a_reader_gets_every_event_in_order() -> None:
    """Thousands of them, in one stream, with its end after the last."""
    async with serving() as served, event_client(served.port) as reader:
        for _ in range(3000):
            log_of(served).record(EventKind.ARRIVED, model=TINY.id)
        log_of(served).close()
        assert [event["seq"] for event in await reader.rest()] == list(range(1, 3001))


async def test_events_are_filtered_by_model_and_kind() -> None:
    """By id, stem or alias, several at once; an eviction is also shown to who waits for the room."""
    target = "/events?model=tiny-q4&kind=ready,evicting&kind=missed"
    async with serving() as served, event_client(served.port, target) as reader:
        log = log_of(served)
        log.record(EventKind.READY, model="other.gguf")
        log.record(EventKind.LOADING, model=TINY.id)
        log.record(EventKind.READY, model=TINY.id)
        log.record(EventKind.EVICTING, model="other.gguf", for_model=TINY.id)
        log.record(EventKind.DAEMON_DRAINING)
        log.record(EventKind.READY, model=TINY.id)
        log.close()
        assert [event["seq"] for event in await reader.rest()] == [3, 4, 6]


async def test_a_reader_goes_on_after_the_last_event_it_has() -> None:
    """By the header that browsers send, or by the parameter; after a restart with a word about the gap."""
    async with serving() as served:
        log = log_of(served)
        for _ in range(5):
            log.record(EventKind.ARRIVED, model=TINY.id)
        async with event_client(served.port, Last_Event_ID=f"{log.run}-3") as reader:
            assert [event["seq"] for event in await reader.take(2)] == [4, 5]
        async with event_client(served.port, f"/events?last_event_id={log.run}-4") as reader:
            assert [event["seq"] for event in await reader.take(1)] == [5]
        async with event_client(served.port, "/events?last_event_id=before-9") as reader:
            first, *others = await reader.take(6)
        assert (first["kind"], "restarted" in first["reason"]) == ("missed", True)
        assert [event["seq"] for event in others] == [1, 2, 3, 4, 5]


@pytest.mark.slow
async def test_a_slow_reader_is_told_what_it_missed_and_nobody_else_misses_anything() -> None:
    """It reads nothing while more happens than sockets and ring hold together; then it goes on from there."""
    async with serving() as served:
        log = served.backend.events = EventLog(kept=2048)
        async with event_client(served.port) as slow, event_client(served.port) as reader:
            await until_readers(served, 2)
            reason = "x" * 550
            seen: list[int] = []
            while log.last < 20_000:  # 14 MB; Linux lets a socket have 4 MB and 6 MB at most by itself.
                for _ in range(1000):
                    log.record(EventKind.ARRIVED, model=TINY.id, reason=reason)
                seen += [event["seq"] for event in await reader.take(1000)]
            assert seen == list(range(1, 20_001))
            told = await slow.until("missed")
            missed = log.status().missed
            assert told["numbers"] == {"events": missed}
            assert missed > 1000
            assert (await slow.next())["seq"] == told["seq"] + 1


async def test_leaving_frees_everything() -> None:
    """A close, a reset and a half-close are noticed although nothing happens; the tasks are gone, too."""
    async with serving() as served:
        async with trio.open_nursery():
            before = trio.lowlevel.current_statistics().tasks_living
            readers = [await ask(served) for _ in range(3)]
            for reader in readers:
                await reader.read_until(b"retry: 2000\n\n")
            assert log_of(served).readers == 3
            await readers[0].stream.aclose()
            readers[1].stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            await readers[1].stream.aclose()
            await readers[2].stream.send_eof()
            await until_readers(served, 0)
            await readers[2].read_to_end()
            with trio.fail_after(PATIENCE_S):
                while trio.lowlevel.current_statistics().tasks_living > before:
                    await trio.sleep(0.005)
        assert served.sample("modeld_http_inflight_requests") == 0


async def test_the_end_of_the_daemon_ends_the_stream_cleanly() -> None:
    """What was told until then is delivered, then comes the last chunk, and the connection closes."""
    async with serving() as served:
        raw = await ask(served, headers="Accept: application/x-ndjson\r\n")
        await raw.read_until(b"\r\n\r\n")
        log_of(served).record(EventKind.DAEMON_DRAINING)
        log_of(served).close()
        served.shutdown.set()
        data = await raw.read_to_end()
        assert b'"kind":"daemon_draining"' in data
        assert data.endswith(b"\r\n0\r\n\r\n")
        await until_readers(served, 0)


async def test_a_silent_stream_shows_signs_of_life() -> None:
    """A comment for server-sent events, an empty line for JSON; also when what happens is filtered out."""
    async with serving(stream_keep_alive_s=0.05) as served:
        raw = await ask(served, "/events?kind=ready")
        await raw.read_until(b"retry: 2000\n\n")
        log_of(served).record(EventKind.ARRIVED)
        assert b"data:" not in await raw.read_until(b":\n\n")
        lines = await ask(served, headers="Accept: application/x-ndjson\r\n")
        first = await lines.read_until(b"\r\n\r\n1\r\n\n\r\n")
        further = await lines.read_until(b"1\r\n\n\r\n")
        assert first.startswith(b"HTTP/1.1 200")
        assert b"{" not in first + further
        log_of(served).close()


@pytest.mark.parametrize(
    ("target", "header", "status", "told"),
    [
        ("/events?kind=redy", "", 400, "did you mean ready?"),
        ("/events?models=a", "", 400, 'unknown parameter "models"; did you mean model?'),
        ("/events?model=nope", "", 404, "there is no model 'nope'"),
        ("/events?last_event_id=17", "", 400, "is no id of an event"),
        ("/events", "0", 400, "Last-Event-ID"),
    ],
)
async def test_bad_parameters_are_told(target: str, header: str, status: int, told: str) -> None:
    """Each is refused with what is meant, before a stream begins."""
    async with serving() as served, served.client() as client:
        answer = await client.get(target, headers={"Last-Event-ID": header} if header else {})
        assert answer.status_code == status
        assert told in answer.json()["error"]
        assert log_of(served).readers == 0


async def test_readers_are_bounded() -> None:
    """One too many gets 429 with Retry-After, and the others go on."""
    async with serving() as served, served.client() as client:
        readers = [log_of(served).follow() for _ in range(MOST_READERS)]
        answer = await client.get("/events")
        assert (answer.status_code, answer.json()["type"]) == (429, "queue_full")
        assert answer.headers["retry-after"]
        for reader in readers:
            reader.close()
        async with event_client(served.port) as reader:
            assert reader.status == 200


async def test_events_are_metrics_too() -> None:
    """Counts by kind, readers, and what they missed."""
    async with serving() as served:
        log = log_of(served)
        log.record(EventKind.READY)
        log.record(EventKind.READY)
        reader = log.follow()
        assert served.sample("modeld_events_total", kind="ready") == 2
        assert served.sample("modeld_events_readers") == 1
        assert served.sample("modeld_events_missed_total") == 0
        assert served.sample("modeld_events_blocked") == 0
        reader.close()
