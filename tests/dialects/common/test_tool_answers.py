# SPDX-License-Identifier: GPL-3.0-only
"""Calls in answers, in every dialect: one reading however an answer is split, and text where one is cut."""

from __future__ import annotations

import json

import pytest
from support.tool_answers import DIALECTS, MAX_TOKENS, PARAMETERS, Answer, Dialect, answer

from modeld.domain.request_events import (
    Delta,
    Event,
    Failed,
    Finished,
    FinishReason,
    Logprobs,
    Started,
    Stats,
    TokenLogprob,
    Usage,
)
from modeld.errors import EngineFailed

ROME = '{"city": "Rome \\"}"}'
WEATHER = f'{{"name": "weather", "arguments": {ROME}}}'
CALL = ("weather", ROME)
HERMES = f"<tool_call>{WEATHER}</tool_call>"
MISTRAL = f"[TOOL_CALLS]weather[ARGS]{ROME}"
DEFINITION = json.dumps({"name": "weather", "description": "Tells it", "parameters": PARAMETERS})
SCHEMA = json.dumps({"name": "weather", "parameters": PARAMETERS})

Case = tuple[str, str, list[str | tuple[str, str]]]
"""The thought that the prompt ends with, the answer, and what it is."""
ANSWERS: list[Case] = [
    ("", HERMES, [CALL]),
    ("", f"I look. {HERMES}\n{HERMES}", ["I look. ", CALL, CALL]),
    ("", f"{HERMES} There.", [CALL, "There."]),
    ("", f"{HERMES}\n<", [CALL, "<"]),
    ("", f"{MISTRAL} </tool", [CALL, "</tool"]),
    ("", MISTRAL, [CALL]),
    ("", f"[TOOL_CALLS][{WEATHER}, {WEATHER}]", [CALL, CALL]),
    ("", f"<|python_tag|>{WEATHER}; {WEATHER}", [CALL, CALL]),
    ("", f" {WEATHER}\n", [CALL]),
    ("", f"[{WEATHER}]", [CALL]),
    ("", f"{WEATHER}; {WEATHER}", [CALL, CALL]),
    *(
        ("", text, [text])
        for text in (
            *(
                "Hello",
                DEFINITION,
                SCHEMA,
                f"{WEATHER} is a call.",
                f"Say {WEATHER}",
                f"<tool_call>{DEFINITION}",
            ),
            *('<tool_call>{"name": "delete", "arguments": {}}</tool_call>', "<tool_call> begins a call."),
            *(WEATHER.replace("weather", "delete"), WEATHER.replace("city", "town"), f"{WEATHER};"),
            *(HERMES.replace(ROME, given) for given in ("null", "[]", '{"city": 1,}', '{"city": "a\nb"}')),
            *(text.replace(ROME, '{"city": 5, "city": "Rome"}') for text in (WEATHER, HERMES)),
            *(f"<think>{HERMES}</think>", f"<think>{WEATHER}", f"[THINK]{MISTRAL}[/THINK]Done."),
        )
    ),
    ("", f"<think>{HERMES}</think>\n{HERMES}", [f"<think>{HERMES}</think>\n", CALL]),
    ("", f"<think>{WEATHER}</think>{WEATHER}", [f"<think>{WEATHER}</think>", CALL]),
    ("<think>", f"{HERMES}</think>{HERMES}", [f"{HERMES}</think>", CALL]),
    ("<think>", HERMES, [HERMES]),
    ("[THINK]", f"{MISTRAL}[/THINK]{MISTRAL}", [f"{MISTRAL}[/THINK]", CALL]),
]
dialects = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
streamed = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])


def events(
    thought: str, parts: list[str], reason: FinishReason = FinishReason.STOP, stop: str = ""
) -> list[Event]:
    usage = Usage(prompt_tokens=5, completion_tokens=MAX_TOKENS)
    end = Finished(reason=reason, usage=usage, stats=Stats(), stop=stop)
    return [Started(usage, thought), *(Delta(part) for part in parts), end]


def plain(found: Answer) -> Answer:
    """An answer whose arguments have no blanks of their own, as some dialects write them again."""
    return found._replace(parts=tuple(
        part if isinstance(part, str) else (part[0], json.dumps(json.loads(part[1]))) for part in found.parts
    ))  # fmt: skip


def expected(dialect: Dialect, parts: list[str | tuple[str, str]], finish: str, *, stream: bool) -> Answer:
    """What a dialect says of these parts. In a whole answer some tell all text before all calls."""
    calls = [part for part in parts if not isinstance(part, str)]
    if not stream and dialect is not DIALECTS["responses"] and dialect is not DIALECTS["anthropic"]:
        parts = [*(part for part in parts if isinstance(part, str)), *calls]
    end = "calls" if calls and finish == "stop" else finish
    return plain(answer(parts, dialect.finishes[end]))


