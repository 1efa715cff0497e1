# SPDX-License-Identifier: GPL-3.0-only
"""The paths of Ollama over a real socket, with a scripted runtime behind them."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
import trio
from msgspec.structs import replace
from support.backend import TINY, finish, start_events, text_events
from support.http_server import abandoned, lines_of, serving

from modeld.domain.instance_state import InstanceState
from modeld.domain.model import catalog_of
from modeld.domain.request import GenerateRequest, TokenizeRequest
from modeld.domain.request_events import (
    Delta,
    Embedded,
    Failed,
    FinishReason,
    Logprobs,
    Started,
    TokenLogprob,
)
from modeld.errors import EngineFailed, QueueFull
from modeld.runtime.ticket import Ticket

CHAT = {"model": "tiny-q4", "messages": [{"role": "user", "content": "Hello"}]}


def request_bytes(path: str, body: object) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


async def test_text_comes_line_by_line() -> None:
    """Each line names the model as the client did; the last one has counts and nanoseconds."""
    async with serving(text_events("Once", " upon")) as served, served.client() as client:
        reply = await client.post("/api/generate", json={"model": "tiny-q4:latest", "prompt": "x"})
        assert (reply.status_code, reply.headers["content-type"]) == (200, "application/x-ndjson")
        *texts, last = lines_of(reply.content)
        assert [line["response"] for line in texts] == ["Once", " upon"]
        assert {line["model"] for line in (*texts, last)} == {"tiny-q4:latest"}
        assert not any(line["done"] for line in texts)
        created_at = last.pop("created_at")
        assert created_at.endswith("Z")
        assert last == {
            "model": "tiny-q4:latest",
            "response": "",
            "done": True,
            "done_reason": "stop",
            "total_duration": 1_234_000_000,
            "load_duration": 500_000_000,
            "prompt_eval_count": 5,
            "prompt_eval_duration": 0,
            "eval_count": 2,
            "eval_duration": 1_164_000_000,
        }


async def test_a_message_is_whole_without_stream() -> None:
    """One object, with the text in `message`."""
    async with serving(text_events("Once", " upon")) as served, served.client() as client:
        reply = await client.post("/api/chat", json={**CHAT, "stream": False})
        assert reply.headers["content-type"] == "application/json"
        assert reply.json()["message"] == {"role": "assistant", "content": "Once upon"}
        assert reply.json()["done"] is True
        streamed = lines_of((await client.post("/api/chat", json=CHAT)).content)
        assert "".join(line["message"]["content"] for line in streamed) == "Once upon"


async def test_what_changes_nothing_is_told() -> None:
    """A `num_ctx` over the model's context is clamped, and the last line says so."""
    async with serving(text_events("x")) as served, served.client() as client:
        options = {"num_ctx": 100_000, "num_gpu": 1}
        reply = await client.post("/api/generate", json={"prompt": "x", "options": options})
        *_, last = lines_of(reply.content)
        assert last["num_ctx"] == 2048
        assert last["notice"].startswith("num_ctx 100000 became 2048")
        assert last["notice"].endswith("no effect here: num_gpu")
        embedded = await client.post("/api/embed", json={"input": "", "options": options})
        assert embedded.json()["notice"] == last["notice"]


async def test_log_probabilities_are_told() -> None:
    """In the stream with their text, and all together without."""
    entry = Logprobs(chosen=TokenLogprob(1, b"x", -0.5), top=(TokenLogprob(2, b"\xff", -1.0),))

    async def script(ticket: Ticket) -> None:
        ticket.put(Delta(text="x", logprobs=(entry,)))
        finish(ticket)

    async with serving(script) as served, served.client() as client:
        asked = {"prompt": "x", "logprobs": True, "top_logprobs": 1}
        told = [
            {
                "token": "x",
                "logprob": -0.5,
                "bytes": [120],
                "top_logprobs": [{"token": "\ufffd", "logprob": -1.0, "bytes": [255]}],
            }
        ]
        line, last = lines_of((await client.post("/api/generate", json=asked)).content)
        assert line["logprobs"] == told
        assert "logprobs" not in last
        whole = await client.post("/api/generate", json={**asked, "stream": False})
        assert whole.json()["logprobs"] == told


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


