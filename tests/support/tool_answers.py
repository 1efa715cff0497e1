# SPDX-License-Identifier: GPL-3.0-only
"""Answers with calls of functions, asked for and read in each dialect, and brought to one form."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from support.backend import TINY

from modeld.dialects import anthropic, ollama, openai
from modeld.domain.request_events import Event

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}
NAMES = ("weather", "time")
MAX_TOKENS = 500


class Answer(NamedTuple):
    """What a client has: texts and calls in their order, and why it ended."""

    parts: tuple[str | tuple[str, str], ...]
    """Texts that follow each other are one; a call is its name and arguments."""
    finish: str

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def calls(self) -> list[tuple[str, str]]:
        return [part for part in self.parts if not isinstance(part, str)]


def answer(parts: Iterable[str | tuple[str, str]], finish: str) -> Answer:
    joined: list[str | tuple[str, str]] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        elif part:
            joined.append(part)
    return Answer(tuple(joined), finish)


class Dialect(NamedTuple):
    """One dialect with functions.

    Attributes:
      path: where it is asked.
      body: a request without functions.
      tool: a function as a body offers it.
      choice: what forces a call; None if nothing does.
      one_call: what asks for one call at most.
      renderer: makes what writes the answer to a body.
      streamed, whole: read an answer.
      finishes: how it names the ends `calls`, `stop`, `length`, `timeout`, `shutdown` and `cancelled`.
      indexed: whether events carry the index of a choice.
    """

    path: str
    body: dict[str, Any]
    tool: Callable[[str], dict[str, Any]]
    choice: Any
    one_call: dict[str, Any]
    renderer: Callable[[bytes], Any]
    streamed: Callable[[bytes], Answer]
    whole: Callable[[bytes], Answer]
    finishes: dict[str, str]
    indexed: bool = False

    def asking(self, *, stream: bool, **more: Any) -> dict[str, Any]:
        return {**self.body, "tools": [self.tool(name) for name in NAMES], "stream": stream, **more}

    def read(self, events: Iterable[Event], *, stream: bool, **more: Any) -> Answer | None:
        """Return the answer to these events, each given by itself; None if a whole answer is an error."""
        renderer = self.renderer(json.dumps(self.asking(stream=stream, **more)).encode())
        given = [[(0, event)] if self.indexed else [event] for event in events]
        if stream:
            return self.streamed(b"".join(map(renderer.lines, given)))
        whole = [renderer.take(some) for some in given][-1]
        return None if whole is None else self.whole(whole)


def events_of(data: bytes) -> Iterator[dict[str, Any]]:
    """The events of a stream, without comments and `[DONE]`."""
    for line in data.split(b"\n"):
        if line.startswith(b"data: ") and line != b"data: [DONE]":
            yield json.loads(line.removeprefix(b"data: "))


def chat_streamed(data: bytes) -> Answer:
    parts: list[str | tuple[str, str]] = []
    finish = ""
    for event in events_of(data):
        if "error" in event:
            return answer(parts, "error")
        [choice] = event["choices"]
        parts.append(choice["delta"].get("content") or "")
        for call in choice["delta"].get("tool_calls", ()):
            number = sum(isinstance(part, tuple) for part in parts)
            if "id" in call:
                assert call["index"] == number
                parts.append((call["function"]["name"], call["function"]["arguments"]))
            else:
                assert call["index"] == number - 1
                name, arguments = parts.pop() or parts.pop()
                parts.append((name, arguments + call["function"]["arguments"]))
        finish = choice["finish_reason"] or finish
    return answer(parts, finish)


def chat_whole(data: bytes) -> Answer:
    [choice] = json.loads(data)["choices"]
    message = choice["message"]
    calls = [
        (call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", ())
    ]
    assert message["content"] is not None or calls
    return answer([message["content"] or "", *calls], choice["finish_reason"])


def response_items(response: dict[str, Any]) -> Answer:
    parts: list[str | tuple[str, str]] = []
    for item in response["output"]:
        if item["type"] == "message":
            parts += [part["text"] for part in item["content"]]
        else:
            assert item["status"] == "completed"
            parts.append((item["name"], item["arguments"]))
    return answer(parts, response["status"])


def response_streamed(data: bytes) -> Answer:
    parts: list[str | tuple[str, str]] = []
    last: dict[str, Any] = {}
    for event in events_of(data):
        last = event
        match event["type"]:
            case "response.output_text.delta":
                parts.append(event["delta"])
            case "response.output_item.added" if event["item"]["type"] == "function_call":
                parts.append((event["item"]["name"], ""))
            case "response.function_call_arguments.delta":
                name, arguments = parts.pop()
                parts.append((name, arguments + event["delta"]))
            case _:
                pass
    told = answer(parts, last["response"]["status"])
    assert told == response_items(last["response"]), "what was streamed is what the last event has"
    return told


def message_streamed(data: bytes) -> Answer:
    parts: list[str | tuple[str, str]] = []
    finish = ""
    for event in events_of(data):
        match event["type"]:
            case "content_block_start":
                block = event["content_block"]
                parts.append("" if block["type"] == "text" else (block["name"], ""))
            case "content_block_delta" if event["delta"]["type"] == "text_delta":
                parts.append(event["delta"]["text"])
            case "content_block_delta":
                name, arguments = parts.pop()
                parts.append((name, arguments + event["delta"]["partial_json"]))
            case "message_delta":
                finish = event["delta"]["stop_reason"]
            case "error":
                finish = "error"
            case _:
                pass
    return answer(parts, finish)


def message_whole(data: bytes) -> Answer:
    message = json.loads(data)
    parts = [
        block["text"] if block["type"] == "text" else (block["name"], json.dumps(block["input"]))
        for block in message["content"]
    ]
    return answer(parts, message["stop_reason"])


def ollama_streamed(data: bytes) -> Answer:
    lines = [json.loads(line) for line in data.splitlines()]
    parts: list[str | tuple[str, str]] = []
    for line in lines:
        parts.append(line["message"]["content"])
        parts += [
            (call["function"]["name"], json.dumps(call["function"]["arguments"]))
            for call in line["message"].get("tool_calls", ())
        ]
    return answer(parts, lines[-1]["done_reason"])


def function(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": PARAMETERS}}


_IDS = {"request_id": "r", "model": "m", "created": 0}
_MESSAGES = [{"role": "user", "content": "Hello"}]
_ENDS = {"shutdown": "error", "cancelled": "error"}
DIALECTS = {
    "chat": Dialect(
        "/v1/chat/completions",
        {"messages": _MESSAGES},
        function,
        "required",
        {"parallel_tool_calls": False},
        lambda body: openai.ChatRenderer(openai.parse_chat(body), **_IDS),
        chat_streamed,
        chat_whole,
        {**_ENDS, "calls": "tool_calls", "stop": "stop", "length": "length", "timeout": "length"},
        indexed=True,
    ),
    "responses": Dialect(
        "/v1/responses",
        {"input": "Hello"},
        lambda name: {"type": "function", "name": name, "parameters": PARAMETERS},
        "required",
        {"parallel_tool_calls": False},
        lambda body: openai.ResponseRenderer(openai.parse_response(body), **_IDS),
        response_streamed,
        lambda data: response_items(json.loads(data)),
        {
            **dict.fromkeys(("calls", "stop"), "completed"),
            **dict.fromkeys(("length", "timeout"), "incomplete"),
            **dict.fromkeys(("shutdown", "cancelled"), "failed"),
        },
    ),
    "anthropic": Dialect(
        "/v1/messages",
        {"model": TINY.id, "max_tokens": MAX_TOKENS, "messages": _MESSAGES},
        lambda name: {"name": name, "input_schema": PARAMETERS},
        {"type": "any"},
        {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
        lambda body: anthropic.MessageRenderer(anthropic.parse_messages(body), model="m", request_id="r"),
        message_streamed,
        message_whole,
        {**_ENDS, "calls": "tool_use", "stop": "end_turn", "length": "max_tokens", "timeout": "error"},
    ),
    "ollama": Dialect(
        "/api/chat",
        {"model": TINY.id, "messages": _MESSAGES},
        function,
        None,
        {},
        lambda body: ollama.OllamaTextRenderer(ollama.parse_chat(body), TINY, created_at="", request_id="r"),
        ollama_streamed,
        ollama_streamed,
        {
            "calls": "stop",
            **{reason: reason for reason in ("stop", "length", "timeout", "shutdown", "cancelled")},
        },
    ),
}
