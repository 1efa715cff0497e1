# SPDX-License-Identifier: GPL-3.0-only
"""The paths of llama.cpp's own server over a real socket, with a scripted runtime behind them."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given, settings
from support.backend import TINY, finish, start_events, text_events
from support.http_server import abandoned, serving
from support.parser_checks import VALUES, is_taken_or_refused

from modeld.dialects.common.body import MAX_INT32
from modeld.dialects.llamacpp import parse_completion, parse_embedding, parse_model
from modeld.dialects.llamacpp.completion import LlamaCompletionOrder
from modeld.dialects.llamacpp.render import settings_of
from modeld.domain.request import AS_MANY_AS_FIT, EmbedRequest, GenerateRequest, Order, Sampling
from modeld.domain.request_events import (
    Delta,
    Embedded,
    Failed,
    Finished,
    FinishReason,
    Logprobs,
    Stats,
    TokenLogprob,
    Usage,
)
from modeld.errors import EngineFailed, InvalidRequest, QueueFull
from modeld.runtime.ticket import Ticket


def request_of(**keys) -> GenerateRequest:
    return parse_completion(json.dumps({"prompt": "Hello", **keys}).encode()).request


def refusal(**keys) -> str:
    with pytest.raises(InvalidRequest) as caught:
        request_of(**keys)
    return caught.value.message


def data_of(body: bytes) -> list[dict]:
    """The values of a stream of server-sent events."""
    return [json.loads(line[6:]) for line in body.splitlines() if line.startswith(b"data: ")]


def request_bytes(**keys: object) -> bytes:
    data = json.dumps({"prompt": "Hello", **keys}).encode()
    head = "POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def test_a_bias_may_be_of_a_text() -> None:
    """In a list every string is text, in an object what is no number; the answer repeats them."""
    listed = request_of(logit_bias=[["hello", -1.0], [15043, False], ["12", 1], [15.0, 2]])
    never = float("-inf")
    assert listed.sampling.logit_bias == (("hello", -1.0), (15043, never), ("12", 1.0), (15, 2.0))
    named = request_of(logit_bias={"hello": -0.5, "12": 1, " 12": False})
    assert named.sampling.logit_bias == (("hello", -0.5), (12, 1.0), (" 12", never))
    assert json.loads(bytes(settings_of(named)))["logit_bias"][0] == ["hello", -0.5]
    assert "an empty text has no tokens" in refusal(logit_bias=[["", 1]])


def test_keys_reach_the_order() -> None:
    """Under llama.cpp's names; what has no effect here may be sent."""
    request = request_of(
        temperature=0.5,
        top_k=7,
        seed=3,
        n_predict=9,
        stop=["a"],
        n_probs=2,
        ignore_eos=True,
        cache_prompt=False,
        id_slot=2,
        n_keep=-1,
        samplers=["top_k", "temperature"],
        logit_bias=[[5, False]],
    )
    assert (request.max_tokens, request.stop, request.logprobs, request.ignore_eos) == (9, ("a",), 2, True)
    assert (request.sampling.temperature, request.sampling.top_k, request.sampling.seed) == (0.5, 7, 3)
    assert request.sampling.logit_bias == ((5, float("-inf")),)
    nulls = dict.fromkeys(["n_predict", "seed", "stop", "samplers", "json_schema", "grammar", "lora"])
    assert request_of(**nulls) == request_of(seed=2**32 - 1) == request_of(seed=-1) == request_of()
    assert request_of().sampling == Sampling()


