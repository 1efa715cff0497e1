# SPDX-License-Identifier: GPL-3.0-only
"""The Python package of Ollama against the daemon with a real model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import httpx  # noqa: ASYNC127  # what this client raises
import httpx2
import ollama
import pytest
import trio
from support.daemon_process import Q4_0, Daemon, client, daemon, status, until

pytestmark = [pytest.mark.e2e, pytest.mark.real]

GREEDY = {"temperature": 0, "num_predict": 12}
TURNS = [{"role": "user", "content": "Say hello."}]
ENDLESS = {"num_predict": -2, "temperature": 1.5, "seed": 1}
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}},
    "required": ["colour"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def running() -> Iterator[Daemon]:
    # Without a prefix cache, since a prompt that is decoded in other pieces may give other text.
    with daemon("--llama-ctx", "512", "--llama-slots", "2", "--llama-prefix-cells", "0") as here:
        yield here


@pytest.fixture
def sync(running: Daemon) -> Iterator[ollama.Client]:
    with ollama.Client(running.url) as found:
        yield found


def test_text_is_the_same_streamed_or_not(sync: ollama.Client) -> None:
    """Greedy text in parts and whole, with counts and durations in nanoseconds."""
    whole = sync.generate(Q4_0, "Once upon a time", options=GREEDY)
    *parts, last = sync.generate(Q4_0, "Once upon a time", options=GREEDY, stream=True)
    assert whole.response
    assert "".join(part.response for part in parts) == whole.response
    assert (last.done, last.done_reason) == (True, "length")
    assert whole.eval_count == last.eval_count == 12
    assert whole.prompt_eval_count is not None
    assert whole.prompt_eval_count > 4
    assert whole.total_duration is not None
    assert whole.eval_duration is not None
    assert whole.total_duration > whole.eval_duration > 1000


def test_raw_prompts_and_templates(sync: ollama.Client) -> None:
    """A template that says what the model's own says gives the same prompt, and so the same text."""
    own = sync.generate(Q4_0, "Say hello.", system="Be kind.", options=GREEDY)
    template = (
        "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}"
        "<|im_start|>user\n{{ .Prompt }}<|im_end|>\n<|im_start|>assistant\n{{ .Response }}"
    )
    given = sync.generate(Q4_0, "Say hello.", system="Be kind.", template=template, options=GREEDY)
    written = template.replace("{{ if .System }}", "").replace("{{ end }}", "").replace("{{ .Response }}", "")
    written = written.replace("{{ .System }}", "Be kind.").replace("{{ .Prompt }}", "Say hello.")
    raw = sync.generate(Q4_0, written, raw=True, options=GREEDY)
    assert own.prompt_eval_count == given.prompt_eval_count == raw.prompt_eval_count
    assert own.response == given.response == raw.response


def test_a_conversation(sync: ollama.Client) -> None:
    """Messages by the model's own template, streamed or not, with and without a system's message."""
    whole = sync.chat(Q4_0, TURNS, options=GREEDY)
    assert whole.message.role == "assistant"
    assert whole.message.content
    parts = list(sync.chat(Q4_0, TURNS, options=GREEDY, stream=True))
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    bound = sync.chat(Q4_0, [{"role": "system", "content": "Shout."}, *TURNS], options=GREEDY)
    assert bound.prompt_eval_count is not None
    assert bound.message.content


def test_a_schema_binds_the_answer(sync: ollama.Client) -> None:
    """`format` is a schema, or any object."""
    answer = sync.chat(Q4_0, TURNS, format=SCHEMA, options={"temperature": 0, "num_predict": 40})
    assert json.loads(answer.message.content or "")["colour"] in {"red", "green"}
    free = sync.generate(Q4_0, "A JSON object:", format="json", options={"num_predict": 4, "seed": 3})
    assert free.response.lstrip().startswith("{")


