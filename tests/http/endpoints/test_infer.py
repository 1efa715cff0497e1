# SPDX-License-Identifier: GPL-3.0-only
"""`POST /infer` over a real socket: streams, statuses, failures, logs."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from support.backend import finish, text_events
from support.http_server import lines_of, serving
from trio.testing import wait_all_tasks_blocked

from modeld.dialects import native
from modeld.domain.model import ModelSpec
from modeld.domain.request_events import Delta, Failed, FinishReason, Loading, Queued, Started, Usage
from modeld.errors import (
    DeadlineExceeded,
    DeadlineUnreachable,
    DoesNotFit,
    Draining,
    EngineFailed,
    InternalError,
    InvalidGrammar,
    InvalidRequest,
    ModeldError,
    ModelFailed,
    ModelNotFound,
    PromptTooLong,
    QueueFull,
    WaitedTooLong,
)
from modeld.runtime.ticket import Ticket


async def test_a_stream_ends_with_one_done_line() -> None:
    """One line per token, then the line with everything, as NDJSON that no proxy holds back."""
    async with serving(text_events("The", " cat", " sat")) as served, served.client() as client:
        answer = await client.post("/infer", json={"prompt": "x"}, headers={"X-Request-ID": "r1"})
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/x-ndjson"
        assert answer.headers["cache-control"] == "no-store"
        assert "content-encoding" not in answer.headers
        *tokens, last = lines_of(answer.content)
        assert tokens == [{"token": text, "done": False} for text in ("The", " cat", " sat")]
        assert (last["done"], last["content"], last["finish_reason"]) == (True, "The cat sat", "stop")
        assert (last["model"], last["id"]) == ("tiny-q4.gguf", "r1")
        await served.backend.wait_closed()


async def test_a_request_that_breaks_before_its_answer_gives_its_slot_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A defect where the answer is prepared is a 500, and the ticket is closed: nobody else would do it."""

    def broken(**_: object) -> object:
        raise RuntimeError("a defect of ours")

    monkeypatch.setattr(native, "InferRenderer", broken)
    async with serving() as served, served.client() as client:
        answer = await client.post("/infer", json={"prompt": "x"})
        assert answer.status_code == 500
        await served.backend.wait_closed()
        assert served.backend.closed == served.backend.tickets


async def test_without_stream_the_last_line_comes_alone() -> None:
    """`stream: false` answers with one JSON object, compressed if asked for."""
    async with serving(text_events("a" * 400, "b" * 400)) as served, served.client() as client:
        answer = await client.post("/infer", json={"prompt": "x", "stream": False})
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.json()["content"] == "a" * 400 + "b" * 400
        assert answer.json()["done"]


async def test_an_echo_begins_the_answer() -> None:
    """The prompt comes first, in a stream and in a whole answer."""
    async with serving(text_events("The", " cat")) as served, served.client() as client:
        answer = await client.post("/infer", json={"prompt": "x: ", "echo": True})
        assert [line.get("token") for line in lines_of(answer.content)] == ["x: ", "The", " cat", None]
        answer = await client.post("/infer", json={"prompt": "x: ", "echo": True, "stream": False})
        assert answer.json()["content"] == "x: The cat"


async def test_each_token_is_on_the_wire_as_soon_as_it_exists() -> None:
    """Nothing waits for more text to come."""
    async with serving() as served:
        raw = await served.connect()
        await raw.infer()
        ticket = await served.backend.ticket()
        for text in ("one", "two"):
            ticket.put(Delta(text=text))
            assert await raw.read_until(text.encode())
        finish(ticket)
        assert b'"done":true' in await raw.read_until(b"0\r\n\r\n")


async def test_tokens_that_piled_up_share_one_write() -> None:
    """What came while the socket was busy goes out together."""
    async with serving() as served:
        raw = await served.connect()
        await raw.infer()
        ticket = await served.backend.ticket()
        for number in range(50):
            ticket.put(Delta(text=str(number)))
        finish(ticket)
        body = await raw.read_until(b"0\r\n\r\n")
        chunks = body.partition(b"\r\n\r\n")[2].split(b"\r\n")
        assert len(chunks) == 5  # length, lines, "0", and what follows the end
        assert len(lines_of(chunks[1])) == 51