async def test_a_call_comes_whole() -> None:
    """Its arguments are an object, in a line of its own; text around it stays text."""
    said = ("Let me see. <tool_", 'call>{"name": "weather", "argu', 'ments": {"city": "Rome"}}</tool_call>')
    async with serving(text_events(*said)) as served, served.client() as client:
        reply = await client.post("/api/chat", json={**CHAT, "tools": TOOLS})
        *parts, last = [line["message"] for line in lines_of(reply.content)]
        assert "".join(part["content"] for part in parts) == "Let me see. "
        [call] = parts[-1]["tool_calls"]
        assert call["function"] == {"index": 0, "name": "weather", "arguments": {"city": "Rome"}}
        assert len(call["id"]) == 9
        assert "tool_calls" not in last
        whole = await client.post("/api/chat", json={**CHAT, "tools": TOOLS, "stream": False})
        assert whole.json()["message"]["tool_calls"][0]["function"] == call["function"]
        request = served.backend.tickets[0].order.request
        assert isinstance(request, GenerateRequest)
        assert [tool.name for tool in request.tools] == ["weather"]


async def test_what_functions_answered_reaches_the_model() -> None:
    """A turn with calls, and the turn of the tool behind it."""
    turns = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {"a": 1}}}]},
        {"role": "tool", "tool_name": "weather", "content": "sun"},
    ]
    async with serving(text_events("x")) as served, served.client() as client:
        assert (await client.post("/api/chat", json={"messages": turns, "tools": TOOLS})).status_code == 200
        request = served.backend.tickets[0].order.request
        assert isinstance(request, GenerateRequest)
        _, called, answered = request.messages
        assert (called.tool_calls[0].name, called.tool_calls[0].arguments) == ("weather", '{"a":1}')
        assert (answered.role, answered.name, answered.content) == ("tool", "weather", "sun")


async def test_a_format_binds_what_is_no_call() -> None:
    """With functions offered, the text is one of both."""
    async with serving(text_events("x")) as served, served.client() as client:
        await client.post("/api/chat", json={**CHAT, "tools": TOOLS, "format": {"type": "string", "a": 1}})
        request = served.backend.tickets[0].order.request
        assert isinstance(request, GenerateRequest)
        assert request.constraint is not None
        assert json.loads(request.constraint.text) == {"type": "string", "a": 1}
        assert len(request.constraint.tools) == len(TOOLS)


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ([{"type": "search", "function": {"name": "x"}}], "`tools[0].type` must be function"),
        ([{"function": {"name": "a b"}}], "`tools[0].function.name`"),
        ([{"function": {"name": "x", "parameters": []}}], "`tools[0].function.parameters` must be an object"),
        ([{"function": {"name": "x"}}] * 2, "two functions"),
        (["x"], "`tools[0]` must be an object"),
    ],
)
async def test_bad_functions_are_told(tools: object, said: str) -> None:
    """A 400 with their place."""
    async with serving() as served, served.client() as client:
        reply = await client.post("/api/chat", json={**CHAT, "tools": tools})
        assert reply.status_code == 400
        assert said in reply.json()["error"]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_refusal_has_its_status_and_the_shape_of_ollama(stream: bool) -> None:
    """Known at once or after a wait, it is `{"error": ...}`, with Retry-After where there is one."""

    async def fails(ticket: Ticket) -> None:
        ticket.put(Failed(problem=QueueFull("full", retry_after_s=7).as_problem()))

    async with serving(fails) as served, served.client() as client:
        for _ in range(2):
            reply = await client.post("/api/generate", json={"prompt": "x", "stream": stream})
            assert (reply.status_code, reply.json()) == (429, {"error": "full"})
            assert reply.headers["retry-after"] == "7"
            served.backend.refusal = QueueFull("full", retry_after_s=7)


async def test_a_stream_that_breaks_ends_with_an_error() -> None:
    """The last line is an error, which clients raise."""

    async def script(ticket: Ticket) -> None:
        ticket.put(Started(usage=ticket.usage))
        ticket.put(Delta(text="x"))
        ticket.put(Failed(problem=EngineFailed("it died").as_problem()))

    async with serving(script) as served, served.client() as client:
        reply = await client.post("/api/chat", json=CHAT)
        assert reply.status_code == 200
        assert lines_of(reply.content)[-1] == {"error": "it died"}
        whole = await client.post("/api/chat", json={**CHAT, "stream": False})
        assert (whole.status_code, whole.json()) == (500, {"error": "it died"})