def test_functions_can_be_offered(sync: ollama.Client) -> None:
    """With a schema the answer is a call or satisfies it; what a function answered is taken."""
    function = {"name": "paint", "description": "Paint it", "parameters": SCHEMA}
    tools = [{"type": "function", "function": function}]
    options = {"temperature": 0, "num_predict": 60}
    answer = sync.chat(Q4_0, TURNS, tools=tools, format=SCHEMA, options=options)
    if answer.message.tool_calls:
        [call] = answer.message.tool_calls
        assert call.function.name == "paint"
        assert call.function.arguments["colour"] in {"red", "green"}
    else:
        assert json.loads(answer.message.content or "")["colour"] in {"red", "green"}
    said = [*TURNS, {"role": "tool", "tool_name": "paint", "content": "done"}]
    assert sync.chat(Q4_0, said, tools=tools, options=GREEDY).done


def test_a_call_the_model_begins_fits_its_schema(sync: ollama.Client) -> None:
    """It copies how it called before, and with what; but blue is no colour of this function any more."""
    said: list[dict[str, object]] = []
    for colour in ("blue", "yellow", "pink"):
        call = {"function": {"name": "paint", "arguments": {"colour": colour}}}
        said.append({"role": "user", "content": f"Paint the wall {colour}."})
        said.append({"role": "assistant", "content": "", "tool_calls": [call]})
    said.append({"role": "user", "content": "Paint the wall blue."})
    tools = [{"type": "function", "function": {"name": "paint", "parameters": SCHEMA}}]
    options = {"temperature": 0, "num_predict": 60}
    whole = sync.chat(Q4_0, said, tools=tools, options=options).message
    parts = [part.message for part in sync.chat(Q4_0, said, tools=tools, options=options, stream=True)]
    for calls in (whole.tool_calls, [call for part in parts for call in part.tool_calls or ()]):
        assert calls
        for call in calls:
            assert call.function.name == "paint"
            assert call.function.arguments["colour"] in {"red", "green"}


def test_vectors(sync: ollama.Client) -> None:
    """One for each input, of length 1; the same by the older path but for its length."""
    found = sync.embed(Q4_0, ["Hello", "world"])
    assert len(found.embeddings) == 2
    assert math.hypot(*found.embeddings[0]) == pytest.approx(1, abs=1e-4)
    alone = sync.embed(Q4_0, "Hello")
    assert alone.embeddings[0] == pytest.approx(found.embeddings[0], abs=0.02)
    older = sync.embeddings(Q4_0, "Hello").embedding
    scale = math.hypot(*older)
    assert [number / scale for number in older] == pytest.approx(alone.embeddings[0], abs=1e-4)
    assert len(sync.embed(Q4_0, "Hello", dimensions=32).embeddings[0]) == 32


def test_inputs_that_are_too_long_are_cut_or_refused(sync: ollama.Client) -> None:
    """As the client says; Ollama cuts unless it is told not to."""
    long = "The quick brown fox. " * 400
    cut = sync.embed(Q4_0, long)
    assert cut.prompt_eval_count == 512
    with pytest.raises(ollama.ResponseError, match="there is room for 512") as caught:
        sync.embed(Q4_0, long, truncate=False)
    assert caught.value.status_code == 400


def test_the_lists(sync: ollama.Client, running: Daemon) -> None:
    """Models, what is known of one, and which are in memory."""
    names = [model.model for model in sync.list().models]
    assert f"{Q4_0}.gguf" in names
    shown = sync.show(Q4_0)
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.modelinfo["llama.context_length"] == 8192
    sync.generate(Q4_0, "x", options={"num_predict": 1})
    [loaded] = [model for model in sync.ps().models if model.model == f"{Q4_0}.gguf"]
    assert loaded.context_length == 512
    assert loaded.expires_at is not None
    assert loaded.size is not None
    assert loaded.size > 50_000_000
    assert sync.pull(Q4_0).status == "success"


def test_num_ctx_loads_nothing_anew(sync: ollama.Client, running: Daemon) -> None:
    """Whatever clients ask for, there is one load; the answer has the context that there is."""
    sync.generate(Q4_0, "x", options={"num_predict": 1})
    with httpx2.Client(base_url=running.url) as http:
        before = http.get("/status").json()["loads_total"]
        for num_ctx in (256, 100_000):
            options = {"num_ctx": num_ctx, "num_predict": 1, "num_gpu": 0}
            asked = {"model": Q4_0, "prompt": "x", "stream": False, "options": options}
            answer = http.post("/api/generate", json=asked).json()
            assert answer["num_ctx"] == 512
            assert f"num_ctx {num_ctx} became 512" in answer["notice"]
        assert http.get("/status").json()["loads_total"] == before