async def test_nothing_is_sent_before_the_first_token() -> None:
    """The status line waits, so that a refusal after waiting still has its status."""
    async with serving() as served:
        raw = await served.connect()
        await raw.infer()
        ticket = await served.backend.ticket()
        ticket.put(Queued(position=1))
        ticket.put(Loading(progress=0.5))
        ticket.put(Started(usage=Usage()))
        await wait_all_tasks_blocked(0.05)
        with trio.move_on_after(0.1) as silence:
            await raw.stream.receive_some(1)
        assert silence.cancelled_caught
        ticket.put(Delta(text="now"))
        assert (await raw.read_some()).startswith(b"HTTP/1.1 200")
        finish(ticket)


async def test_events_begin_at_once_and_tell_of_waiting() -> None:
    """With `events: true` the status does not wait, and queueing and loading are lines."""
    async with serving() as served:
        raw = await served.connect()
        await raw.infer(events=True)
        assert (await raw.read_until(b"\r\n\r\n1\r\n\n\r\n")).startswith(b"HTTP/1.1 200")
        ticket = await served.backend.ticket()
        ticket.put(Queued(position=2, eta_s=1.8))
        await raw.read_until(b'{"event":"queued","position":2,"eta_ms":1800}\n')
        ticket.put(Loading(progress=0.4))
        await raw.read_until(b'{"event":"loading","progress":0.4}\n')
        ticket.put(Failed(problem=DoesNotFit("too large").as_problem()))
        tail = await raw.read_until(b"0\r\n\r\n")
        assert b'"error":"too large","code":507' in tail
        await served.backend.wait_closed()
    assert served.sample("modeld_http_backpressure_total", reason="does_not_fit") == 1


REFUSALS: list[tuple[ModeldError, int, str | None]] = [
    (ModelNotFound("no model is called x"), 404, None),
    (QueueFull("32 wait already", details={"queue_len": 32}, retry_after_s=2.2), 429, "3"),
    (WaitedTooLong("it waited 30 s"), 429, "1"),
    (Draining("the daemon is shutting down"), 503, "5"),
    (ModelFailed("it failed 5 times"), 503, "5"),
    (DeadlineUnreachable("it would take 40 s"), 503, "1"),
    (DeadlineExceeded("30 s are over"), 504, None),
    (DoesNotFit("it needs 5 GiB"), 507, None),
    (PromptTooLong("9000 tokens, 8192 fit"), 400, None),
    (InvalidGrammar("line 1: no such rule"), 422, None),
    (EngineFailed("the engine died"), 500, None),
]


@pytest.mark.parametrize(("error", "status", "retry"), REFUSALS)
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_every_refusal_has_its_status(
    error: ModeldError, status: int, retry: str | None, late: bool, stream: bool
) -> None:
    """At once or after waiting, streamed or whole: the same status, type, numbers and `Retry-After`."""

    async def fail(ticket: Ticket) -> None:
        await trio.lowlevel.checkpoint()
        ticket.put(Queued(position=1))
        ticket.put(Failed(problem=error.as_problem()))

    async with serving(fail) as served, served.client() as client:
        served.backend.refusal = None if late else error
        answer = await client.post("/infer", json={"prompt": "x", "stream": stream})
        assert answer.status_code == status
        assert answer.headers.get("retry-after") == retry
        body = answer.json()
        assert (body["error"], body["code"], body["type"]) == (error.message, status, error.kind)
        assert body.get("details", {}) == error.details
        counted = served.sample("modeld_http_backpressure_total", reason=error.kind)
        assert counted == (1 if status in {429, 503, 507} else 0)


async def test_a_failure_after_the_first_line_is_told_in_band() -> None:
    """A stream that began ends with a line that has the error, its code, and the text so far."""
    async with serving() as served:
        raw = await served.connect()
        await raw.infer()
        ticket = await served.backend.ticket()
        ticket.put(Delta(text="The"))
        await raw.read_until(b"The")
        ticket.put(Failed(problem=EngineFailed("the engine died").as_problem()))
        tail = await raw.read_until(b"0\r\n\r\n")
        line = json.loads(tail.split(b"\r\n")[1])
        assert (line["done"], line["error"], line["code"]) == (True, "the engine died", 500)
        assert (line["finish_reason"], line["content"]) == ("error", "The")