async def test_silence_carries_lines_without_text() -> None:
    """Clients parse every line, so a sign of life is one, too."""

    async def script(ticket: Ticket) -> None:
        ticket.put(Delta(text="x"))

    async with serving(script, stream_keep_alive_s=0.01) as served:
        raw = await served.connect()
        await raw.send(request_bytes("/api/chat", CHAT))
        signs = await raw.read_until(b'"message":{"role":"assistant","content":""},"done":false}\n')
        assert b'"content":"x"' in signs
        finish(await served.backend.ticket())
        end = await raw.read_until(b'"done":true')
        assert b'"content":"x"' not in end


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
async def test_nothing_to_answer_loads_the_model(path: str) -> None:
    """An order that needs no slot; the answer says that it is loaded."""
    async with serving(text_events()) as served, served.client() as client:
        reply = await client.post(path, json={"model": "tiny-q4", "keep_alive": "1h"})
        assert (reply.json()["done"], reply.json()["done_reason"]) == (True, "load")
        order = served.backend.tickets[0].order
        assert order.request == TokenizeRequest(content="")
        assert order.keep_alive_s == 3600


async def test_keep_alive_zero_unloads() -> None:
    """A loaded model goes when it is idle; one that is not loaded is not loaded for that."""
    async with serving(text_events()) as served, served.client() as client:
        asked = {"model": "tiny-q4", "keep_alive": 0}
        assert (await client.post("/api/generate", json=asked)).json()["done_reason"] == "unload"
        assert served.backend.tickets[0].order.keep_alive_s == 0
        served.backend.states = {TINY.id: InstanceState.STOPPED}
        assert (await client.post("/api/chat", json={**asked, "messages": []})).json()[
            "done_reason"
        ] == "unload"
        assert len(served.backend.tickets) == 1


async def test_vectors() -> None:
    """In their order; of the older path the one alone; with `dimensions` their beginning."""

    async def script(ticket: Ticket) -> None:
        ticket.put(Embedded(0, (struct.pack("<3f", 3, 4, 12),)))
        finish(ticket)

    async with serving(script) as served, served.client() as client:
        reply = await client.post("/api/embed", json={"model": "tiny-q4", "input": "x"})
        assert reply.json() == {
            "model": "tiny-q4",
            "embeddings": [[3, 4, 12]],
            "total_duration": 1_234_000_000,
            "load_duration": 500_000_000,
            "prompt_eval_count": 5,
        }
        short = await client.post("/api/embed", json={"input": "x", "dimensions": 2})
        assert short.json()["embeddings"] == [pytest.approx([0.6, 0.8])]
        older = await client.post("/api/embeddings", json={"prompt": "x"})
        assert older.json() == {"embedding": [3, 4, 12]}


async def test_the_lists() -> None:
    """What clients read of the models; damaged files are left out."""
    async with serving() as served, served.client() as client:
        served.backend.templates[TINY.id] = "{{ messages }}"
        [model] = (await client.get("/api/tags")).json()["models"]
        assert (model["name"], model["model"], model["size"]) == (TINY.id, TINY.id, 1234)
        assert model["modified_at"] == "2023-11-14T22:13:20.000000Z"
        assert len(model["digest"]) == 64
        assert model["details"]["quantization_level"] == "Q4_0"
        assert model["details"]["parameter_size"] == "1K"
        [running] = (await client.get("/api/ps")).json()["models"]
        assert (running["name"], running["size"], running["size_vram"]) == (TINY.id, 100 * 1024 * 1024, 0)
        assert running["digest"] == model["digest"]
        shown = (await client.post("/api/show", json={"model": "tiny-q4"})).json()
        assert shown["model_info"]["general.architecture"] == "llama"
        assert shown["model_info"]["llama.context_length"] == 2048
        assert shown["template"] == "{{ messages }}"
        assert shown["capabilities"] == ["completion", "tools"]
        damaged = (await client.post("/api/show", json={"model": "zz-damaged.gguf"})).json()
        assert damaged["error"] == "it is no GGUF file"
        assert (await client.get("/api/version")).json()["version"].count(".") == 2
        assert (await client.head("/")).status_code == 200


