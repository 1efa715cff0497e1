# SPDX-License-Identifier: GPL-3.0-only
"""OpenAI's own package against a real server and model: what a program does that changed its base URL."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from typing import Any, Literal

import httpx2
import openai
import pydantic
import pytest
from support.daemon_process import Q4_0, Daemon, until

pytestmark = [pytest.mark.e2e, pytest.mark.real]

HAIKU: Any = [{"role": "user", "content": "Write one sentence about the sea."}]
PAINT: Any = {
    "type": "function",
    "function": {
        "name": "paint",
        "description": "Paints a wall",
        "parameters": {
            "type": "object",
            "properties": {
                "colour": {"enum": ["red", "green", "blue"]},
                "coats": {"$ref": "#/$defs/count"},
            },
            "required": ["colour", "coats"],
            "$defs": {"count": {"type": "integer", "minimum": 1, "maximum": 9}},
        },
    },
}
CLEAN: Any = {
    "type": "function",
    "function": {"name": "clean", "parameters": {"type": "object", "properties": {}}},
}
GREEDY: Any = {"model": Q4_0, "temperature": 0, "max_tokens": 24}


@pytest.fixture(scope="module")
def client(openai_server: Daemon) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{openai_server.url}/v1", api_key="none", max_retries=0, timeout=120
    ) as client:
        yield client


@pytest.fixture
def text(client: openai.OpenAI) -> str:
    """What the model says to HAIKU, greedily, right before the test."""
    # Asked twice, as a prompt that is decoded whole is rounded otherwise than one that is in the cache.
    client.chat.completions.create(messages=HAIKU, **GREEDY)
    answer = client.chat.completions.create(messages=HAIKU, **GREEDY)
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 24
    assert answer.choices[0].message.content
    return answer.choices[0].message.content


def test_models_are_the_files(client: openai.OpenAI) -> None:
    """Each file is a model; its stem finds it."""
    assert f"{Q4_0}.gguf" in [model.id for model in client.models.list()]
    assert client.models.retrieve(Q4_0).id == f"{Q4_0}.gguf"


def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI, text: str) -> None:
    """The same words, the same counts, and a reason at the end."""
    streamed, reason, usage = "", None, None
    for chunk in client.chat.completions.create(
        messages=HAIKU, stream=True, stream_options={"include_usage": True}, **GREEDY
    ):
        for choice in chunk.choices:
            streamed += choice.delta.content or ""
            reason = choice.finish_reason or reason
        usage = chunk.usage or usage
    assert streamed == text
    assert reason in {"stop", "length"}
    assert usage is not None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_the_async_client_is_answered(openai_server: Daemon) -> None:
    """Whole and streamed, several at once, on asyncio."""

    async def main() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=f"{openai_server.url}/v1", api_key="none", timeout=120
        ) as client:

            async def whole() -> str:
                answer = await client.chat.completions.create(messages=HAIKU, **GREEDY)
                return answer.choices[0].message.content or ""

            async def streamed() -> str:
                stream = await client.chat.completions.create(messages=HAIKU, stream=True, **GREEDY)
                parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
                return "".join(parts)

            return list(await asyncio.gather(whole(), streamed()))

    # Neighbours share a batch, whose sums are rounded in another order: the texts need not be the same.
    whole, streamed = asyncio.run(main())
    assert whole
    assert streamed


def test_choices_have_seeds_of_their_own(client: openai.OpenAI) -> None:
    """Two choices of one seed differ, and none is empty."""
    answer = client.chat.completions.create(
        model=Q4_0, messages=HAIKU, n=2, seed=11, temperature=1.5, max_tokens=24
    )
    first, second = (choice.message.content for choice in answer.choices)
    assert first
    assert second
    assert first != second


def test_stop_ends_the_text(client: openai.OpenAI, text: str) -> None:
    """Before the first of the sequences, which is not shown."""
    word = text.split()[2]
    answer = client.chat.completions.create(messages=HAIKU, stop=[word], **GREEDY)
    assert answer.choices[0].message.content == text[: text.index(word)]
    assert answer.choices[0].finish_reason == "stop"


def test_log_probabilities_are_those_of_the_text(client: openai.OpenAI) -> None:
    """One entry a token; greedy takes the most probable of the top."""
    answer = client.chat.completions.create(messages=HAIKU, logprobs=True, top_logprobs=3, **GREEDY)
    found = answer.choices[0].logprobs
    assert found is not None
    assert answer.usage is not None
    assert len(found.content or ()) == answer.usage.completion_tokens
    for entry in found.content or ():
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == max(top.logprob for top in entry.top_logprobs)
        assert entry.logprob <= 0


class Wall(pydantic.BaseModel):
    """What the model is to answer."""

    colour: Literal["red", "green", "blue"]
    coats: int


def test_an_answer_can_be_bound_to_a_schema(client: openai.OpenAI) -> None:
    """The client's own helper makes the schema of a class, and reads the answer into it."""
    answer = client.chat.completions.parse(
        model=Q4_0, messages=HAIKU, response_format=Wall, temperature=0, max_tokens=64
    )
    wall = answer.choices[0].message.parsed
    assert isinstance(wall, Wall)
    answer = client.chat.completions.create(
        messages=HAIKU, response_format={"type": "json_object"}, **GREEDY | {"max_tokens": 200, "stop": ["}"]}
    )
    assert (answer.choices[0].message.content or "").lstrip().startswith("{")


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "paint"}}], ids=["required", "named"]
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_call_fits_its_schema(client: openai.OpenAI, choice: Any, stream: bool) -> None:
    """Whatever the model knows of tools: a function that is there, with arguments that fit."""
    more: Any = (
        {"messages": HAIKU, "tools": [PAINT, CLEAN], "tool_choice": choice} | GREEDY | {"max_tokens": 100}
    )
    if stream:
        name, arguments, reason = "", "", None
        for chunk in client.chat.completions.create(stream=True, **more):
            delta = chunk.choices[0].delta
            assert not delta.content
            for call in delta.tool_calls or ():
                assert call.function is not None
                name += call.function.name or ""
                arguments += call.function.arguments or ""
            reason = chunk.choices[0].finish_reason
    else:
        answer = client.chat.completions.create(**more)
        (found,) = answer.choices[0].message.tool_calls or ()
        name, arguments = found.function.name, found.function.arguments
        reason = answer.choices[0].finish_reason
    assert reason == "tool_calls"
    if name == "paint":
        painted = json.loads(arguments)
        assert painted["colour"] in {"red", "green", "blue"}
        assert isinstance(painted["coats"], int)
    else:
        assert (name, choice) == ("clean", "required")