def test_prompts_are_text_or_tokens() -> None:
    """One of them; several are refused."""
    assert request_of(prompt=[1, 2, 3]).prompt_tokens == (1, 2, 3)
    assert request_of(n_predict=-1).max_tokens == AS_MANY_AS_FIT
    assert request_of(n_predict=-2).max_tokens == MAX_INT32
    assert "`prompt[0]` must be a whole number" in refusal(prompt=["a", "b"])
    assert "`prompt`" in refusal(prompt={"prompt_string": "x", "multimodal_data": ["aGk="]})
    assert "`prompt` is empty" in refusal(prompt="")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"n_predict": 0}, "`n_predict` 0 generates nothing"),
        ({"samplers": ["temperature", "top_k"]}, "are applied in this order"),
        ({"samplers": ["magic"]}, "are applied in this order"),
        ({"grammar": "root ::= x", "json_schema": {}}, "not both"),
        ({"json_schema": 7}, "`json_schema` must be an object"),
        ({"return_tokens": True}, "`return_tokens`"),
        ({"lora": [{"id": 0, "scale": 1}]}, "`lora`"),
        ({"n_cmpl": 2}, "`n_cmpl`"),
        ({"t_max_predict_ms": 5}, "`t_max_predict_ms`"),
        ({"temprature": 1}, 'unknown key "temprature"; did you mean temperature'),
        ({"mirostat": 1, "temperature": 0}, "`mirostat` draws"),
    ],
)
def test_what_is_not_served_is_named(keys: dict, said: str) -> None:
    """A sentence with the key."""
    assert said in refusal(**keys)


async def test_text_is_whole_or_a_stream() -> None:
    """Whole by default; each event has its text, and the last one all the rest."""
    async with serving(text_events("Once", " upon")) as served, served.client() as client:
        for path in ("/completion", "/completions"):
            reply = await client.post(path, json={"prompt": "x", "model": "tiny-q4", "n_predict": 5})
            answer = reply.json()
            assert (answer["content"], answer["stop"], answer["stop_type"]) == ("Once upon", True, "eos")
            assert (answer["model"], answer["prompt"]) == (TINY.id, "x")
            assert (answer["tokens_evaluated"], answer["tokens_predicted"], answer["tokens_cached"]) == (
                5,
                2,
                2,
            )
            assert answer["generation_settings"]["n_predict"] == 5
            assert answer["generation_settings"]["seed"] == 2**32 - 1
            assert (answer["timings"]["prompt_n"], answer["timings"]["predicted_n"]) == (3, 2)
        reply = await client.post("/completion", json={"prompt": "x", "stream": True})
        assert reply.headers["content-type"].startswith("text/event-stream")
        *parts, last = data_of(reply.content)
        assert [part["content"] for part in parts] == ["Once", " upon"]
        assert not any(part["stop"] for part in parts)
        assert (last["content"], last["stop"], last["stop_type"]) == ("", True, "eos")


@pytest.mark.parametrize(
    ("reason", "stop", "said"),
    [
        (FinishReason.STOP, "\n", ("word", "\n", False)),
        (FinishReason.LENGTH, "", ("limit", "", True)),
        (FinishReason.SHUTDOWN, "", ("shutdown", "", False)),
    ],
)
async def test_why_it_ended(reason: FinishReason, stop: str, said: tuple) -> None:
    """A word, a limit (of the context, if it was not the request's), or modeld's own reasons."""

    async def script(ticket: Ticket) -> None:
        ticket.put(Finished(reason=reason, usage=Usage(completion_tokens=3), stats=Stats(), stop=stop))

    async with serving(script) as served, served.client() as client:
        answer = (await client.post("/completion", json={"prompt": "x", "n_predict": 9})).json()
        assert (answer["stop_type"], answer["stopping_word"], answer["truncated"]) == said


async def test_probabilities_are_told() -> None:
    """Of each token, with the most probable ones at its place."""
    entry = Logprobs(chosen=TokenLogprob(1, b"x", -0.5), top=(TokenLogprob(2, b"y", float("-inf")),))

    async def script(ticket: Ticket) -> None:
        ticket.put(Delta(text="x", logprobs=(entry,)))
        finish(ticket)

    async with serving(script) as served, served.client() as client:
        answer = (await client.post("/completion", json={"prompt": "x", "n_probs": 1})).json()
        [prob] = answer["completion_probabilities"]
        assert (prob["id"], prob["token"], prob["bytes"], prob["logprob"]) == (1, "x", [120], -0.5)
        assert prob["top_logprobs"] == [{"id": 2, "token": "y", "bytes": [121], "logprob": -9999.0}]


