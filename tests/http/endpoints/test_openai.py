# SPDX-License-Identifier: GPL-3.0-only
"""OpenAI's paths over a real socket, through OpenAI's own client, with a scripted runtime behind them."""

from __future__ import annotations

import base64
import json
import struct
import time
from typing import Any

import openai
import pytest
import trio
from support.backend import TINY, finish, text_events
from support.http_server import serving
from support.openai_api import chat_bytes, chunks_of, client_for

from modeld.config.settings import Settings
from modeld.domain.request import Order
from modeld.domain.request_events import (
    Delta,
    Embedded,
    Failed,
    FinishReason,
    Logprobs,
    Started,
    TokenLogprob,
    Usage,
)
from modeld.errors import DeadlineExceeded, DoesNotFit, Draining, EngineFailed, PromptTooLong, QueueFull
from modeld.runtime.ticket import Ticket

pytestmark = pytest.mark.filterwarnings(
    # The client does not close its own generators behind [DONE].
    "ignore:Async generator '(openai|httpx):ResourceWarning"
)
HELLO: Any = [{"role": "user", "content": "Hello"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'


async def test_a_chat_is_answered_whole() -> None:
    """One object with the message, the counts, and the request's id in its header and its own id."""
    async with serving(text_events("Hel", "lo")) as served, client_for(served) as client:
        raw = await client.chat.completions.with_raw_response.create(model="tiny-q4", messages=HELLO)
        answer = raw.parse()
        assert answer.choices[0].message.content == "Hello"
        assert (answer.choices[0].finish_reason, answer.model) == ("stop", TINY.id)
        assert answer.usage is not None
        assert answer.usage.model_dump(exclude_none=True) == {
            "prompt_tokens": 5,
            "completion_tokens": 2,
            "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 2},
        }
        assert answer.id == f"chatcmpl-{raw.headers['x-request-id']}"
        assert raw.request_id == raw.headers["x-request-id"]
        await served.backend.wait_closed()


async def test_a_chat_streams_in_order() -> None:
    """Role, text, reason, counts where they are asked for, and [DONE]; no event is empty."""
    async with serving(text_events("Hel", "", "lo")) as served, served.client() as client:
        body = {"messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}
        reply = await client.post("/v1/chat/completions", json=body)
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.content.endswith(b"data: [DONE]\n\n")
        chunks = chunks_of(reply.content)
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
        assert deltas == [
            {"role": "assistant", "content": "", "refusal": None},
            {"content": "Hel"},
            {"content": "lo"},
            {},
        ]
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None, None, None, "stop"]
        assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * 4
        assert (chunks[-1]["choices"], chunks[-1]["usage"]["total_tokens"]) == ([], 8)
        assert len({chunk["id"] for chunk in chunks}) == 1


async def by_index(ticket: Ticket) -> None:
    """Answer with the number of the ticket, so that choices can be told apart."""
    ticket.put(Started(usage=Usage(prompt_tokens=5)))
    for part in ("a", "b"):
        ticket.put(Delta(text=f"{part}{ticket.id}"))
        await trio.lowlevel.checkpoint()
    finish(ticket, tokens=2)


async def test_choices_are_generations_of_their_own() -> None:
    """`n` of them, each with its seed; the prompt counts once."""
    async with serving(by_index) as served, client_for(served) as client:
        answer = await client.chat.completions.create(model="tiny-q4", messages=HELLO, n=3, seed=7)
        assert [choice.message.content for choice in answer.choices] == ["a0b0", "a1b1", "a2b2"]
        seeds = [ticket.order.request.sampling.seed for ticket in served.backend.tickets]
        assert seeds == [7, 8, 9]
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 6)


async def test_choices_stream_beside_each_other() -> None:
    """Each chunk has the index of its choice, each choice its end, and the stream one [DONE]."""
    async with serving(by_index) as served, client_for(served) as client:
        stream = await client.chat.completions.create(model="tiny-q4", messages=HELLO, n=3, stream=True)
        texts, ends = ["", "", ""], [0, 0, 0]
        async for chunk in stream:
            (choice,) = chunk.choices
            texts[choice.index] += choice.delta.content or ""
            ends[choice.index] += choice.finish_reason == "stop"
        assert texts == ["a0b0", "a1b1", "a2b2"]
        assert ends == [1, 1, 1]
        for number in range(3):
            await served.backend.wait_closed(number)


async def test_leaving_ends_all_choices() -> None:
    """A client that goes away frees every slot."""
    async with serving() as served:
        raw = await served.connect()
        await raw.send(chat_bytes(n=3, stream=True))
        ticket = await served.backend.ticket(2)
        ticket.put(Delta(text="one"))
        await raw.read_until(b"one")
        raw.stream.socket.close()
        for number in range(3):
            await served.backend.wait_closed(number)
        assert len(served.backend.closed) == 3


async def test_too_many_choices_are_refused_with_the_numbers() -> None:
    """More than slots and queue can hold is a 400, as no second try would help; 1000 is out of range."""
    async with serving(settings=Settings(max_queue_depth=2)) as served, client_for(served) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model="tiny-q4", messages=HELLO, n=7)
        assert "6 are the most" in caught.value.message
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model="tiny-q4", messages=HELLO, n=1000)
        assert "`n`" in caught.value.message
        assert caught.value.param == "n"
        assert served.backend.tickets == []