@dialects
@streamed
@pytest.mark.parametrize("case", ANSWERS, ids=[text for _, text, _ in ANSWERS])
def test_an_answer_has_one_reading_wherever_it_is_split(dialect: Dialect, stream: bool, case: Case) -> None:
    """The same text, calls and end: as a whole, by characters, and in two parts at each place."""
    thought, text, parts = case
    right = expected(dialect, parts, "stop", stream=stream)
    splits = [[text], list(text), *([text[:cut], text[cut:]] for cut in range(1, len(text)))]
    for split in splits:
        found = dialect.read(events(thought, split), stream=stream)
        assert found is not None
        assert plain(found) == right, split


@dialects
@streamed
@pytest.mark.parametrize(
    ("reason", "case"),
    [
        *(("length", case) for case in ANSWERS),
        *((reason, case) for case in ANSWERS[1:9:3] for reason in ("timeout", "shutdown", "cancelled")),
    ],
)
def test_what_was_cut_is_told_as_it_was_written(
    dialect: Dialect, stream: bool, reason: str, case: Case
) -> None:
    """At each place: only complete calls, all the rest as text, and the end that it was."""
    thought, text, _ = case
    for cut in range(len(text) + 1):
        found = dialect.read(events(thought, [text[:cut]], FinishReason(reason)), stream=stream)
        if found is None:
            assert dialect.finishes[reason] == "error" or reason in ("shutdown", "cancelled")
            continue
        assert found.finish == dialect.finishes[reason]
        rest = text[:cut]
        for part in found.parts if stream else ():
            if isinstance(part, str):
                assert part in rest, "nothing is told that was not written, nor in another order"
                rest = rest[rest.index(part) + len(part) :]
            else:
                assert part[0] in rest
                end = rest.index("}", rest.index("city")) + (2 if "[ARGS]" not in text else 1)
                assert end <= len(rest), "the call was complete"
                rest = rest[end:]
        assert found.text.count("city") + len(found.calls) == text[:cut].count("city"), "nothing is lost"
        if not found.calls:
            assert found.text == text[:cut]


@dialects
@streamed
def test_a_stop_sequence_within_a_call_leaves_text(dialect: Dialect, stream: bool) -> None:
    """The call has no end, so it is none; and no dialect says that there was one."""
    text = HERMES[: HERMES.index("Rome")]
    found = dialect.read(events("", list(text), stop="Rome"), stream=stream)
    assert found is not None
    assert found.parts == (text,)
    assert found.finish == ("stop_sequence" if dialect is DIALECTS["anthropic"] else dialect.finishes["stop"])


@dialects
@streamed
def test_a_stop_sequence_behind_a_call_does_not_hide_it(dialect: Dialect, stream: bool) -> None:
    """Clients run calls for the reason that says so."""
    found = dialect.read(
        events("", [HERMES.removesuffix("</tool_call>")], stop="</tool_call>"), stream=stream
    )
    assert found is not None
    assert plain(found) == expected(dialect, [CALL], "stop", stream=stream)


@pytest.mark.parametrize("name", ["chat", "responses", "anthropic"])
@streamed
def test_one_call_may_be_wanted(name: str, stream: bool) -> None:
    """The others are left out, in any form. Ollama has nothing that asks for it."""
    dialect = DIALECTS[name]
    for text in (HERMES + HERMES, f"[TOOL_CALLS][{WEATHER}, {WEATHER}]", f"{WEATHER}; {WEATHER}"):
        found = dialect.read(events("", [text]), stream=stream, **dialect.one_call)
        assert found is not None
        assert plain(found) == expected(dialect, [CALL], "stop", stream=stream)


@pytest.mark.parametrize("name", ["chat", "responses", "anthropic"])
@streamed
def test_a_forced_call_is_one_whatever_its_schema_says_beyond_the_grammar(name: str, stream: bool) -> None:
    """Who asks for a call gets it; cut off, it is text all the same. Ollama has nothing that forces one."""
    dialect = DIALECTS[name]
    text = '{"name": "weather", "arguments": {"city": 3}}'
    found = dialect.read(events("", list(text)), stream=stream, tool_choice=dialect.choice)
    assert found is not None
    assert plain(found) == expected(dialect, [("weather", '{"city": 3}')], "stop", stream=stream)
    found = dialect.read(
        events("", list(text[:-1]), FinishReason.LENGTH), stream=stream, tool_choice=dialect.choice
    )
    assert found is not None
    assert found == Answer((text[:-1],), dialect.finishes["length"])


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("chat", {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}}),
        ("responses", {"text": {"format": {"type": "json_schema", "name": "x", "schema": {}}}}),
        ("anthropic", {"output_config": {"format": {"type": "json_schema", "schema": {}}}}),
        ("ollama", {"format": {"type": "object"}}),
    ],
)
@streamed
def test_an_answer_in_a_format_is_no_call_unless_it_fits(name: str, more: dict, stream: bool) -> None:
    """The text is bound to one of both, and its arguments tell which."""
    dialect = DIALECTS[name]
    for text, parts in (
        (WEATHER, [CALL]),
        *((text, [text]) for text in ('{"name": "Ann", "age": 3}', SCHEMA)),
    ):
        found = dialect.read(events("", list(text)), stream=stream, **more)
        assert found is not None
        assert plain(found) == expected(dialect, parts, "stop", stream=stream)