@pytest.mark.parametrize("reason", [FinishReason.SHUTDOWN, FinishReason.TIMEOUT, FinishReason.LENGTH])
async def test_every_end_is_a_legal_last_line(reason: FinishReason) -> None:
    """However a generation ends, its last line says how."""
    async with serving() as served:
        raw = await served.connect()
        await raw.infer()
        ticket = await served.backend.ticket()
        ticket.put(Delta(text="x"))
        finish(ticket, reason)
        tail = await raw.read_until(b"0\r\n\r\n")
        assert tail.count(b'"done":true') == 1
        assert f'"finish_reason":"{reason}"'.encode() in tail


async def test_a_defect_in_the_stream_is_told_in_band(caplog: pytest.LogCaptureFixture) -> None:
    """When rendering itself breaks, the client still gets a last line, and the log the cause."""
    async with serving() as served:
        raw = await served.connect()
        await raw.infer()
        ticket = await served.backend.ticket()
        ticket.put(Delta(text="x"))
        await raw.read_until(b'"x"')
        ticket.put(Delta(text="y", logprobs=(None,)))  # a defect
        tail = await raw.read_until(b"0\r\n\r\n")
        assert b'"done":true,"error":"modeld failed in the middle of this answer' in tail
        await served.backend.wait_closed()
    [record] = [record for record in caplog.records if record.getMessage() == "the answer broke"]
    assert record.exc_info is not None


async def test_a_defect_before_the_stream_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    """What no one foresaw is a JSON error with the id to look for, and the next request is served."""
    async with serving(text_events("a")) as served, served.client() as client:
        served.backend.refusal = ZeroDivisionError("secret detail")
        answer = await client.post("/infer", json={"prompt": "x"}, headers={"X-Request-ID": "r7"})
        assert answer.status_code == 500
        assert answer.json()["type"] == "internal_error"
        assert "r7" in answer.json()["error"]
        assert "secret" not in answer.text
        [record] = [record for record in caplog.records if record.getMessage() == "a request broke"]
        assert record.exc_info is not None
        assert record.exc_info[0] is ZeroDivisionError
        served.backend.refusal = None
        assert (await client.post("/infer", json={"prompt": "x"})).status_code == 200


async def test_a_model_that_was_just_put_there_is_found() -> None:
    """An unknown name makes the daemon look again before it says no."""
    async with serving(text_events("a")) as served, served.client() as client:
        served.backend.arriving = [ModelSpec(id="new.gguf", path="/m/new.gguf", aliases=("new",))]
        answer = await client.post("/infer", json={"prompt": "x", "model": "new"})
        assert answer.status_code == 200
        assert (await client.post("/infer", json={"prompt": "x", "model": "other"})).status_code == 404


async def test_the_order_says_what_the_client_asked_for() -> None:
    """The body reaches the scheduler as an order, with the request's id."""
    async with serving(text_events("a")) as served, served.client() as client:
        body = {"prompt": "x", "timeout": "30s", "priority": "low", "max_tokens": 3}
        await client.post("/infer", json=body, headers={"X-Request-ID": "r1"})
        [ticket] = served.backend.tickets
        assert ticket.request_id == "r1"
        assert (ticket.order.timeout_s, ticket.order.priority) == (30, "low")
        assert ticket.order.request.max_tokens == 3


