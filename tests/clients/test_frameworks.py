# SPDX-License-Identifier: GPL-3.0-only
"""What is built upon OpenAI's API, against a real server with a real model: langchain-openai and litellm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from typing import Any, Literal

import pydantic
import pytest
from support.daemon_process import Q4_0, Daemon

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.real,
    pytest.mark.filterwarnings("default"),  # what these packages warn of is not ours
]


class Wall(pydantic.BaseModel):
    """A wall to paint."""

    colour: Literal["red", "green", "blue"]


@pytest.fixture
def langchain() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import langchain_openai  # noqa: PLC0415  # it warns when it is imported
    return langchain_openai


def test_langchain_asks_streams_and_calls(openai_server: Daemon, langchain: Any) -> None:
    """A chat model answers, streams, is bound to a class, and calls a tool that it must call."""
    chat = langchain.ChatOpenAI(
        base_url=f"{openai_server.url}/v1",
        api_key="none",
        model=Q4_0,
        temperature=0,
        max_tokens=60,
        timeout=120,
    )
    answer = chat.invoke("Name a colour.")
    assert answer.content
    assert answer.usage_metadata["output_tokens"] > 0
    assert "".join(chunk.content for chunk in chat.stream("Name a colour."))
    for method in ("json_schema", "function_calling"):
        wall = chat.with_structured_output(Wall, method=method).invoke("Paint the wall.")
        assert isinstance(wall, Wall)
    bound = chat.bind_tools([Wall], tool_choice="required")
    (call,) = bound.invoke("Paint the wall.").tool_calls
    assert (call["name"], call["args"]["colour"] in {"red", "green", "blue"}) == ("Wall", True)


def test_langchain_embeds(openai_server: Daemon, langchain: Any) -> None:
    """As texts, and as the token ids that it makes of texts where it is not told otherwise."""
    embeddings = langchain.OpenAIEmbeddings(
        base_url=f"{openai_server.url}/v1", api_key="none", model=Q4_0, check_embedding_ctx_length=False
    )
    vectors = embeddings.embed_documents(["a cat", "a dog"])
    assert len(vectors) == 2
    assert len(vectors[0]) == len(embeddings.embed_query("a cat")) > 100


_LITELLM = """
import asyncio, json, sys, warnings
warnings.simplefilter("ignore")
import litellm
url, model = sys.argv[1:]
terms = dict(model=f"openai/{model}", api_base=f"{url}/v1", api_key="none")
terms |= dict(temperature=0, max_tokens=40, timeout=120)
messages = [{"role": "user", "content": "Name a colour."}]
whole = litellm.completion(messages=messages, **terms)
stream = litellm.completion(messages=messages, stream=True, **terms)
streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
paint = {"name": "paint", "parameters": {
    "type": "object", "properties": {"colour": {"enum": ["red", "green"]}}, "required": ["colour"]}}
# Before it sends tools it imports a package for those of MCP servers, on which it does not depend.
call = dict(messages=messages, tools=[{"type": "function", "function": paint}], tool_choice="required")
call |= dict(terms, _skip_mcp_handler=True)
called = litellm.completion(**call).choices[0].message.tool_calls[0].function
pieces = [chunk.choices[0].delta.tool_calls for chunk in litellm.completion(stream=True, **call)]
parts = [piece.function for found in pieces for piece in found or []]
schema = {"type": "json_schema", "json_schema": {"name": "wall", "schema": paint["parameters"]}}
async def aside():
    answer = await litellm.acompletion(messages=messages, response_format=schema, **terms)
    return answer.choices[0].message.content
vectors = litellm.embedding(model=f"openai/{model}", input=["a"], api_base=f"{url}/v1", api_key="none")
try:
    litellm.completion(messages=messages * 1000, **terms)
    error = ""
except litellm.BadRequestError as caught:
    error = str(caught)
print(json.dumps({
    "whole": whole.choices[0].message.content,
    "tokens": whole.usage.completion_tokens,
    "streamed": streamed,
    "called": [called.name, called.arguments],
    "in parts": ["".join(part.name or "" for part in parts), "".join(part.arguments for part in parts)],
    "bound": asyncio.run(aside()),
    "vector": len(vectors.data[0]["embedding"]),
    "error": error,
}))
"""


def test_litellm_asks_streams_calls_and_embeds(openai_server: Daemon) -> None:
    """As the provider `openai`; a prompt that is too long is a bad request with its numbers."""
    # A process of its own: the package changes the logging and the warnings of whoever imports it.
    done = subprocess.run(
        [sys.executable, "-c", _LITELLM, openai_server.url, Q4_0],
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["whole"]
    assert found["tokens"] > 0
    assert found["streamed"]
    for name, arguments in (found["called"], found["in parts"]):
        assert (name, json.loads(arguments)["colour"] in {"red", "green"}) == ("paint", True)
    assert json.loads(found["bound"])["colour"] in {"red", "green"}
    assert found["vector"] > 100
    assert "the context of 4096 tokens" in found["error"]