async def test_one_choice_that_is_refused_gives_all_up() -> None:
    """Those that were taken are closed, and the answer is the refusal."""

    async def script(ticket: Ticket) -> None:
        if ticket.id == 1:
            ticket.put(Failed(problem=QueueFull("no place").as_problem()))

    async with serving(script) as served, client_for(served) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model="tiny-q4", messages=HELLO, n=2)
        assert (caught.value.type, caught.value.code) == ("rate_limit_error", "queue_full")
        await served.backend.wait_closed(0)
        await served.backend.wait_closed(1)


async def test_calls_stream_as_deltas() -> None:
    """Once a call is complete, id and name come first, then its arguments; the reason is tool_calls."""
    parts = [CALL[at : at + 5] for at in range(0, len(CALL), 5)]
    async with serving(text_events("I look. ", *parts)) as served, client_for(served) as client:
        stream = await client.chat.completions.create(
            model="tiny-q4", messages=HELLO, tools=[WEATHER], stream=True
        )
        text, arguments, names, reasons = "", [], [], []
        async for chunk in stream:
            choice = chunk.choices[0]
            text += choice.delta.content or ""
            reasons.append(choice.finish_reason)
            for call in choice.delta.tool_calls or ():
                assert call.index == 0
                assert call.function is not None
                if call.id:
                    names.append(call.function.name)
                arguments.append(call.function.arguments or "")
        assert (text, names, reasons[-1]) == ("I look. ", ["weather"], "tool_calls")
        assert json.loads("".join(arguments)) == {"city": "Rome"}
        assert arguments == ["", '{"city": "Rome"}']


async def test_calls_come_whole() -> None:
    """Content is null when there are only calls; with `parallel_tool_calls` false the first alone counts."""
    async with serving(text_events(CALL, CALL)) as served, client_for(served) as client:
        answer = await client.chat.completions.create(model="tiny-q4", messages=HELLO, tools=[WEATHER])
        message = answer.choices[0].message
        assert (message.content, answer.choices[0].finish_reason) == (None, "tool_calls")
        assert [call.function.name for call in message.tool_calls or ()] == ["weather", "weather"]
        assert len({call.id for call in message.tool_calls or ()}) == 2
        answer = await client.chat.completions.create(
            model="tiny-q4", messages=HELLO, tools=[WEATHER], parallel_tool_calls=False
        )
        assert len(answer.choices[0].message.tool_calls or ()) == 1


async def test_without_tools_a_call_is_text() -> None:
    """What looks like a call is one only where functions were offered."""
    async with serving(text_events(CALL)) as served, client_for(served) as client:
        for more in ({}, {"tools": [WEATHER], "tool_choice": "none"}):
            answer = await client.chat.completions.create(model="tiny-q4", messages=HELLO, **more)
            assert answer.choices[0].message.content == CALL