def test_a_call_the_model_begins_fits_its_schema(client: openai.OpenAI) -> None:
    """It copies how it called before, and with what; but blue is no colour of this function any more."""
    turns: Any = []
    for number, colour in enumerate(["blue", "yellow", "pink"]):
        arguments = json.dumps({"colour": colour, "coats": 2})
        call = {"id": f"c{number}", "type": "function", "function": {"name": "paint", "arguments": arguments}}
        turns.append({"role": "user", "content": f"Paint the wall {colour}."})
        turns.append({"role": "assistant", "content": None, "tool_calls": [call]})
    turns.append({"role": "user", "content": "Paint the wall blue."})
    schema = {"enum": ["red", "green"]}
    parameters = PAINT["function"]["parameters"]
    parameters = {**parameters, "properties": {**parameters["properties"], "colour": schema}}
    tool: Any = {"type": "function", "function": {**PAINT["function"], "parameters": parameters}}
    more: Any = {"tools": [CLEAN, tool], "tool_choice": "auto"} | GREEDY | {"max_tokens": 100}
    choice = client.chat.completions.create(messages=turns, **more).choices[0]
    assert choice.finish_reason == "tool_calls"
    for call in choice.message.tool_calls or ():
        assert call.type == "function"
        painted = json.loads(call.function.arguments)
        assert (call.function.name, painted["colour"] in {"red", "green"}) == ("paint", True)
    plain: Any = {"tools": [tool], "tool_choice": "auto"} | GREEDY
    answer = client.chat.completions.create(messages=HAIKU, **plain).choices[0]
    assert answer.message.content, "text that begins no call is free"
    broken: Any = {"function": {"name": "f", "strict": True, "parameters": {"$ref": "#/$defs/none"}}}
    with pytest.raises(openai.UnprocessableEntityError, match="is strict"):
        client.chat.completions.create(messages=HAIKU, **plain | {"tools": [{"type": "function"} | broken]})


def test_a_conversation_with_calls_is_taken_back(client: openai.OpenAI) -> None:
    """What the client was given, and the tool's answer, make the next prompt; the model answers."""
    first = client.chat.completions.create(
        messages=HAIKU, tools=[PAINT], tool_choice="required", **GREEDY | {"max_tokens": 100}
    )
    message = first.choices[0].message
    assert message.tool_calls
    turns: Any = [
        *HAIKU,
        message.model_dump(),
        {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "painted"},
    ]
    second = client.chat.completions.create(messages=turns, tools=[PAINT], **GREEDY)
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.prompt_tokens > first.usage.prompt_tokens
    assert second.usage.completion_tokens > 0


def test_a_schema_that_cannot_be_is_unprocessable(client: openai.OpenAI) -> None:
    """A forced call of a strict function with a broken schema is a 422 that says so."""
    function = {"name": "f", "parameters": {"$ref": "#/$defs/none"}, "strict": True}
    broken = {"type": "function", "function": function}
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        client.chat.completions.create(messages=HAIKU, tools=[broken], tool_choice="required", **GREEDY)  # type: ignore[call-overload]  # it is broken on purpose
    assert caught.value.code == "invalid_grammar"


