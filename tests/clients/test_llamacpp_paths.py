# SPDX-License-Identifier: GPL-3.0-only
"""The paths of llama.cpp's own server against the daemon with a real model, as scripts for that one ask."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from support.daemon_process import Q4_0, Q8_0, Daemon, until

pytestmark = [pytest.mark.e2e, pytest.mark.real]

GREEDY: Any = {"prompt": "The capital of France is", "n_predict": 8, "temperature": 0}
GRAMMAR = 'root ::= ("yes" | "no") "."'


@pytest.fixture
def http(openai_server: Daemon) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=openai_server.url, trust_env=False, timeout=120) as client:
        yield client


def complete(http: httpx2.Client, **more: Any) -> dict[str, Any]:
    answer = http.post("/completion", json=GREEDY | more)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_completion_is_the_same_whole_streamed_and_of_tokens(http: httpx2.Client) -> None:
    """One text; the last part of a stream has what the whole answer has alongside it."""
    complete(http)  # What is in the cache is rounded otherwise than what is decoded whole.
    whole = complete(http)
    assert whole["content"]
    assert (whole["tokens_predicted"], whole["stop_type"], whole["stop"]) == (8, "limit", True)
    streamed = http.post("/completion", json=GREEDY | {"stream": True})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    parts = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: ")]
    assert "".join(part["content"] for part in parts) == whole["content"]
    assert [part["stop"] for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1]["tokens_predicted"] == 8
    tokens = http.post("/tokenize", json={"content": GREEDY["prompt"], "model": Q4_0}).json()["tokens"]
    assert complete(http, prompt=tokens)["content"] == whole["content"]
    assert http.post("/completions", json=GREEDY).json()["content"] == whole["content"]


def test_a_completion_heeds_its_keys(http: httpx2.Client) -> None:
    """A stop, a grammar, a schema, a seed and probabilities do to a real model what their names say."""
    text = complete(http, n_predict=24)["content"]
    word = text.split()[2]
    stopped = complete(http, n_predict=24, stop=[word])
    assert (stopped["stop_type"], stopped["stopping_word"]) == ("word", word)
    assert stopped["content"] == text[: text.index(word)]
    assert complete(http, grammar=GRAMMAR)["content"] in {"yes.", "no."}
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    assert json.loads(complete(http, json_schema=schema, n_predict=64)["content"])["n"] in {1, 2}
    seeded = [complete(http, temperature=1.5, seed=seed)["content"] for seed in (7, 8)]
    assert seeded[0] != seeded[1]
    told = complete(http, n_probs=2, n_predict=1)["completion_probabilities"]
    assert [len(entry["top_logprobs"]) for entry in told] == [2]


def test_texts_become_tokens_and_vectors(http: httpx2.Client) -> None:
    """There and back; the template frames a message; a vector has length 1."""
    tokens = http.post("/tokenize", json={"content": "Hello world"}).json()["tokens"]
    assert http.post("/detokenize", json={"tokens": tokens}).json() == {"content": "Hello world"}
    turns = [{"role": "user", "content": "Hi <|im_end|>"}]
    prompt = http.post("/apply-template", json={"messages": turns}).json()["prompt"]
    assert prompt.endswith("<|im_start|>assistant\n")
    [entry] = http.post("/embedding", json={"content": "a cat"}).json()
    assert sum(x * x for x in entry["embedding"][0]) == pytest.approx(1, abs=1e-3)


def test_the_template_of_a_model_is_that_of_its_file(http: httpx2.Client) -> None:
    """Whole, in `/props` and for Ollama's clients in `/api/show`, also of a model that sleeps."""
    props = http.get("/props", params={"model": Q8_0}).json()
    template = props["chat_template"]
    assert template.startswith("{% for message in messages %}")
    assert template.endswith("{% endif %}")
    assert "<|im_start|>" in template
    assert len(template) > 256, "longer than what is kept of other texts"
    assert http.post("/api/show", json={"model": Q8_0}).json()["template"] == template


async def test_models_are_loaded_and_unloaded(openai_server: Daemon) -> None:
    """`/models/load` and `/models/unload` begin what `/props` and `/slots` then show."""
    async with httpx2.AsyncClient(base_url=openai_server.url, trust_env=False, timeout=120) as http:
        asleep = (await http.get("/props", params={"model": Q8_0})).json()
        assert (asleep["is_sleeping"], asleep["total_slots"]) == (True, 4)
        assert (await http.get("/slots", params={"model": Q8_0})).json() == []
        assert (await http.post("/models/load", json={"model": Q8_0})).json() == {"success": True}
        await until(http, Q8_0, state="ready", patience=120)
        assert not (await http.get("/props", params={"model": Q8_0})).json()["is_sleeping"]
        long = GREEDY | {"model": Q8_0, "n_predict": 4000, "ignore_eos": True, "stream": True}
        async with http.stream("POST", "/completion", json=long) as stream:
            assert stream.status_code == 200, "the first token is there"
            slots = (await http.get("/slots", params={"model": Q8_0})).json()
            assert [slot["is_processing"] for slot in slots] == [True, False, False, False]
            assert {slot["n_ctx"] for slot in slots} == {
                asleep["default_generation_settings"]["n_ctx"],
            }
        await until(http, Q8_0, inflight=0, patience=120)
        assert (await http.post("/models/unload", json={"model": Q8_0})).json() == {"success": True}
        await until(http, Q8_0, state="stopped", patience=120)
        unknown = await http.post("/models/load", json={"model": "nobody"})
        assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "not_found_error")


def test_errors_of_a_real_model_have_the_envelope(http: httpx2.Client) -> None:
    """A prompt that is too long, a token that there is not, a grammar that is none."""
    for more, status, said in (
        ({"prompt": "a " * 5000}, 400, "the context of 4096 tokens"),
        ({"prompt": [10**6]}, 400, "token 1000000"),
        ({"grammar": "root ::="}, 200, ""),
        ({"grammar": "root :: x"}, 422, "cannot be compiled"),
    ):
        answer = http.post("/completion", json=GREEDY | more)
        assert answer.status_code == status, answer.text
        if said:
            assert said in answer.json()["error"]["message"]