async def test_refusals_have_llama_cpps_envelope() -> None:
    """`error` is an object with code, message and type; a stream that breaks ends with one."""

    async def fails(ticket: Ticket) -> None:
        ticket.put(Delta(text="x"))
        ticket.put(Failed(problem=EngineFailed("it died").as_problem()))

    async with serving(fails) as served, served.client() as client:
        stream = await client.post("/completion", json={"prompt": "x", "stream": True})
        assert data_of(stream.content)[-1] == {
            "error": {"code": 500, "message": "it died", "type": "server_error"}
        }
        assert (await client.post("/completion", json={"prompt": "x"})).status_code == 500
        bad = await client.post("/completion", json={"prompt": 7})
        assert (bad.status_code, bad.json()["error"]["type"]) == (400, "invalid_request_error")
        served.backend.refusal = QueueFull("full", retry_after_s=7)
        full = await client.post("/embedding", json={"content": "x"})
        assert (full.status_code, full.json()["error"]["type"]) == (429, "unavailable_error")
        assert full.headers["retry-after"] == "7"


async def test_vectors() -> None:
    """A list with an entry for each text; each has one vector."""

    async def script(ticket: Ticket) -> None:
        ticket.put(Embedded(0, (struct.pack("<2f", 1, 2), struct.pack("<2f", 3, 4))))
        finish(ticket)

    async with serving(script) as served, served.client() as client:
        for path in ("/embedding", "/embeddings"):
            reply = await client.post(path, json={"content": ["a", "b"]})
            assert reply.json() == [
                {"index": 0, "embedding": [[1, 2]]},
                {"index": 1, "embedding": [[3, 4]]},
            ]
    assert parse_embedding(b'{"input":[1,2],"embd_normalize":-1}').request == EmbedRequest(
        inputs=((1, 2),), normalize=False
    )
    for bad in (b"{}", b'{"content":""}', b'{"content":["a",1]}', b'{"content":["a",""]}'):
        with pytest.raises(InvalidRequest, match="`content"):
            parse_embedding(bad)


async def test_what_is_told_of_models_wakes_none() -> None:
    """Health, properties and slots; the context is that of a request."""
    async with serving() as served, served.client() as client:
        served.backend.templates[TINY.id] = "{{ messages }}"
        assert (await client.get("/health")).json() == {"status": "ok"}
        props = (await client.get("/props?model=tiny-q4")).json()
        assert (props["model_path"], props["total_slots"], props["is_sleeping"]) == (TINY.path, 4, False)
        assert props["default_generation_settings"]["params"]["n_predict"] == -1
        assert props["chat_template"] == "{{ messages }}"
        assert props["modalities"] == {"vision": False, "audio": False}
        slots = (await client.get("/slots")).json()
        assert [slot["is_processing"] for slot in slots] == [True, True, False, False]
        assert (await client.get("/slots?fail_on_no_slot=1")).status_code == 200
        unknown = await client.get("/props?model=nobody")
        assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "not_found_error")
        served.backend.illness = "the scheduler hangs"
        ill = await client.get("/health")
        assert (ill.status_code, ill.json()["error"]["message"]) == (503, "the scheduler hangs")
        assert served.backend.tickets == []


@pytest.mark.parametrize("events", range(3))
async def test_a_stream_that_is_abandoned_frees_its_slot(events: int) -> None:
    """After each of its events."""
    async with serving(start_events(events), stream_keep_alive_s=0.01) as served:
        ticket = await abandoned(
            served, request_bytes(stream=True), b": still here\n\n" if events > 1 else b""
        )
        assert ticket.closed


@given(VALUES)
@settings(max_examples=50)
def test_no_body_breaks_the_parsers(value: object) -> None:
    """Whatever comes is taken or refused."""
    for body in (value, {"prompt": value}, {"content": value}, {"prompt": "x", "json_schema": value}):
        assert is_taken_or_refused(parse_completion, body, LlamaCompletionOrder)
        assert is_taken_or_refused(parse_embedding, body, Order)
        assert is_taken_or_refused(parse_model, body, str)
