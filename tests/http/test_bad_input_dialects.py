# SPDX-License-Identifier: GPL-3.0-only
"""The same bad input in every dialect that can say it: a clear 400, never silence and never a defect."""

from __future__ import annotations

from typing import Any

import pytest
from support.backend import text_events
from support.http_server import serving

from modeld.domain.request import GenerateRequest

IMAGE = "data:image/png;base64,AAAA"
MANY = 10_000


def chat(*messages: Any, **more: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/chat/completions", {"messages": list(messages), **more}


def responses(*items: Any, **more: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/responses", {"input": list(items), **more}


def anthropic(*messages: Any, **more: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/messages", {"model": "tiny-q4", "max_tokens": 4, "messages": list(messages), **more}


def ollama(*messages: Any, **more: Any) -> tuple[str, dict[str, Any]]:
    return "/api/chat", {"messages": list(messages), "stream": False, **more}


def native(*messages: Any, **more: Any) -> tuple[str, dict[str, Any]]:
    return "/infer", {"messages": list(messages), "stream": False, **more}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


HELLO = user("Hello")
DIALECTS = [chat, responses, anthropic, ollama, native]


def function(parameters: Any, name: str = "f") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def offered(parameters: Any, name: str = "f") -> list[tuple[str, dict[str, Any]]]:
    """A function in each dialect that has them."""
    return [
        chat(HELLO, tools=[function(parameters, name)]),
        responses(HELLO, tools=[{"type": "function", "name": name, "parameters": parameters}]),
        anthropic(HELLO, tools=[{"name": name, "input_schema": parameters}]),
        ollama(HELLO, tools=[function(parameters, name)]),
    ]


DEEP: dict[str, Any] = {"type": "object"}
for _ in range(150):
    DEEP = {"type": "object", "properties": {"a": DEEP}}

CASES = {
    "images": (
        "vision",
        [
            chat(user([{"type": "image_url", "image_url": {"url": IMAGE}}])),
            chat(user([{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}}])),
            responses(user([{"type": "input_image", "image_url": IMAGE}])),
            anthropic(user([{"type": "image", "source": {"type": "url", "url": "http://127.0.0.1:1/x"}}])),
            ollama(user("Hello") | {"images": ["AAAA"]}),
            ("/api/generate", {"prompt": "Hello", "images": ["AAAA"], "stream": False}),
        ],
    ),
    "sound": ("audio", [chat(user([{"type": "input_audio", "input_audio": {"data": "AA"}}]))]),
    "parts of no type": (
        "type",
        [
            chat(user([{"text": "Hello"}])),
            responses(user([{"text": "Hello"}])),
            anthropic(user([{"text": "Hello"}])),
        ],
    ),
    "parts of an unknown type": (
        "type` must be one of",
        [
            chat(user([{"type": "video", "video": {}}])),
            responses(user([{"type": "video"}])),
            anthropic(user([{"type": "video"}])),
        ],
    ),
    "parts without their text": (
        "lacks the key",
        [
            chat(user([{"type": "text"}])),
            responses(user([{"type": "input_text"}])),
            anthropic(user([{"type": "text"}])),
        ],
    ),
    "parts that are no objects": (
        "must be",
        [make(user(["Hello"])) for make in (chat, responses, anthropic)]
        + [make(user([{"type": "text", "text": 5}])) for make in (chat, anthropic)]
        + [make(user({"type": "text"})) for make in DIALECTS],
    ),
    "unknown roles": ("role", [make({"role": "wizard", "content": "Hello"}) for make in DIALECTS[:-1]]),
    "no roles": ("role", [make({"content": "Hello"}) for make in (chat, anthropic, ollama, native)]),
    "schemas that are no objects": ("object", [*offered([1]), *offered("string"), *offered(5)]),
    "schemas without end": ("nested", offered(DEEP)),
    "names that are none": ("name", [*offered({}, ""), *offered({}, "a b"), *offered({}, "x" * 200)]),
    "two functions of one name": (
        "two functions",
        [
            chat(HELLO, tools=[function({}), function({})]),
            responses(HELLO, tools=[{"type": "function", "name": "f"}] * 2),
            anthropic(HELLO, tools=[{"name": "f", "input_schema": {}}] * 2),
            ollama(HELLO, tools=[function({}), function({})]),
        ],
    ),
    "a choice that was not offered": (
        "not among",
        [
            chat(HELLO, tools=[function({})], tool_choice={"type": "function", "function": {"name": "g"}}),
            responses(
                HELLO,
                tools=[{"type": "function", "name": "f"}],
                tool_choice={"type": "function", "name": "g"},
            ),
            anthropic(
                HELLO, tools=[{"name": "f", "input_schema": {}}], tool_choice={"type": "tool", "name": "g"}
            ),
        ],
    ),
    "very many choices": (
        "`n`",
        [chat(HELLO, n=1000), ("/v1/completions", {"prompt": "Hello", "n": 1000}), chat(HELLO, n=0)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
async def test_bad_input_is_a_400_that_says_what_is_wrong(case: str) -> None:
    """In each dialect that can say it; nothing of it reaches the runtime."""
    said, asked = CASES[case]
    async with serving(text_events("a")) as served, served.client() as client:
        for path, body in asked:
            answer = await client.post(path, json=body)
            assert answer.status_code == 400, (path, body, answer.text)
            assert said in answer.text, (path, answer.text)
        assert served.backend.tickets == []


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/api/chat", "/infer"])
async def test_half_a_surrogate_pair_is_told(path: str) -> None:
    """It is no character, and a sentence of its own says so."""
    body = b'{"model": "tiny-q4", "max_tokens": 4, "messages": [{"role": "user", "content": "\\ud83d"}]}'
    if path == "/api/chat":
        body = body.replace(b'"max_tokens": 4, ', b"")
    async with serving(text_events("a")) as served, served.client() as client:
        answer = await client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400
        assert "half of a character" in answer.text
        whole = body.replace(b"\\ud83d", b"\\ud83d\\ude00")
        answer = await client.post(path, content=whole, headers={"Content-Type": "application/json"})
        assert answer.status_code == 200
        assert len(served.backend.tickets) == 1


@pytest.mark.parametrize("make", DIALECTS)
async def test_ten_thousand_messages_reach_the_model(make: Any) -> None:
    """What it makes of them is for its context to say (`tests/clients`): they are legal."""
    turns = [
        user("a") if number % 2 == 0 else {"role": "assistant", "content": "b"} for number in range(MANY)
    ]
    path, body = make(*turns, user("c"))
    async with serving(text_events("a")) as served, served.client() as client:
        answer = await client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        request = served.backend.tickets[0].order.request
        assert isinstance(request, GenerateRequest)
        assert len(request.messages) == MANY + 1
