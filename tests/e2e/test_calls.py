# SPDX-License-Identifier: GPL-3.0-only
"""A thought that the prompt opens, through the whole daemon: its engine knows of it, and a dialect must."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest
from support.daemon_process import daemon
from support.tiny_gguf import write_model
from support.tool_answers import DIALECTS, Dialect

pytestmark = pytest.mark.process

CALL = '<tool_call>{"name":"weather","arguments":{"city":"Rome"}}</tool_call>'


@pytest.mark.parametrize("isolation", ["process", "thread"])
def test_a_draft_in_a_thought_that_the_prompt_opened_is_not_called(tmp_path: Path, isolation: str) -> None:
    """The scripted engine repeats its prompt: a draft, the end of the thought, and a call."""
    write_model(tmp_path / "m.gguf")
    flags = ("--engine", "fake", "--isolation", isolation, "--fake", "eos_after=3")
    with daemon(*flags, models_dir=tmp_path) as running:
        for stream in (True, False):
            for dialect in (DIALECTS["chat"], DIALECTS["anthropic"], DIALECTS["ollama"]):
                for end, calls in (("<think>", 1), ("Hm.", 2)):
                    assert called(dialect, running.url, f"{CALL} </think> {CALL} {end}", stream) == calls


def called(dialect: Dialect, url: str, prompt: str, stream: bool) -> int:
    """Ask, and return how many calls are in the answer."""
    body = dialect.asking(stream=stream, messages=[{"role": "user", "content": prompt}], model="m")
    reply = httpx2.post(f"{url}{dialect.path}", json=body, timeout=30, trust_env=False)
    found = (dialect.streamed if stream else dialect.whole)(reply.content)
    assert found.finish == dialect.finishes["calls"]
    return len(found.calls)
