# SPDX-License-Identifier: GPL-3.0-only
"""The lines of a native stream, byte for byte."""

from __future__ import annotations

import json
import math

from modeld.dialects.native import InferRenderer, error_body, models_body
from modeld.domain.instance_state import InstanceState
from modeld.domain.model import ModelFacts, ModelSpec, catalog_of
from modeld.domain.request_events import (
    Delta,
    Failed,
    Finished,
    FinishReason,
    Loading,
    Logprobs,
    Queued,
    Started,
    Stats,
    TokenLogprob,
    Usage,
)
from modeld.errors import DoesNotFit, EngineFailed

USAGE = Usage(prompt_tokens=5, completion_tokens=2, cached_tokens=1)
STATS = Stats(duration_s=1.2344, queue_s=0.0004, load_s=0, ttft_s=0.07, tokens_per_second=51.204)
DONE = Finished(reason=FinishReason.STOP, usage=USAGE, stats=STATS)


def renderer(*, events: bool = False) -> InferRenderer:
    return InferRenderer(model="tiny.gguf", request_id="r1", events=events)


def test_a_stream_is_written_as_documented() -> None:
    """One line per token, `token` first; then one last line with everything."""
    out = renderer().lines([Started(usage=USAGE), Delta(text="The"), Delta(text=' "cat"\n\u00e9'), DONE])
    assert out.decode() == (
        '{"token":"The","done":false}\n'
        '{"token":" \\"cat\\"\\n\u00e9","done":false}\n'
        '{"done":true,"content":"The \\"cat\\"\\n\u00e9","finish_reason":"stop",'
        '"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7,"cached_tokens":1},'
        '"stats":{"duration_ms":1234,"queue_ms":0,"load_ms":0,"ttft_ms":70,"tokens_per_second":51.2},'
        '"model":"tiny.gguf","id":"r1"}\n'
    )


def test_guessed_tokens_are_counted_where_there_were_any() -> None:
    """Usage tells of guesses only when there were some, and then also of none that came true."""
    usage = Usage(prompt_tokens=5, completion_tokens=2, drafted_tokens=4)
    last = json.loads(renderer().lines([Finished(reason=FinishReason.STOP, usage=usage, stats=STATS)]))
    assert (last["usage"]["drafted_tokens"], last["usage"]["accepted_tokens"]) == (4, 0)
    assert "drafted_tokens" not in json.loads(renderer().lines([DONE]))["usage"]


def test_an_echo_comes_first_and_once() -> None:
    """The prompt is the first line and the beginning of the content; waiting and refusals have none."""
    render = InferRenderer(model="tiny.gguf", request_id="r1", echo="Say: ")
    assert render.lines([Queued(position=1), Started(usage=USAGE)]) == b""
    lines = render.lines([Delta(text=""), Delta(text="The")]) + render.lines([Delta(text=" cat"), DONE])
    *tokens, last = (json.loads(line) for line in lines.splitlines())
    assert [token["token"] for token in tokens] == ["Say: ", "The", " cat"]
    assert last["content"] == "Say: The cat"
    whole = InferRenderer(model="tiny.gguf", request_id="r1", echo="Say: ")
    assert whole.take([Started(usage=USAGE), Delta(text="The")]) is None
    assert json.loads(whole.take([Delta(text=" cat"), DONE]) or b"")["content"] == "Say: The cat"
    refused = InferRenderer(model="tiny.gguf", request_id="r1", echo="Say: ")
    failed = Failed(problem=EngineFailed("the engine died").as_problem())
    assert json.loads(refused.lines([failed]))["content"] == ""


def test_an_answer_without_text_has_its_echo() -> None:
    """Where the first token is the end there is still the prompt."""
    lines = InferRenderer(model="tiny.gguf", request_id="r1", echo="Say").lines([DONE]).splitlines()
    assert [json.loads(line).get("token") for line in lines] == ["Say", None]
    assert json.loads(lines[-1])["content"] == "Say"


def test_a_failure_in_a_stream_is_its_last_line() -> None:
    """The line has the error, its status and its type, and the text that had come."""
    render = renderer()
    render.lines([Delta(text="The")])
    problem = EngineFailed("the engine died", details={"restarts": 1}).as_problem()
    line = json.loads(render.lines([Failed(problem=problem, usage=USAGE, stats=STATS)]))
    assert list(line)[:6] == ["done", "error", "code", "type", "details", "content"]
    assert (line["done"], line["error"], line["code"]) == (True, "the engine died", 500)
    assert (line["type"], line["details"], line["content"]) == ("engine_failed", {"restarts": 1}, "The")
    assert line["finish_reason"] == "error"


