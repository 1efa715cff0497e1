# SPDX-License-Identifier: GPL-3.0-only
"""OpenAI's client for a server of a test, and its requests as bytes."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import openai
from support.http_server import Served


@asynccontextmanager
async def client_for(served: Served, *, max_retries: int = 0) -> AsyncGenerator[openai.AsyncOpenAI]:
    """OpenAI's client; it tries nothing twice unless it is told to."""
    async with openai.AsyncOpenAI(
        base_url=f"{served.url}/v1", api_key="none", max_retries=max_retries, timeout=60
    ) as client:
        yield client


def chat_bytes(path: str = "/v1/chat/completions", **body: Any) -> bytes:
    """A request, as bytes."""
    asks = (
        {"input": "Hello"}
        if path.endswith("responses")
        else {"messages": [{"role": "user", "content": "Hi"}]}
    )
    data = json.dumps(asks | body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def chunks_of(body: bytes) -> list[dict[str, Any]]:
    """The chunks of a stream, without its comments and its end."""
    lines = [part.rpartition(b"data: ")[2] for part in body.split(b"\n\n") if b"data: " in part]
    return [json.loads(line) for line in lines if line != b"[DONE]"]
