# SPDX-License-Identifier: GPL-3.0-only
"""A hostile client at every dialect: each body with something wrong in it, anywhere.

Whatever is sent gets an answer that is no 500, in the envelope of the API that was spoken; nothing of it is
in the log, and the next request is served.
"""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Callable
from typing import Any

import pytest
from support.backend import TINY, text_events
from support.http_server import serving

from modeld.config.settings import Settings

BODIES_EACH = 20 * int(os.environ.get("MODELD_FUZZ", "1"))
WORDS = "xyzzy-frobozz"
TOOL = {"type": "object", "properties": {"colour": {"enum": ["red"]}}, "required": ["colour"]}
FUNCTION = {"name": "paint", "description": "Paints", "parameters": TOOL}
CALLED = {"id": "c1", "type": "function", "function": {"name": "paint", "arguments": '{"colour": "red"}'}}
BODIES: dict[str, dict[str, Any]] = {
    "/infer": {
        "model": TINY.id, "prompt": WORDS, "max_tokens": 4, "temperature": 0.5, "top_k": 4, "top_p": 0.9,
        "seed": 1, "stop": ["x"], "logit_bias": {"5": 1}, "json_schema": TOOL, "timeout": "30s",
        "priority": "low", "keep_alive": "1m", "stream": False, "dry_sequence_breakers": ["\n"],
    },
    "/embed": {"input": [WORDS, "b"], "normalize": True, "pooling": "mean"},
    "/tokenize": {"content": WORDS, "with_pieces": True},
    "/apply-template": {"messages": [{"role": "user", "content": WORDS}]},
    "/v1/chat/completions": {
        "model": TINY.id, "n": 1, "seed": 1, "logprobs": True, "top_logprobs": 2, "stop": ["x"], "user": "me",
        "messages": [
            {"role": "system", "content": WORDS},
            {"role": "user", "content": [{"type": "text", "text": WORDS}]},
            {"role": "assistant", "content": None, "tool_calls": [CALLED]},
            {"role": "tool", "tool_call_id": "c1", "content": WORDS},
        ],
        "tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "auto",
        "response_format": {"type": "json_schema", "json_schema": {"name": "wall", "schema": TOOL}},
        "stream_options": None, "logit_bias": {"5": 1}, "max_completion_tokens": 4,
    },
    "/v1/completions": {"prompt": [WORDS], "max_tokens": 4, "echo": True, "best_of": 1, "n": 1},
    "/v1/responses": {
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": WORDS}]},
            {"type": "function_call", "call_id": "c1", "name": "paint", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": WORDS},
        ],
        "instructions": WORDS, "tools": [{"type": "function", **FUNCTION}], "max_output_tokens": 4,
        "text": {"format": {"type": "json_schema", "name": "wall", "schema": TOOL}}, "metadata": {"a": "b"},
    },
    "/v1/embeddings": {"input": [WORDS], "encoding_format": "base64"},
    "/v1/messages": {
        "model": TINY.id, "max_tokens": 4, "stop_sequences": ["x"],
        "system": [{"type": "text", "text": WORDS}],
        "messages": [
            {"role": "user", "content": WORDS},
            {"role": "assistant",
             "content": [{"type": "tool_use", "id": "c1", "name": "paint", "input": {"colour": "red"}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": WORDS}]},
        ],
        "tools": [{"name": "paint", "input_schema": TOOL}], "tool_choice": {"type": "auto"},
    },
    "/v1/messages/count_tokens": {"model": TINY.id, "messages": [{"role": "user", "content": WORDS}]},
    "/api/generate": {
        "model": TINY.id, "prompt": WORDS, "system": WORDS, "template": "{{ .System }} {{ .Prompt }}",
        "options": {"num_predict": 4, "num_ctx": 64, "stop": ["x"], "temperature": 1}, "keep_alive": "5m",
        "format": TOOL, "stream": False,
    },
    "/api/chat": {
        "messages": [
            {"role": "user", "content": WORDS},
            {"role": "assistant", "content": "",
             "tool_calls": [{"function": {"name": "paint", "arguments": {"colour": "red"}}}]},
            {"role": "tool", "tool_name": "paint", "content": WORDS},
        ],
        "tools": [{"type": "function", "function": FUNCTION}], "stream": False,
    },
    "/api/embed": {"input": [WORDS], "truncate": True, "dimensions": 4},
    "/api/show": {"model": TINY.id},
    "/completion": {
        "prompt": WORDS, "n_predict": 4, "n_probs": 2, "json_schema": TOOL, "samplers": ["top_k"],
        "logit_bias": [[5, 1]], "seed": 1,
    },
    "/embedding": {"content": [WORDS]},
}  # fmt: skip
"""A rich and legal body for each path that takes one."""

NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**70), 1.5, -0.0, 1e308, "", " ", "0", "-1s", "1e9h",
    "\x00", "\u202e evil", "😀" * 50, "a" * 3000, "../../etc/passwd", "{{ 7 * 7 }}", "%s%n",
    [], {}, [[]], [None], [{}], [1, "a", None], {"": None}, {"type": "object"}, {"$ref": "#"},
    {"type": "image"}, {"type": "image_url", "image_url": {"url": "x"}}, {"type": []}, "auto", "required",
)  # fmt: skip
WIRE = ("\\ud83d", "\\ud83d\\ud83d", "\\u0000", "\udc80", "NaN", "Infinity", "1e999", "[" * 600)
"""Put into the JSON text in place of a value: what no value of Python becomes."""

ENVELOPES: dict[str, Callable[[Any], bool]] = {
    "/api/": lambda told: isinstance(told["error"], str),
    "/v1/messages": lambda told: told["type"] == "error" and {"type", "message"} <= told["error"].keys(),
    "/v1/": lambda told: {"message", "type", "param", "code"} <= told["error"].keys(),
    **dict.fromkeys(
        ("/completion", "/embedding"),
        lambda told: {"code", "message", "type"} <= told["error"].keys(),
    ),
}


def in_its_envelope(path: str, text: str) -> bool:
    """Whether an error is told as the clients of this path know it."""
    told = json.loads(text)
    check = next((check for begin, check in ENVELOPES.items() if path.startswith(begin)), None)
    return {"error", "code", "type"} <= told.keys() if check is None else check(told)


def places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All places of a body."""
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    return [way, *(place for key, child in children for place in places(child, (*way, key)))]


def spoiled(body: dict[str, Any], dice: random.Random) -> bytes:
    """A body with one thing wrong, perhaps."""
    body = copy.deepcopy(body)
    *above, last = dice.choice(places(body)[1:])
    inside: Any = body
    for key in above:
        inside = inside[key]
    mark = "@@here@@"
    match dice.randrange(6):
        case 0:
            del inside[last]
        case 1:
            inside[last] = [inside[last]] * dice.choice([2, 200])
        case 2 if isinstance(inside, dict):
            inside[dice.choice(["x", "", last + "s", "__class__"])] = dice.choice(NASTY)
        case 3:
            inside[last] = mark
            return json.dumps(body).replace(f'"{mark}"', _raw(dice)).encode(errors="surrogatepass")
        case _:
            inside[last] = dice.choice(NASTY)
    return json.dumps(body).encode()


def _raw(dice: random.Random) -> str:
    text = dice.choice(WIRE)
    return f'"{text}"' if text[0] in "\\\udc80" else text


@pytest.mark.parametrize("path", BODIES)
async def test_no_body_breaks_a_dialect(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """Bodies with one thing wrong: an answer or a refusal, and nothing of them in the log."""
    dice = random.Random(path)  # noqa: S311 - the same bodies every time
    caplog.set_level("INFO")
    async with serving(text_events("a")) as served, served.client() as client:
        for _ in range(BODIES_EACH):
            data = spoiled(BODIES[path], dice)
            answer = await client.post(path, content=data, headers={"Content-Type": "application/json"})
            assert answer.status_code in {200, 400, 404, 422}, (data, answer.text)
            if answer.status_code != 200:
                assert in_its_envelope(path, answer.text), (data, answer.text)
        assert (await client.get("/healthz")).status_code == 200
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
    assert WORDS not in caplog.text


@pytest.mark.parametrize("path", BODIES)
async def test_other_requests_than_a_post_of_json_are_told_so(path: str) -> None:
    """Wrong methods with `Allow`, other types, no body, too much of it: each in the dialect's envelope."""
    body = json.dumps(BODIES[path])
    async with (
        serving(text_events("a"), settings=Settings(max_body_bytes=20_000)) as served,
        served.client() as client,
    ):
        for method in ("GET", "PUT", "DELETE", "PATCH"):
            answer = await client.request(method, path)
            assert (answer.status_code, in_its_envelope(path, answer.text)) == (405, True)
            assert "POST" in answer.headers["allow"]
        assert (await client.head(path)).status_code == 405
        assert "POST" in (await client.options(path)).headers["allow"]
        for kind in ("text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"):
            headers = {"Content-Type": kind, "Origin": served.url}
            answer = await client.post(path, content=body, headers=headers)
            assert (answer.status_code, in_its_envelope(path, answer.text)) == (415, True)
        as_json = {"Content-Type": "application/json; charset=utf-8"}
        for data, status in ((b"", 400), (b"null", 400), (b"[]", 400), (b"{", 400), (b"x" * 30_000, 413)):
            if path == "/api/show" and data == b"":
                continue
            answer = await client.post(path, content=data, headers=as_json)
            assert (answer.status_code, in_its_envelope(path, answer.text)) == (status, True), data
        assert (await client.post(path, content=body, headers=as_json)).status_code == 200
        twice = body[:-1] + "," + body[1:]
        assert (await client.post(path, content=twice, headers=as_json)).status_code == 200, "the last counts"
    assert served.sample("modeld_http_inflight_requests") == 0