async def test_models_are_not_fetched() -> None:
    """A pull of a model that is here succeeds; whatever would change the models is refused."""
    async with serving() as served, served.client() as client:
        assert lines_of((await client.post("/api/pull", json={"model": "tiny-q4"})).content) == [
            {"status": "success"}
        ]
        missing = await client.post("/api/pull", json={"model": "llama3.2", "stream": False})
        assert missing.status_code == 404
        assert "put a GGUF file into models_dir" in missing.json()["error"]
        for method, path in (("POST", "push"), ("POST", "create"), ("POST", "copy"), ("DELETE", "delete")):
            refused = await client.request(method, f"/api/{path}", json={"model": "x"})
            assert (refused.status_code, set(refused.json())) == (404, {"error"})


async def test_a_model_that_just_came_is_found() -> None:
    """An unknown name has the folder looked at; what is still unknown is a 404."""
    async with serving(text_events("x")) as served, served.client() as client:
        served.backend.arriving = [replace(TINY, id="new.gguf", aliases=("new", "llama3:latest"))]
        assert (
            await client.post("/api/generate", json={"model": "llama3", "prompt": "x"})
        ).status_code == 200
        unknown = await client.post("/api/generate", json={"model": "nobody", "prompt": "x"})
        assert (unknown.status_code, unknown.json()) == (
            404,
            {"error": 'no model is called "nobody"; see GET /api/tags'},
        )
        served.backend.catalog = catalog_of([])
        served.backend.arriving = []
        assert (await client.post("/api/generate", json={"prompt": "x"})).status_code == 404


async def test_bodies_need_not_be_declared_except_by_pages() -> None:
    """Curl declares a form; the form of a page does, too, but names its origin."""
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    async with serving(text_events("x")) as served, served.client() as client:
        plain = await client.post("/api/generate", content=b'{"prompt":"x"}', headers=form)
        assert plain.status_code == 200
        for origin, status in (("https://evil.example", 403), (served.url, 415)):
            answer = await client.post(
                "/api/generate", content=b'{"prompt":"x"}', headers={**form, "Origin": origin}
            )
            assert answer.status_code == status
        assert len(served.backend.tickets) == 1


@pytest.mark.parametrize("events", range(4))
async def test_a_stream_that_is_abandoned_frees_its_slot(events: int) -> None:
    """After each of its events: before the first, in the middle, and behind the last."""
    async with serving(start_events(events)) as served:
        ticket = await abandoned(
            served, request_bytes("/api/chat", CHAT), b'"content":"a"' if events > 1 else b""
        )
        assert ticket.closed


async def test_reasons_of_modeld_are_told() -> None:
    """A shutdown ends a stream legally; its reason is none of Ollama's."""

    async def script(ticket: Ticket) -> None:
        ticket.put(Delta(text="x"))
        finish(ticket, FinishReason.SHUTDOWN)

    async with serving(script) as served, served.client() as client:
        assert lines_of((await client.post("/api/chat", json=CHAT)).content)[-1]["done_reason"] == "shutdown"


async def test_many_messages_and_odd_text_reach_the_model() -> None:
    """Ten thousand of them, with every kind of character, arrive as they were sent."""
    odd = "\x00 \u2028 \U0001f600 <|im_end|>"
    async with serving(text_events("x")) as served, served.client() as client:
        turns: list[dict[str, Any]] = [{"role": "user", "content": odd}] * 10_000
        reply = await client.post("/api/chat", json={"messages": turns})
        assert reply.status_code == 200
        request = served.backend.tickets[0].order.request
        assert isinstance(request, GenerateRequest)
        assert len(request.messages) == 10_000
        assert request.messages[-1].content == odd


async def test_wrong_methods_and_paths_are_told_in_its_shape() -> None:
    """405 with Allow, 404, 413: all are `{"error": ...}`."""
    async with serving(max_body_bytes=1000) as served, served.client() as client:
        wrong = await client.get("/api/chat")
        assert (wrong.status_code, set(wrong.json())) == (405, {"error"})
        assert "POST" in wrong.headers["allow"]
        missing = await client.get("/api/blobs/sha256:1")
        assert (missing.status_code, set(missing.json())) == (404, {"error"})
        large = await client.post("/api/chat", json={"messages": "x" * 2000})
        assert (large.status_code, set(large.json())) == (413, {"error"})
        with trio.fail_after(30):
            assert (await client.get("/api/tags")).status_code == 200