@pytest.mark.parametrize(
    ("query", "headers", "expected"),
    [
        ("", {}, {"inference began", "inference ended"}),
        ("?log=off", {}, set()),
        ("?log=error", {}, set()),
        ("?log=info", {}, {"inference began", "inference ended"}),
        ("?log=debug", {}, {"inference began", "line", "inference ended"}),
        ("?log=1", {}, {"inference began", "line", "inference ended"}),
        ("", {"X-Log-Level": "off"}, set()),
        ("", {"X-Log-Level": "debug"}, {"inference began", "line", "inference ended"}),
        ("", {"X-Log-Infer": "1"}, {"inference began", "line", "inference ended"}),
        ("?log=off", {"X-Log-Level": "debug", "X-Log-Infer": "1"}, set()),
    ],
)
async def test_a_request_chooses_its_own_log_level(
    query: str, headers: dict[str, str], expected: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    """`?log=`, then `X-Log-Level`, then `X-Log-Infer` override the daemon's level for this request."""
    async with serving(text_events("a")) as served, served.client() as client:
        await client.post(f"/infer{query}", json={"prompt": "x"}, headers=headers)
    records = [record for record in caplog.records if record.name == "modeld.request"]
    assert {record.getMessage() for record in records} == expected
    for record in records:
        fields: dict[str, Any] = record.fields
        assert fields["model"] == "tiny-q4.gguf"
        if record.getMessage() == "inference ended":
            assert (fields["outcome"], fields["completion_tokens"]) == ("stop", 1)


@pytest.mark.parametrize(("query", "headers"), [("?log=loud", {}), ("", {"X-Log-Level": "7"})])
async def test_an_unknown_log_level_is_refused(query: str, headers: dict[str, str]) -> None:
    """A level that there is not is 400, not a guess."""
    async with serving(text_events("a")) as served, served.client() as client:
        answer = await client.post(f"/infer{query}", json={"prompt": "x"}, headers=headers)
        assert answer.status_code == 400
        assert "off, error, warn, info or debug" in answer.json()["error"]


@pytest.mark.parametrize("began", [False, True])
@pytest.mark.parametrize(
    ("error", "level"),
    [
        (EngineFailed("the engine died"), "ERROR"),
        (InternalError("a defect"), "ERROR"),
        (DeadlineExceeded("30 s are over"), "INFO"),
        (DeadlineUnreachable("it would take 40 s"), "INFO"),
        (DoesNotFit("it needs 5 GiB"), "INFO"),
        (Draining("the daemon is shutting down"), "INFO"),
        (ModelFailed("it failed 5 times"), "INFO"),
        (QueueFull("32 wait already"), "INFO"),
    ],
)
async def test_only_defects_are_logged_as_errors(
    error: ModeldError, level: str, began: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """What the client asked for itself, and refusals for want of room or time, are no errors of ours."""

    async def fail(ticket: Ticket) -> None:
        await trio.lowlevel.checkpoint()
        if began:
            ticket.put(Delta(text="a"))
        ticket.put(Failed(problem=error.as_problem()))

    async with serving(fail) as served, served.client() as client:
        await client.post("/infer", json={"prompt": "x"})
        await served.backend.wait_closed()
    [ended] = [record for record in caplog.records if record.getMessage() == "inference ended"]
    assert ended.levelname == level


@pytest.mark.parametrize("error", [InvalidRequest("no role is 'secret'"), InvalidGrammar("secret ::= x")])
async def test_words_of_a_request_are_logged_at_debug_only(
    error: ModeldError, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer has them; at `info` the log has the kind of error and a sentence of its own."""

    async def fail(ticket: Ticket) -> None:
        await trio.lowlevel.checkpoint()
        ticket.put(Failed(problem=error.as_problem()))

    async with serving(fail) as served, served.client() as client:
        answer = await client.post("/infer", json={"prompt": "secret"})
        assert answer.json()["error"] == error.message
        await served.backend.wait_closed()
        [ended] = [record for record in caplog.records if record.getMessage() == "inference ended"]
        fields: dict[str, Any] = ended.fields
        assert (fields["outcome"], fields["error"]) == (error.kind, type(error).brief)
        assert not [record for record in caplog.records if "secret" in repr(vars(record))]
        await client.post("/infer?log=debug", json={"prompt": "secret"})
        await served.backend.wait_closed()
    assert {"error": error.message}.items() <= caplog.records[-1].fields.items()


async def test_events_that_are_there_already_come_first() -> None:
    """A stream that begins at once begins with what is known, not with a blank line."""

    async def queue(ticket: Ticket) -> None:
        await trio.lowlevel.checkpoint()
        ticket.put(Queued(position=1))
        finish(ticket)

    async with serving(queue) as served, served.client() as client:
        answer = await client.post("/infer", json={"prompt": "x", "events": True})
        assert answer.content.startswith(b'{"event":"queued","position":1,"eta_ms":null}\n')


@pytest.mark.slow
async def test_progress_that_makes_no_line_does_not_hide_the_silence() -> None:
    """A load that crawls is kept alive by blank lines, though its small steps are not told."""

    async def crawl(ticket: Ticket) -> None:
        while not ticket.closed:
            ticket.put(Loading(progress=0.41))
            await trio.sleep(0.02)

    async with serving(crawl, stream_keep_alive_s=0.1) as served:
        raw = await served.connect()
        await raw.infer(events=True)
        await raw.read_until(b'{"event":"loading","progress":0.41}\n')
        with trio.fail_after(30):
            silence = await raw.read_until(b"1\r\n\n\r\n")
        assert b"loading" not in silence