def test_an_answer_without_a_token_has_no_time_to_first_token() -> None:
    """`ttft_ms` is null when there was no token."""
    line = json.loads(
        renderer().lines([Finished(reason=FinishReason.SHUTDOWN, usage=Usage(), stats=Stats())])
    )
    assert line["stats"]["ttft_ms"] is None
    assert line["finish_reason"] == "shutdown"
    assert line["content"] == ""


def test_waiting_is_told_only_when_asked_for() -> None:
    """`queued` and `loading` lines come with `events: true`, and only then."""
    waiting = [Queued(position=2, eta_s=1.8), Queued(position=1), Loading(progress=0.41234)]
    assert renderer().lines(waiting) == b""
    assert renderer(events=True).lines(waiting) == (
        b'{"event":"queued","position":2,"eta_ms":1800}\n'
        b'{"event":"queued","position":1,"eta_ms":null}\n'
        b'{"event":"loading","progress":0.412}\n'
    )


def test_a_load_is_told_in_few_lines() -> None:
    """One line each 5 %, however often progress comes; the first and the last are among them."""
    render = renderer(events=True)
    told = b"".join(render.lines([Loading(progress=part / 200)]) for part in range(201))
    lines = [json.loads(line)["progress"] for line in told.splitlines()]
    assert lines == [round(step / 20, 3) for step in range(21)]
    assert render.lines([Loading(progress=1.0)]) == b""
    assert render.lines([Loading(progress=0.01)]), "a second load is told, too"
    late = renderer(events=True)
    assert late.lines([Loading(progress=0.63), Loading(progress=0.64)]).count(b"\n") == 1


def test_logprobs_are_written_with_their_tokens() -> None:
    """Half a character is shown as bytes too, and minus infinity as a number that JSON has."""
    chosen = TokenLogprob(7, b"\xf0\x9f", -0.5)
    entry = Logprobs(chosen=chosen, top=(chosen, TokenLogprob(8, b"x", -math.inf)))
    render = renderer()
    line = json.loads(render.lines([Delta(text="", logprobs=(entry,))]))
    assert list(line) == ["token", "done", "logprobs"]
    [told] = line["logprobs"]
    assert (told["token"], told["id"], told["bytes"], told["logprob"]) == ("\ufffd", 7, [0xF0, 0x9F], -0.5)
    assert told["top"][1]["logprob"] == -9999.0
    assert json.loads(render.lines([DONE]))["logprobs"] == [told]


def test_a_whole_answer_is_the_last_line() -> None:
    """`stream: false` gathers without lines and ends in the same object."""
    render, streamed = renderer(), renderer()
    assert render.take([Queued(position=1), Delta(text="a")]) is None
    assert (
        render.take([Delta(text="b"), DONE])
        == streamed.lines([Delta(text="a"), Delta(text="b"), DONE]).splitlines(keepends=True)[-1]
    )


def test_a_refusal_is_told_with_its_numbers() -> None:
    """Error bodies have the sentence, the status, the type, and details only where there are some."""
    problem = DoesNotFit("too large", details={"need_mb": 5}).as_problem()
    assert error_body(problem) == (
        b'{"error":"too large","code":507,"type":"does_not_fit","details":{"need_mb":5}}'
    )
    assert b"details" not in error_body(DoesNotFit("too large").as_problem())


def test_models_are_listed_with_what_their_files_say() -> None:
    """A healthy file shows its facts, a damaged one its error, and neither hides the other."""
    facts = ModelFacts(architecture="llama", name="Tiny", quant="Q4_0", parameters=9, context_length=64)
    catalog = catalog_of(
        [
            ModelSpec(id="b.gguf", path="/m/b.gguf", error="it is empty"),
            ModelSpec(
                id="a.gguf",
                path="/m/a.gguf",
                size_bytes=7,
                modified_ns=3 * 10**9,
                facts=facts,
                aliases=("a",),
            ),
        ]
    )
    healthy, damaged = models_body(catalog, {"a.gguf": InstanceState.READY}).models
    assert (healthy.id, healthy.name, healthy.quant, healthy.family) == ("a.gguf", "Tiny", "Q4_0", "llama")
    assert (healthy.size_bytes, healthy.modified_unix, healthy.context_length) == (7, 3, 64)
    assert (healthy.state, healthy.aliases, healthy.default) == (InstanceState.READY, ("a",), True)
    assert (damaged.state, damaged.error, damaged.name) == (InstanceState.STOPPED, "it is empty", "b.gguf")