@dialects
def test_what_was_held_is_told_before_an_error(dialect: Dialect) -> None:
    """An engine that dies in the middle of a call leaves the text of it in the stream."""
    if dialect is DIALECTS["ollama"]:
        return
    failed = Failed(problem=EngineFailed("died").as_problem())
    found = dialect.read([*events("", list(HERMES[:30]))[:-1], failed], stream=True)
    assert found is not None
    assert (found.text, found.calls) == (HERMES[:30], [])
    assert found.finish in ("error", "failed")


def test_what_was_held_is_told_before_an_error_of_ollama() -> None:
    """Its last line has nothing else."""
    dialect = DIALECTS["ollama"]
    renderer = dialect.renderer(json.dumps(dialect.asking(stream=True)).encode())
    failed = Failed(problem=EngineFailed("died").as_problem())
    lines = b"".join(renderer.lines([event]) for event in [*events("", list(HERMES[:30]))[:-1], failed])
    *told, last = [json.loads(line) for line in lines.splitlines()]
    assert "".join(line["message"]["content"] for line in told) == HERMES[:30]
    assert last == {"error": "died"}


@pytest.mark.parametrize("name", ["chat", "ollama"])
@pytest.mark.parametrize("text", [HERMES, HERMES[:-20]])
def test_every_token_of_a_held_call_has_its_log_probability(name: str, text: str) -> None:
    """In order, in the stream as in the whole answer, whether it becomes a call or text."""
    dialect = DIALECTS[name]
    more = {"logprobs": True, "top_logprobs": 0} if name == "chat" else {"logprobs": True}
    deltas = [
        Delta(letter, (Logprobs(chosen=TokenLogprob(at, letter.encode(), -1.0)),))
        for at, letter in enumerate(text)
    ]
    first, last = events("", [])
    for stream in (True, False):
        renderer = dialect.renderer(json.dumps(dialect.asking(stream=stream, **more)).encode())
        given = [[(0, event)] if dialect.indexed else [event] for event in (first, *deltas, last)]
        told = map(renderer.lines if stream else renderer.take, given)
        data = b"".join(some or b"" for some in told)
        tokens: list[str] = []
        for line in data.removesuffix(b"data: [DONE]\n\n").splitlines():
            value = json.loads(line.removeprefix(b"data: ") or b"{}")
            value = value.get("choices", [value])[0]
            entries = value.get("logprobs") or []
            tokens += [
                entry["token"] for entry in (entries["content"] if isinstance(entries, dict) else entries)
            ]
        assert "".join(tokens) == text


def test_choices_are_read_apart() -> None:
    """Each has its own calls, thoughts and end; what one holds is told when the other fails."""
    dialect = DIALECTS["chat"]
    body = json.dumps(dialect.asking(stream=True, n=2)).encode()
    renderer = dialect.renderer(body)
    usage = Usage()
    end = Finished(reason=FinishReason.STOP, usage=usage, stats=Stats())
    both = [
        *((0, Started(usage)), (1, Started(usage, "<think>"))),
        *((index, Delta(letter)) for letter in HERMES for index in (0, 1)),
        *((0, end), (1, end)),
    ]
    data = b"".join(renderer.lines([event]) for event in both)
    chunks = [json.loads(line[6:]) for line in data.split(b"\n") if line.startswith(b"data: {")]
    finishes = {
        chunk["choices"][0]["index"]: reason
        for chunk in chunks
        if (reason := chunk["choices"][0]["finish_reason"])
    }
    assert finishes == {0: "tool_calls", 1: "stop"}
    renderer = dialect.renderer(body)
    failed = Failed(problem=EngineFailed("died").as_problem())
    data = b"".join(
        renderer.lines([event])
        for event in [(0, Started(usage)), (1, Started(usage)), (0, Delta("<tool_ca")), (1, failed)]
    )
    assert b'"content":"<tool_ca"' in data