@pytest.mark.parametrize(
    ("status_code", "said", "keys"),
    [
        (404, 'no model is called "nobody"', {"model": "nobody"}),
        (400, "`options.temperature`", {"options": {"temperature": -1}}),
        (400, "no model has vision", {"images": [b"abc"]}),
        (400, "`suffix` is not served", {"suffix": "x"}),
        (400, "`think` is not served", {"think": True}),
        (400, "the prompt has", {"prompt": "word " * 600}),
    ],
)
def test_errors_are_those_of_the_client(
    sync: ollama.Client, status_code: int, said: str, keys: dict[str, object]
) -> None:
    """`ResponseError` with the sentence and the status, streamed or not."""
    for stream in (False, True):
        with pytest.raises(ollama.ResponseError, match=said) as caught:
            list(sync.generate(**{"model": Q4_0, "prompt": "x", **keys}, stream=stream))
        assert caught.value.status_code == status_code


def test_a_client_that_stops_reading_frees_its_slot(sync: ollama.Client, running: Daemon) -> None:
    """Leaving a stream in its middle ends the generation."""
    stream = sync.generate(Q4_0, "Tell me a story", options={**ENDLESS, "stop": []}, stream=True)
    next(stream)
    stream.close()
    assert at_rest(running)["inflight"] == 0


def test_a_client_that_loses_patience_frees_its_slot(running: Daemon) -> None:
    """The timeout of the client ends a request that is not streamed."""
    patience = httpx.Timeout(60, read=0.3)
    with ollama.Client(running.url, timeout=patience) as hasty, pytest.raises(httpx.ReadTimeout):
        hasty.generate(Q4_0, "Tell me a story", options=ENDLESS, format=_LONG_LIST)
    assert at_rest(running)["inflight"] == 0


async def test_the_async_client(running: Daemon) -> None:
    """The same with awaits; streams alongside each other; a cancelled one frees its slot."""
    async with ollama.AsyncClient(running.url) as found:
        whole = await found.chat(Q4_0, TURNS, options=GREEDY)
        texts: list[str] = []

        async def tell() -> None:
            stream = await found.chat(Q4_0, TURNS, options=GREEDY, stream=True)
            texts.append("".join([part.message.content or "" async for part in stream]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell)
            nursery.start_soon(tell)
        assert whole.message.content
        assert all(texts)
        assert len((await found.embed(Q4_0, "Hello")).embeddings[0]) == 576
        with pytest.raises(ollama.ResponseError, match="nobody"):
            await found.generate("nobody", "x")
        with trio.CancelScope() as scope:
            async for _ in await found.generate(Q4_0, "A story", options=ENDLESS, stream=True):
                scope.cancel()
    async with client(running) as http:
        await until(http, inflight=0)


async def test_models_are_loaded_and_unloaded(running: Daemon) -> None:
    """An empty prompt loads, `keep_alive` 0 unloads; `ps` shows both."""
    async with ollama.AsyncClient(running.url) as found, client(running) as http:
        loaded = await found.generate(Q4_0, keep_alive="1h")
        assert loaded.done_reason == "load"
        assert (await status(http))["state"] == "ready"
        [shown] = (await found.ps()).models
        assert shown.expires_at is not None
        gone = await found.generate(Q4_0, keep_alive=0)
        assert gone.done_reason == "unload"
        await until(http, state="stopped")
        assert (await found.ps()).models == []
        assert (await found.generate(Q4_0, keep_alive=0)).done_reason == "unload"
        assert (await status(http))["state"] == "stopped"


_LONG_LIST = {"type": "array", "items": {"type": "string", "minLength": 200}, "minItems": 200}


def at_rest(running: Daemon) -> dict[str, object]:
    async def wait() -> dict[str, object]:
        async with client(running) as http:
            return await until(http, inflight=0, queue_len=0)

    return trio.run(wait)
