# SPDX-License-Identifier: GPL-3.0-only
"""The Python package of Anthropic against the daemon with a real model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import pytest
import trio
from support.daemon_process import Q4_0, Daemon, client, daemon, until

pytestmark = [pytest.mark.e2e, pytest.mark.real]

TURNS: Any = [{"role": "user", "content": "Say hello."}]
ASKED: Any = {"model": Q4_0, "max_tokens": 12, "messages": TURNS, "extra_body": {"temperature": 0}}
PAINT: Any = {
    "name": "paint",
    "description": "Paint it",
    "input_schema": {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}},
        "required": ["colour"],
        "additionalProperties": False,
    },
}
ENDLESS: Any = {
    **ASKED,
    "max_tokens": 100_000,
    "output_config": {
        "format": {
            "type": "json_schema",
            "schema": {"type": "array", "items": {"type": "string", "minLength": 200}, "minItems": 200},
        }
    },
}


@pytest.fixture(scope="module")
def running() -> Iterator[Daemon]:
    # Without a prefix cache, since a prompt that is decoded in other pieces may give other text.
    with daemon("--llama-ctx", "512", "--llama-slots", "2", "--llama-prefix-cells", "0") as here:
        yield here


@pytest.fixture
def sync(running: Daemon) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=running.url, api_key="any", max_retries=0) as found:
        yield found


def test_a_message_is_the_same_streamed_or_not(sync: anthropic.Anthropic) -> None:
    """Greedy text in parts and whole; what the client puts together of the events is the message."""
    whole = sync.messages.create(**ASKED)
    assert (whole.role, whole.stop_reason) == ("assistant", "max_tokens")
    assert whole.usage.output_tokens == 12
    assert whole.usage.input_tokens > 4
    with sync.messages.stream(**ASKED) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert final.stop_reason == "max_tokens"
    assert final.usage.input_tokens == whole.usage.input_tokens
    kinds = [event.type for event in sync.messages.create(**ASKED, stream=True)]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}


def test_a_system_prompt_and_blocks(sync: anthropic.Anthropic) -> None:
    """Text in blocks is the same prompt as text alone."""
    blocks: Any = [{"role": "user", "content": [{"type": "text", "text": "Say hello."}]}]
    system: Any = [{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}]
    one = sync.messages.create(**ASKED, system="Be kind.")
    other = sync.messages.create(**{**ASKED, "messages": blocks}, system=system)
    assert one.usage.input_tokens == other.usage.input_tokens
    assert one.content[0].text == other.content[0].text
    followed = sync.messages.create(**{**ASKED, "messages": [*TURNS, one.to_param(), *TURNS]})
    assert followed.usage.input_tokens > one.usage.input_tokens


def test_a_stop_sequence_is_named(sync: anthropic.Anthropic) -> None:
    """The reason and the sequence, and no part of it in the text."""
    asked = {**ASKED, "max_tokens": 60}
    text = sync.messages.create(**asked).content[0].text
    stop = text[len(text) // 2]
    cut = sync.messages.create(**asked, stop_sequences=[stop, "never there"])
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", stop)
    assert "".join(block.text for block in cut.content) == text.partition(stop)[0]


def test_forced_calls(sync: anthropic.Anthropic) -> None:
    """`any` and a name are kept by a grammar, streamed or not; results are taken."""
    for choice in ({"type": "any"}, {"type": "tool", "name": "paint"}):
        asked: Any = {**ASKED, "max_tokens": 60, "tools": [PAINT], "tool_choice": choice}
        message = sync.messages.create(**asked)
        [call] = message.content
        assert (call.type, call.name, message.stop_reason) == ("tool_use", "paint", "tool_use")
        assert call.input["colour"] in {"red", "green"}
    with sync.messages.stream(**asked) as stream:
        final = stream.get_final_message()
    assert final.content[0].input == call.input
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "done"}
    turns: Any = [*TURNS, message.to_param(), {"role": "user", "content": [result]}]
    assert sync.messages.create(**{**ASKED, "messages": turns}, tools=[PAINT]).role == "assistant"


def test_a_schema_binds_the_answer(sync: anthropic.Anthropic) -> None:
    """`output_config` is compiled to a grammar."""
    schema = {"format": {"type": "json_schema", "schema": PAINT["input_schema"]}}
    message = sync.messages.create(**{**ASKED, "max_tokens": 60}, output_config=schema)
    assert json.loads(message.content[0].text)["colour"] in {"red", "green"}


def test_tokens_are_counted(sync: anthropic.Anthropic) -> None:
    """As many as the message then has, also with functions; control tokens in text count as text."""
    turns: Any = [{"role": "user", "content": "Say <|im_end|> hello."}]
    for more in ({}, {"tools": [PAINT]}, {"system": "Be kind."}):
        count = sync.messages.count_tokens(model=Q4_0, messages=turns, **more)
        message = sync.messages.create(**{**ASKED, "messages": turns}, **more)
        assert count.input_tokens == message.usage.input_tokens


@pytest.mark.parametrize(
    ("error", "said", "keys"),
    [
        (anthropic.NotFoundError, "'nobody'; GET /v1/models", {"model": "nobody"}),
        (anthropic.BadRequestError, "`temperature` must be", {"extra_body": {"temperature": 2}}),
        (anthropic.BadRequestError, "`thinking` of type", {"thinking": {"type": "enabled"}}),
        (
            anthropic.BadRequestError,
            "no model has vision",
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "base64"}}]}]},
        ),
        (anthropic.BadRequestError, "the prompt has", {"system": "a " * 900}),
    ],
)
def test_errors_are_those_of_the_client(
    sync: anthropic.Anthropic, error: type[anthropic.APIStatusError], said: str, keys: dict[str, Any]
) -> None:
    """Its classes, with the sentence and the id of the request, streamed or not."""
    for stream in (False, True):
        with pytest.raises(error, match=said) as caught:
            sync.messages.create(**{**ASKED, **keys}, stream=stream)
        assert caught.value.body["request_id"]


def test_clients_that_leave_free_their_slot(sync: anthropic.Anthropic, running: Daemon) -> None:
    """In the middle of a stream, and by the client's own timeout."""
    stream = sync.messages.create(**ENDLESS, stream=True)
    assert next(iter(stream)).type == "message_start"
    stream.close()
    assert at_rest(running)["inflight"] == 0
    with pytest.raises(anthropic.APITimeoutError):
        sync.messages.create(**ENDLESS, timeout=httpx2.Timeout(60, read=0.3))
    assert at_rest(running)["inflight"] == 0


async def test_the_async_client(running: Daemon) -> None:
    """The same with awaits: alongside each other, cancelled, and refused."""
    async with anthropic.AsyncAnthropic(base_url=running.url, api_key="any", max_retries=0) as found:
        texts: list[str] = []

        async def tell() -> None:
            async with found.messages.stream(**ASKED) as stream:
                texts.append("".join([text async for text in stream.text_stream]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell)
            nursery.start_soon(tell)
        assert all(texts)
        whole = await found.messages.create(**ASKED)
        assert whole.content[0].text
        with pytest.raises(anthropic.NotFoundError):
            await found.messages.create(**{**ASKED, "model": "nobody"})
        with trio.CancelScope() as scope:
            async for _ in await found.messages.create(**ENDLESS, stream=True):
                scope.cancel()
    async with client(running) as http:
        await until(http, inflight=0)


def at_rest(running: Daemon) -> dict[str, object]:
    async def wait() -> dict[str, object]:
        async with client(running) as http:
            return await until(http, inflight=0, queue_len=0)

    return trio.run(wait)