def test_what_of_a_schema_cannot_be_kept_is_told(client: openai.OpenAI) -> None:
    """In a header, whole and streamed; the rest is kept."""
    function = {
        "name": "f",
        "parameters": {"type": "object", "properties": {}, "not": {"required": ["x"]}},
    }
    more: Any = {"messages": HAIKU, "tools": [{"type": "function", "function": function}]}
    for stream in (False, True):
        raw = client.chat.completions.with_raw_response.create(
            tool_choice="required", stream=stream, **more, **GREEDY
        )
        assert 'the schema of the function "f" is not kept whole' in raw.headers["X-Modeld-Ignored"]
        assert "not" in raw.headers["X-Modeld-Ignored"]
        raw.parse()


def test_responses_in_both_forms(client: openai.OpenAI, openai_server: Daemon) -> None:
    """The same words whole and as events, on asyncio too; a schema and a forced call bind them."""
    more: Any = {
        "model": Q4_0,
        "temperature": 0,
        "max_output_tokens": 24,
        "input": "Write one sentence about the sea.",
    }
    client.responses.create(**more)
    whole = client.responses.create(**more)
    assert whole.output_text
    with client.responses.stream(**more) as stream:
        deltas = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert deltas == stream.get_final_response().output_text == whole.output_text
    more |= {"max_output_tokens": 100}
    assert isinstance(client.responses.parse(text_format=Wall, **more).output_parsed, Wall)

    async def called() -> str:
        async with openai.AsyncOpenAI(base_url=f"{openai_server.url}/v1", api_key="none") as other:
            tool: Any = {"type": "function", **PAINT["function"], "strict": True}
            answer = await other.responses.create(tools=[tool], tool_choice="required", **more)
            (item,) = answer.output
            assert item.type == "function_call"
            return item.arguments

    assert json.loads(asyncio.run(called()))["colour"] in {"red", "green", "blue"}


def test_completions_of_texts_and_tokens_are_the_same(client: openai.OpenAI, openai_server: Daemon) -> None:
    """A prompt as the ids of its tokens continues as its text does."""
    content = "The capital of France is"
    with httpx2.Client(base_url=openai_server.url, trust_env=False, timeout=60) as http:
        tokens = http.post("/tokenize", json={"content": content, "model": Q4_0}).json()["tokens"]
    more: Any = {"model": Q4_0, "temperature": 0, "max_tokens": 8}
    client.completions.create(prompt=content, **more)
    plain = client.completions.create(prompt=content, **more)
    by_tokens = client.completions.create(prompt=tokens, **more)
    assert plain.choices[0].text
    assert by_tokens.choices[0].text == plain.choices[0].text
    echoed = client.completions.create(prompt=content, echo=True, logprobs=None, **more)
    assert echoed.choices[0].text == content + plain.choices[0].text
    told = client.completions.create(prompt=content, logprobs=2, **more)
    assert told.choices[0].logprobs is not None
    assert "".join(told.choices[0].logprobs.tokens or ()) == plain.choices[0].text


def test_embeddings_have_length_one(client: openai.OpenAI) -> None:
    """In both encodings the same numbers."""
    packed = client.embeddings.create(model=Q4_0, input=["a cat", "a dog"])
    plain = client.embeddings.create(model=Q4_0, input=["a cat", "a dog"], encoding_format="float")
    for one, other in zip(packed.data, plain.data, strict=True):
        assert math.hypot(*one.embedding) == pytest.approx(1, abs=1e-3)
        assert one.embedding == pytest.approx(other.embedding, abs=1e-2)
    assert packed.usage.prompt_tokens > 0


def test_a_prompt_that_is_too_long_is_told_with_the_numbers(client: openai.OpenAI) -> None:
    """Ten thousand messages are a 400 under OpenAI's own code, and the server serves on."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(messages=[{"role": "user", "content": "Hi"}] * 10_000, **GREEDY)
    assert caught.value.code == "context_length_exceeded"
    assert client.chat.completions.create(messages=HAIKU, **GREEDY).choices


async def test_a_client_that_leaves_frees_its_slot(openai_server: Daemon) -> None:
    """A stream that is closed in the middle, and one whose patience ends."""
    long: Any = {"model": Q4_0, "messages": HAIKU, "max_tokens": 4000, "extra_body": {"ignore_eos": True}}
    with openai.OpenAI(base_url=f"{openai_server.url}/v1", api_key="none", max_retries=0) as client:
        with client.chat.completions.create(stream=True, **long) as stream:
            next(iter(stream))
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.5).chat.completions.create(**long)
    async with httpx2.AsyncClient(base_url=openai_server.url, trust_env=False, timeout=30) as http:
        await until(http, inflight=0, queue_len=0)