def some_logprobs() -> tuple[Logprobs, ...]:
    chosen = TokenLogprob(1, b"\xc3", -0.5)
    return (Logprobs(chosen=chosen, top=(chosen, TokenLogprob(2, b"b", float("-inf")))),)


async def with_logprobs(ticket: Ticket) -> None:
    ticket.put(Delta(text="", logprobs=some_logprobs()))
    ticket.put(Delta(text="x", logprobs=some_logprobs()))
    finish(ticket, tokens=2)


async def test_log_probabilities_of_a_chat() -> None:
    """Of each token, as text and as bytes, whole and in a stream."""
    async with serving(with_logprobs) as served, client_for(served) as client:
        more: Any = {"model": "tiny-q4", "messages": HELLO, "logprobs": True, "top_logprobs": 2}
        answer = await client.chat.completions.create(**more)
        found = answer.choices[0].logprobs
        assert found is not None
        assert [(entry.token, entry.logprob, entry.bytes) for entry in found.content or ()] == [
            ("�", -0.5, [195])
        ] * 2
        assert [top.logprob for top in (found.content or ())[0].top_logprobs] == [-0.5, -9999.0]
        count = 0
        async for chunk in await client.chat.completions.create(**more, stream=True):
            logprobs = chunk.choices[0].logprobs
            count += len(logprobs.content or ()) if logprobs else 0
        assert count == 2


async def test_log_probabilities_of_a_completion() -> None:
    """Four lists of one length, offsets counted in characters of the tokens."""
    async with serving(with_logprobs) as served, client_for(served) as client:
        answer = await client.completions.create(model="tiny-q4", prompt="x", logprobs=2)
        found = answer.choices[0].logprobs
        assert found is not None
        assert (found.tokens, found.token_logprobs, found.text_offset) == (["�", "�"], [-0.5, -0.5], [0, 1])
        assert found.top_logprobs == [{"�": -0.5, "b": -9999.0}] * 2


async def test_a_completion_takes_texts_and_tokens() -> None:
    """Each prompt has `n` choices, in order; ids go to the engine as they are; `echo` repeats a text."""
    async with serving(by_index) as served, client_for(served) as client:
        answer = await client.completions.create(model="tiny-q4", prompt=["p ", "q "], n=2, echo=True)
        assert [choice.text for choice in answer.choices] == ["p a0b0", "p a1b1", "q a2b2", "q a3b3"]
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == 10
        await client.completions.create(model="tiny-q4", prompt=[1, 2, 3])
        await client.completions.create(model="tiny-q4", prompt=[[4, 5]], max_tokens=3)
        requests = [ticket.order.request for ticket in served.backend.tickets[4:]]
        assert [(it.prompt_tokens, it.max_tokens) for it in requests] == [((1, 2, 3), 16), ((4, 5), 3)]
        text = ""
        async for chunk in await client.completions.create(
            model="tiny-q4", prompt="p ", echo=True, stream=True
        ):
            text += chunk.choices[0].text
        assert text == "p a6b6"


async def test_embeddings_as_numbers_and_in_base64() -> None:
    """Both forms hold the same numbers; the client asks for base64 by itself."""

    async def script(ticket: Ticket) -> None:
        for first in range(2):
            ticket.put(Embedded(first, (struct.pack("<2f", first, 0.1),)))
        finish(ticket)

    async with serving(script) as served, client_for(served) as client:
        answer = await client.embeddings.create(model="tiny-q4", input=["a", "b"])
        assert [entry.embedding[0] for entry in answer.data] == [0, 1]
        assert answer.usage.prompt_tokens == 5
        plain = await client.embeddings.create(model="tiny-q4", input=["a", "b"], encoding_format="float")
        assert plain.data[1].embedding == pytest.approx(answer.data[1].embedding)
        raw = await client.post(
            "/embeddings", body={"input": "a", "encoding_format": "base64"}, cast_to=object
        )
        assert struct.unpack("<2f", base64.b64decode(raw["data"][1]["embedding"]))[0] == 1
        for more in ({"dimensions": 8}, {"input": [[1, "x"]]}, {"input": ""}, {"input": []}):
            with pytest.raises(openai.BadRequestError):
                await client.embeddings.create(**{"model": "tiny-q4", "input": "a"} | more)


