# SPDX-License-Identifier: GPL-3.0-only
"""Bodies of other APIs' clients: what has no effect is taken and told; what means something is refused."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.backend import TINY, text_events
from support.http_server import serving

from modeld.config.settings import Settings
from modeld.dialects import anthropic, openai
from modeld.dialects.common.tolerance import TolerantBody
from modeld.domain.request import GenerateRequest
from modeld.errors import InvalidGrammar, InvalidRequest

SHAPES = Path(__file__).parents[1] / "clients" / "shapes"
RECORDED = [
    (path.stem, entry) for path in sorted(SHAPES.glob("*.json")) for entry in json.loads(path.read_text())
]
"""What agents sent, their long texts replaced: Claude Code 2.1.197, Codex 0.169, Copilot CLI, opencode
1.18.33, qwen-code 0.24."""
CHAT: dict[str, Any] = {"model": TINY.id, "messages": [{"role": "user", "content": "Hi"}]}
MESSAGES: dict[str, Any] = {
    "model": TINY.id,
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "Hi"}],
}
RESPONSE: dict[str, Any] = {"model": TINY.id, "input": "Hi"}
OLLAMA: dict[str, Any] = {"model": TINY.id, "messages": [{"role": "user", "content": "Hi"}], "stream": False}
LLAMA: dict[str, Any] = {"model": TINY.id, "prompt": "Hi"}


@pytest.mark.parametrize(("name", "entry"), RECORDED, ids=[f"{name}" for name, _ in RECORDED])
async def test_what_agents_send_is_answered(name: str, entry: dict[str, Any]) -> None:
    """As they were recorded, but for the model's name. What has no effect is named in a header."""
    async with serving(text_events("Hello")) as served, served.client() as client:
        response = await client.post(entry["path"], json={**entry["body"], "model": TINY.id})
        assert response.status_code == 200, response.text
        assert "Hello" in response.text
        told = response.headers.get("X-Modeld-Ignored", "")
        request = served.backend.tickets[0].order.request
    assert isinstance(request, GenerateRequest)
    match name:
        case "claude":
            assert "context_management" in told
            assert "thinking" in told
            assert "output_config.effort" in told
            assert [turn.role for turn in request.messages] == ["system", "user"]
            assert len(request.tools) == len(entry["body"]["tools"])
        case "codex":
            for key in ("reasoning", "include", "client_metadata", "tools of type web_search"):
                assert key in told
            names = {tool.name for tool in request.tools}
            assert "close_agent" in names, "a namespace is opened out"
        case "copilot":
            assert "reasoning" in told
        case _:
            assert not told