async def test_models_are_listed_by_the_names_of_their_files() -> None:
    """Sound ones only; a stem finds its model; what is not there is a 404 in OpenAI's envelope."""
    async with serving() as served, client_for(served) as client:
        found = [model async for model in client.models.list()]
        assert [(model.id, model.created) for model in found] == [("tiny-q4.gguf", 1_700_000_000)]
        assert (await client.models.retrieve("tiny-q4")).id == "tiny-q4.gguf"
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.retrieve("a/b")
        assert (caught.value.code, caught.value.type) == ("model_not_found", "invalid_request_error")
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model="nope", messages=HELLO)
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("error", "expected", "kind"),
    [
        (
            PromptTooLong("too long", details={"context": 8}),
            openai.BadRequestError,
            "context_length_exceeded",
        ),
        (QueueFull("full"), openai.RateLimitError, "queue_full"),
        (Draining("going"), openai.InternalServerError, "draining"),
    ],
)
async def test_refusals_become_the_exceptions_of_the_client(
    error: Exception, expected: type[openai.APIStatusError], kind: str
) -> None:
    """With OpenAI's types and modeld's kinds as codes, before a stream and without one."""

    async def script(ticket: Ticket) -> None:
        ticket.put(Failed(problem=error.as_problem()))

    async with serving(script) as served, client_for(served) as client:
        for stream in (False, True):
            with pytest.raises(expected) as caught:
                await client.chat.completions.create(model="tiny-q4", messages=HELLO, stream=stream)
            assert caught.value.code == kind
            assert caught.value.request_id


@pytest.mark.parametrize("n", [1, 2])
async def test_an_error_in_the_middle_is_raised_by_the_client(n: int) -> None:
    """What came until then is read, then the error is raised as it is."""

    async def script(ticket: Ticket) -> None:
        ticket.put(Delta(text="so far"))
        ticket.put(Failed(problem=EngineFailed("it died").as_problem()))

    async with serving(script) as served, client_for(served) as client:
        stream = await client.chat.completions.create(model="tiny-q4", messages=HELLO, stream=True, n=n)
        text = ""

        async def read() -> None:
            nonlocal text
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""

        with pytest.raises(openai.APIError, match="it died"):
            await read()
        assert text.startswith("so far")


@pytest.mark.parametrize("reason", [FinishReason.SHUTDOWN, FinishReason.CANCELLED])
async def test_an_answer_that_the_server_cut_is_an_error(reason: FinishReason) -> None:
    """Clients know no reason for it: whole it is a 503 to try again, in a stream an error."""

    async def script(ticket: Ticket) -> None:
        ticket.put(Delta(text="so far"))
        finish(ticket, reason)

    async with serving(script) as served, client_for(served) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="tiny-q4", messages=HELLO)
        assert caught.value.status_code == 503
        assert "unloaded" in caught.value.message  # No shutdown alone is blamed.
        assert int(caught.value.response.headers["retry-after"]) >= 1
        with pytest.raises(openai.APIError, match="this answer was cut"):
            async for _ in await client.chat.completions.create(model="tiny-q4", messages=HELLO, stream=True):
                pass


@pytest.mark.parametrize("reason", [FinishReason.LENGTH, FinishReason.TIMEOUT])
async def test_an_answer_that_ran_out_has_the_reason_length(reason: FinishReason) -> None:
    """Of tokens or of time."""

    async def script(ticket: Ticket) -> None:
        ticket.put(Delta(text="x"))
        finish(ticket, reason)

    async with serving(script) as served, client_for(served) as client:
        answer = await client.chat.completions.create(model="tiny-q4", messages=HELLO)
        assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    "refusal", [QueueFull("full", retry_after_s=1.0), Draining("going", retry_after_s=1.0)]
)
@pytest.mark.slow
async def test_clients_try_again_when_they_are_told_to(refusal: Exception) -> None:
    """After 429 and 503 the client waits the seconds of Retry-After, and its second try is served."""
    async with serving(text_events("hi")) as served, client_for(served, max_retries=1) as client:
        serve, tries = served.backend.submit, list[float]()

        def submit(order: Order, *, request_id: str) -> Ticket:
            tries.append(time.monotonic())
            if len(tries) == 1:
                raise refusal
            return serve(order, request_id=request_id)

        served.backend.submit = submit
        answer = await client.chat.completions.create(model="tiny-q4", messages=HELLO)
        assert answer.choices[0].message.content == "hi"
        first, second = tries
        assert second - first >= 0.9


@pytest.mark.parametrize("refusal", [DoesNotFit("too large"), DeadlineExceeded("too late")])
async def test_clients_do_not_try_again_in_vain(refusal: Exception) -> None:
    """What a second try cannot change is told at once, though the client tries any other 5xx again."""
    tries: list[str] = []

    def refuse(_order: object, *, request_id: str) -> Ticket:
        tries.append(request_id)
        raise refusal

    async with serving() as served, client_for(served, max_retries=2) as client:
        served.backend.submit = refuse
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="tiny-q4", messages=HELLO)
        assert caught.value.code == refusal.kind
        assert len(tries) == 1


async def test_a_client_that_loses_patience_frees_its_slot() -> None:
    """Its timeout closes the connection, and so the ticket."""
    patience = openai.Timeout(60, read=0.2)
    async with serving() as served, client_for(served) as client:
        with pytest.raises(openai.APITimeoutError):
            await client.chat.completions.create(model="tiny-q4", messages=HELLO, timeout=patience)
        await served.backend.wait_closed()


async def test_leaving_a_stream_frees_its_slot() -> None:
    """A client that closes its stream ends the generation."""

    async def script(ticket: Ticket) -> None:
        ticket.put(Delta(text="one"))

    async with serving(script) as served, client_for(served) as client:
        stream = await client.chat.completions.create(model="tiny-q4", messages=HELLO, stream=True)
        async with stream:
            async for chunk in stream:
                if chunk.choices[0].delta.content == "one":
                    break
        await served.backend.wait_closed()
        assert served.backend.closed == served.backend.tickets


@pytest.mark.parametrize("events", [0, 1, 2, 3])
async def test_a_stream_may_be_abandoned_at_each_event(events: int) -> None:
    """However much of it was read, the slot is free afterwards and the server serves on."""

    async def script(ticket: Ticket) -> None:
        for text in ("one", "two", "three")[:events]:
            ticket.put(Delta(text=text))

    async with serving(script) as served:
        raw = await served.connect()
        await raw.send(chat_bytes(stream=True))
        await served.backend.ticket()
        if events:
            await raw.read_until(("one", "two", "three")[events - 1].encode())
        raw.stream.socket.close()
        await served.backend.wait_closed()
        assert served.backend.closed == served.backend.tickets
        served.backend.script = text_events("still here")
        async with client_for(served) as client:
            answer = await client.chat.completions.create(model="tiny-q4", messages=HELLO)
        assert answer.choices[0].message.content == "still here"


async def test_a_silent_stream_carries_comments() -> None:
    """Readers of server-sent events skip them."""
    async with serving(stream_keep_alive_s=0.01) as served:
        raw = await served.connect()
        await raw.send(chat_bytes(stream=True))
        ticket = await served.backend.ticket()
        ticket.put(Delta(text="one"))
        silence = await raw.read_until(b": still here\n\n")
        assert b"[DONE]" not in silence
        finish(ticket)
        assert (await raw.read_until(b"[DONE]")).count(b'"finish_reason":"stop"') == 1