TAKEN: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/chat/completions", {**CHAT, "reasoning_effort": "high"}, "reasoning_effort"),
    ("/v1/chat/completions", {**CHAT, "metadata": {"a": "b"}, "verbosity": "low"}, "metadata; verbosity"),
    ("/v1/chat/completions", {**CHAT, "store": True}, "store"),
    ("/v1/chat/completions", {**CHAT, "x": 1, "chat_template_kwargs": {}}, "x; chat_template_kwargs"),
    ("/v1/chat/completions", {**CHAT, "stream_options": {"include_usage": True}}, "stream_options"),
    ("/v1/chat/completions", {**CHAT, "service_tier": "flex"}, "service_tier"),
    ("/v1/chat/completions", {**CHAT, "web_search_options": {}}, "web_search_options"),
    ("/v1/chat/completions", {**CHAT, "max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
    ("/v1/chat/completions", {**CHAT, "functions": None, "functions_": []}, "functions_"),
    (
        "/v1/chat/completions",
        {**CHAT, "tools": [{"type": "web_search"}, {"type": "custom", "custom": {"name": "x"}}]},
        "tools[].custom; tools of type web_search; tools of type custom",
    ),
    (
        "/v1/chat/completions",
        {
            "model": TINY.id,
            "messages": [
                {
                    "role": "user",
                    "id": "m1",
                    "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}],
                }
            ],
        },
        "messages[].id; messages[].content[].cache_control",
    ),
    ("/v1/completions", {"model": TINY.id, "prompt": "Hi", "logit_processors": []}, "logit_processors"),
    ("/v1/responses", {**RESPONSE, "store": True, "truncation": "auto"}, "truncation; store"),
    ("/v1/responses", {**RESPONSE, "text": {"verbosity": "low"}}, "text.verbosity"),
    ("/v1/responses", {**RESPONSE, "input": "", "max_output_tokens": 1}, "empty input"),
    (
        "/v1/responses",
        {**RESPONSE, "input": [{"type": "reasoning", "summary": []}, {"role": "user", "content": "Hi"}]},
        "input[].summary; input of type reasoning",
    ),
    ("/v1/messages", {**MESSAGES, "thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking"),
    ("/v1/messages", {**MESSAGES, "container": None, "inference_geo": "eu"}, "container; inference_geo"),
    (
        "/v1/messages",
        {**MESSAGES, "tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 5}]},
        "tools[].max_uses; tools of type web_search_20250305",
    ),
    (
        "/v1/messages",
        {**MESSAGES, "system": [{"type": "text", "text": "x-anthropic-billing-header: v=1; cch=0f3"}]},
        "the billing header in system",
    ),
    ("/api/chat", {**OLLAMA, "think": "high", "options": {"made_up": 1}}, "options.made_up; think"),
    (
        "/api/chat",
        {**OLLAMA, "tools": [{"type": "function", "items": None, "function": {"name": "f"}}]},
        "tools[].items",
    ),
    ("/completion", {**LLAMA, "samplers": ["top_k", "infill"], "min_keep": 2}, "min_keep; samplers"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "told"), TAKEN, ids=[f"{path} {told}" for path, _, told in TAKEN])
async def test_what_has_no_effect_is_taken_and_told(path: str, body: dict[str, Any], told: str) -> None:
    """With `strict_bodies` it is refused, as a typing error would be."""
    async with serving(text_events("x")) as served, served.client() as client:
        response = await client.post(path, json=body)
        assert response.status_code == 200, response.text
        assert response.headers["X-Modeld-Ignored"] == told
    strict = Settings(strict_bodies=True)
    async with serving(text_events("x"), settings=strict) as served, served.client() as client:
        response = await client.post(path, json=body)
        assert "X-Modeld-Ignored" not in response.headers
        if "billing" not in told:
            assert response.status_code == 400, response.text


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/chat/completions", {**CHAT, "continue_final_message": True}, "continue_final_message"),
    ("/v1/chat/completions", {**CHAT, "functions": [{"name": "f"}]}, "functions"),
    ("/v1/chat/completions", {**CHAT, "guided_json": {"type": "object"}}, "guided_json"),
    ("/v1/chat/completions", {**CHAT, "modalities": ["text", "audio"]}, "modalities"),
    ("/v1/embeddings", {"model": TINY.id, "input": "x", "dimensions": 8}, "dimensions"),
    ("/v1/responses", {**RESPONSE, "n": 2}, "unknown key"),
    ("/v1/responses", {**RESPONSE, "previous_response_id": "r"}, "previous_response_id"),
    ("/v1/responses", {**RESPONSE, "conversation": "c"}, "conversation"),
    ("/v1/responses", {**RESPONSE, "background": True}, "background"),
    ("/v1/responses", {**RESPONSE, "input": [{"type": "item_reference", "id": "x"}]}, "refers to an item"),
    ("/v1/messages", {**MESSAGES, "messages": [{"role": "user", "content": [{"type": "image"}]}]}, "vision"),
    ("/api/generate", {"model": TINY.id, "prompt": "Hi", "suffix": "!"}, "suffix"),
    ("/infer", {"model": TINY.id, "prompt": "Hi", "made_up": 1}, "unknown key"),
    ("/models/tiny-q4.gguf/load", {"made_up": 1}, "unknown key"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "said"), REFUSED, ids=[f"{path} {said}" for path, _, said in REFUSED]
)
async def test_what_would_change_the_answer_is_refused(path: str, body: dict[str, Any], said: str) -> None:
    """Native and control bodies stay strict: there a typing error is an operator's."""
    async with serving(text_events("x")) as served, served.client() as client:
        response = await client.post(path, json=body)
        assert response.status_code == 400, response.text
        assert said in response.text


def test_values_that_mean_none_are_none() -> None:
    """-1 for no bound, any number of stop sequences, temperatures that only OpenAI refuses."""
    body = {**CHAT, "max_tokens": -1, "top_k": -1, "stop": list("abcdefg"), "temperature": 2.5}
    (order,) = openai.parse_chat(json.dumps(body).encode()).orders
    request = order.request
    assert isinstance(request, GenerateRequest)
    assert (request.max_tokens, request.sampling.top_k, len(request.stop)) == (0, 0, 7)
    assert request.sampling.temperature == 2.5


def test_a_json_object_may_have_a_schema() -> None:
    """As llama.cpp's server and Together take it."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    body = {**CHAT, "response_format": {"type": "json_object", "schema": schema}}
    (order,) = openai.parse_chat(json.dumps(body).encode()).orders
    assert isinstance(order.request, GenerateRequest)
    assert order.request.constraint is not None
    assert json.loads(order.request.constraint.text) == schema


def test_a_session_survives_what_no_model_here_can_see() -> None:
    """An image or a document in the result of a call is told in words, since each later turn repeats it."""
    result = {
        "type": "tool_result",
        "tool_use_id": "t1",
        "content": [
            {"type": "text", "text": "read"},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}},
            {"type": "document", "title": "a.pdf", "source": {}},
            {"type": "tool_reference", "tool_name": "paint"},
        ],
    }
    call = {"type": "tool_use", "id": "t1", "name": "read", "input": {}}
    body = {
        **MESSAGES,
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [result]},
            {"role": "system", "content": "Be brief."},
        ],
    }
    ignored: list[str] = []
    request = anthropic.parse_messages(TolerantBody(json.dumps(body).encode(), ignored)).request
    assert request.messages[2].content.splitlines() == [
        "read",
        "[an image, which this model cannot see]",
        "[a document called 'a.pdf', which is not read here]",
        "[the function paint]",
    ]
    assert [turn.role for turn in request.messages] == ["user", "assistant", "tool", "user"]
    assert ignored == ["an image in a result", "a document in a result", "role system behind the first turn"]


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return where the keys of a body are; of long lists, in the first three items."""
    found: list[tuple[Any, ...]] = []
    if isinstance(value, dict):
        for key, child in value.items():
            found += [(*path, key), *_places(child, (*path, key))]
    elif isinstance(value, list):
        for number, child in enumerate(value[:3]):
            found += _places(child, (*path, number))
    return found


PARSERS = {
    "/v1/messages?beta=true": anthropic.parse_messages,
    "/v1/responses": openai.parse_response,
    "/v1/chat/completions": openai.parse_chat,
}


@given(st.data())
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_a_recorded_body_with_any_key_changed_is_taken_or_refused(data: st.DataObject) -> None:
    """Drop, add or retype any key: a request or a sentence, and never anything else."""
    name, entry = data.draw(st.sampled_from(RECORDED))
    body = copy.deepcopy(entry["body"])
    *above, key = data.draw(st.sampled_from(_places(body)))
    place = body
    for step in above:
        place = place[step]
    change = data.draw(st.sampled_from(("drop", "add", "retype")))
    if change == "drop":
        del place[key]
    elif change == "add":
        place["made_up"] = data.draw(st.sampled_from((1, "x", None, [], {})))
    else:
        place[key] = data.draw(st.sampled_from((None, 0, -1, "x", [], {}, [1], {"a": 1}, True, 1.5, 10**30)))
    ignored: list[str] = []
    text = json.dumps(body).encode()
    with contextlib.suppress(InvalidRequest, InvalidGrammar):
        assert PARSERS[entry["path"]](TolerantBody(text, ignored)), name
