# SPDX-License-Identifier: GPL-3.0-only
"""Calls in texts: every format that templates teach, however it is split; and what only looks like one."""

from __future__ import annotations

import json
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.dialects.common.tool_calls import call_id, check_tools, chosen_tool, tool_of
from modeld.dialects.common.tool_reader import CallPiece, TextPiece, ToolReader
from modeld.domain.request import Tool
from modeld.domain.tool_calls import argument_schema, call_schema
from modeld.errors import InvalidRequest

WEATHER = Tool(
    name="weather",
    parameters='{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}',
)
TIME = Tool(name="time", parameters='{"type": "object", "properties": {"zone": {"type": "array"}}}')
ANY = Tool(name="any", parameters='{"type": "object"}')
ROME = '{"city": "Rome {\\"[}"}'
NOW = '{"zone": ["a", {"b": null}]}'
FORMATS = {
    "hermes": f'<tool_call>\n{{"name": "weather", "arguments": {ROME}}}\n</tool_call>',
    "hermes_twice": (
        f'I look.\n<tool_call>{{"name": "weather", "arguments": {ROME}}}</tool_call>\n'
        f'<tool_call>\n{{"arguments": {NOW}, "name": "time"}}\n</tool_call>'
    ),
    "hermes_without_end": f'<tool_call>{{"name": "weather", "arguments": {ROME}}}',
    "hermes_nested": (
        f'<tool_call>{{"type":"function","function":{{"name":"weather","arguments":{ROME}}}}}</tool_call>'
    ),
    "mistral_list": (
        f'[TOOL_CALLS] [{{"name": "weather", "arguments": {ROME}}}, {{"name": "time", "arguments": {NOW}}}]'
    ),
    "mistral_names": f"[TOOL_CALLS]weather[ARGS]{ROME}[TOOL_CALLS]time[CALL_ID]abc[ARGS]{NOW}",
    "mistral_bare_name": f"[TOOL_CALLS]weather{ROME}",
    "llama": f'{{"name": "weather", "parameters": {ROME}}}',
    "llama_tag": f'<|python_tag|>{{"type": "function", "name": "weather", "parameters": {ROME}}}',
    "llama_many": f'{{"name": "weather", "parameters": {ROME}}}; {{"name": "time", "parameters": {NOW}}}',
    "generic_list": f' [\n{{"name": "weather", "arguments": {ROME}}}]',
    "arguments_in_a_string": f'{{"name": "weather", "arguments": {json.dumps(ROME)}}}',
    "text_after": f'<tool_call>{{"name": "weather", "arguments": {ROME}}}</tool_call>\n\nDone.',
}
TWO = {"hermes_twice", "mistral_list", "mistral_names", "llama_many"}
TEXTS = {"hermes_twice": "I look.\n", "text_after": "Done."}

NO_CALLS = [
    "Hello [1] <b> {x}",
    '{"name": "Ann", "age": 3}',
    '{"colour": "red"}',
    '[{"a": 1}]',
    "[1, 2]",
    "[TOOL_CALLS] none",
    "[TOOL_CALLS]weather for Rome",
    "[TOOL_CALLS]weather[ARGS] {no}",
    "<tool_call>oops</tool_call>",
    "<tool_call></tool_call>",
    "<tool_call>{1}",
    '{"name": ',
    "<tool_ca",
    "[TOOL",
    "  ",
    "[",
    "{",
    "a <tool_call>{} b",
    "Write <tool_call>{...}</tool_call>, or [TOOL_CALLS]name{...}.",
    # without a marker: no arguments, other keys, another function, what does not fit, more than a call
    '{"name": "time"}',
    '{"name": "weather", "description": "Tells the weather of a city"}',
    f'{{"name": "weather", "description": "", "parameters": {ROME}}}',
    f'{{"name": "weather", "parameters": {WEATHER.parameters}}}',
    f'{{"name": "time", "parameters": {TIME.parameters}}}',
    f'{{"name": "any", "parameters": {ANY.parameters}}}',
    f'{{"name": "delete", "arguments": {ROME}}}',
    '{"name": "weather", "arguments": {"city": 3}}',
    '{"name": "weather", "arguments": {}}',
    '{"name": "weather", "arguments": {"city": "Rome", "days": 3}}',
    f'I call {{"name": "weather", "arguments": {ROME}}}',
    f'{{"name": "weather", "arguments": {ROME}}} is how to call it.',
    f'{{"name": "weather", "arguments": {ROME}}};',
    f'{{"name": "weather", "arguments": {ROME}}}, {{"name": "weather", "arguments": {ROME}}}',
    f'{{"name": "weather", "arguments": {ROME}}}; {{"name": "weather", "arguments": {{"city": 3}}}}',
    f'[{{"name": "weather", "arguments": {ROME}}}, {{"name": "delete", "arguments": {{}}}}]',
    f'[{{"name": "weather", "arguments": {ROME}}}]; {{"name": "weather", "arguments": {ROME}}}',
    # behind a marker
    '<tool_call>{"name": "weather", "description": "d"}</tool_call>',
    f'<tool_call>{{"name": "weather", "arguments": {ROME}, "parameters": {ROME}}}</tool_call>',
    f'<tool_call>{{"name": "weather", "name": "time", "arguments": {ROME}}}</tool_call>',
    f'<tool_call>{{"name": "weather", "arguments": {{}}, "arguments": {ROME}}}</tool_call>',
    f'<tool_call>{{"function": {{"name": "weather", "arguments": {ROME}}}, "name": "time"}}</tool_call>',
    f'<tool_call>{{"function": "weather", "arguments": {ROME}}}</tool_call>',
    '<tool_call>{"name": ["weather"], "arguments": {}}</tool_call>',
    '<tool_call>{"name": "", "arguments": {}}</tool_call>',
    '<tool_call>{"name": "delete", "arguments": {}}</tool_call>',
    *(
        f'<tool_call>{{"name": "weather", "arguments": {arguments}}}</tool_call>'
        for arguments in (
            *("null", "[]", "3", '{"city": 1,}', '{"city": "a\nb"}', "{'city': 1}", '"Rome"', '""', '"[]"'),
            *('{"city": NaN}', '{"city": 1e999}', '{"city": "\\x"}', '{"city" 1}', '{"a": 1]', "{" * 3000),
            '{"a":' * 3000 + "1" + "}" * 3000,
        )
    ),
    f"[TOOL_CALLS]delete[ARGS]{ROME}",
    '[TOOL_CALLS]weather[ARGS]{"city": 1,}',
    # thoughts
    f"<think>I could {FORMATS['hermes']}</think>",
    f"<think>I could {FORMATS['hermes']}</think>No.",
    f"<think>{FORMATS['llama']}",
    f"[THINK]{FORMATS['mistral_list']}[/THINK]",
    f"Hm. <think>{FORMATS['hermes']}</think> No. <think>{FORMATS['hermes']}",
]
THOUGHTS = {
    "<think>": f"<think>\nI could {FORMATS['hermes']} or {FORMATS['mistral_names']}\n</think>",
    "[THINK]": f"[THINK]{FORMATS['hermes']}[/THINK]",
}


def read(parts: list[str], **options) -> tuple[str, list[tuple[str, str]]]:
    """Read an answer in these parts: its text, and the calls with their arguments."""
    thought = options.pop("thought", "")
    reader = ToolReader((WEATHER, TIME, ANY), lambda number: f"id{number}", **options)
    reader.begin_in(thought)
    text, calls = "", []
    for piece in [*(piece for part in parts for piece in reader.feed(part)), *reader.end()]:
        match piece:
            case TextPiece(text=said):
                assert said
                text += said
            case CallPiece(number=number, id=identity, name=name, arguments=arguments):
                assert (number, identity) == (len(calls), f"id{number}")
                calls.append((name, arguments))
    assert reader.calls == len(calls)
    return text, calls


def split(text: str, cuts: list[int]) -> list[str]:
    places = sorted({min(cut, len(text)) for cut in cuts})
    return [text[begin:end] for begin, end in zip([0, *places], [*places, len(text)], strict=True)]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_calls_are_found_in_every_format(name: str, step: int) -> None:
    """Names and arguments come out as they were written, and of the text only what is none of that."""
    text = FORMATS[name]
    parts = [text[at : at + step] for at in range(0, len(text), step)]
    calls = [("weather", ROME), ("time", NOW)] if name in TWO else [("weather", ROME)]
    assert read(parts) == (TEXTS.get(name, ""), calls)


@pytest.mark.parametrize("text", NO_CALLS)
def test_what_is_no_call_is_text(text: str) -> None:
    """Nothing that only looks like a call is lost, whether it comes whole or letter by letter."""
    assert read([text]) == (text, [])
    assert read(list(text)) == (text, [])


@given(
    st.lists(
        st.sampled_from(
            [
                *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "{", "}", '"', "[", "]"),
                *("<think>", "</think>", "[THINK]", '{"name":"weather","arguments":{"city":"x"}}', "\n"),
            ]
        )
        | st.sampled_from(
            ['"name"', ":", '"weather"', '"arguments"', ",", "\\", " ", "x", "<", "[ARGS]", ";"]
        ),
        max_size=25,
    ).map("".join),
    st.lists(st.integers(0, 80), max_size=6),
)
def test_splitting_changes_nothing(text: str, cuts: list[int]) -> None:
    """The same text gives the same calls and the same words in whatever parts it comes."""
    assert read(split(text, cuts)) == read([text])


@pytest.mark.parametrize("name", FORMATS)
def test_a_call_that_was_cut_off_is_text(name: str) -> None:
    """Wherever that was: whole calls before it are told, and the rest is what the model wrote."""
    text = FORMATS[name]
    whole = read([text])
    for cut in range(len(text)):
        said, calls = read(list(text[:cut]))
        assert calls == whole[1][: len(calls)], "only calls that are complete"
        if not calls:
            assert said == text[:cut]
        before = TEXTS.get(name, "") if name == "hermes_twice" else ""
        assert said.startswith(before[:cut])
        assert said.removeprefix(before).strip() in text[:cut]
        assert sum(text[:cut].count(f'"{place}') for place in ("city", "zone")) == (
            said.count('"city') + said.count('"zone') + len(calls)
        ), "nothing is lost"


def test_a_call_is_told_once_it_is_complete() -> None:
    """With its last letter, not before, and not when its closing marker has come."""
    reader = ToolReader((WEATHER,), str)
    assert reader.feed('Hm. <tool_call>{"name": "weather"') == [TextPiece("Hm. ")]
    assert reader.feed(', "arguments": {"city": "Rome"}') == []
    assert reader.feed("}\n</tool") == [CallPiece(0, "0", "weather", '{"city": "Rome"}')]
    assert reader.end() == []


def test_json_that_is_no_call_is_not_held_back() -> None:
    """Its first key tells."""
    reader = ToolReader((WEATHER,), str)
    assert reader.feed('{"col') == []
    assert reader.feed('our"') == [TextPiece('{"colour"')]
    assert reader.feed(": 1}") == [TextPiece(": 1}")]
    for text in ("[1, ", "{1", '{"a b', "{" + " " * 80):
        assert ToolReader((WEATHER,), str).feed(text) == ([] if text == '{"a b' else [TextPiece(text)])


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("marker", THOUGHTS)
def test_calls_count_outside_of_thoughts(marker: str, name: str, step: int) -> None:
    """What is drafted in there is text; behind it every form of a call is one, as at the beginning."""
    thought = THOUGHTS[marker]
    calls = [("weather", ROME), ("time", NOW)] if name in TWO else [("weather", ROME)]
    for begun, written in (("", thought), (marker, thought.removeprefix(marker))):
        text = written + FORMATS[name]
        parts = [text[at : at + step] for at in range(0, len(text), step)]
        assert read(parts, thought=begun) == (written + TEXTS.get(name, ""), calls)


def test_a_prompt_that_opened_a_thought_is_known() -> None:
    """The answer begins in there: without an end there is no call, and a marker of another kind is no end."""
    text = f"Maybe {FORMATS['hermes']} [/THINK]"
    assert read([text], thought="<think>") == (text, [])
    assert read([f"{text}</think>{FORMATS['hermes']}"], thought="<think>")[1] == [("weather", ROME)]


def test_blanks_between_calls_belong_to_them() -> None:
    """As do the brackets and closing markers behind them; everything else is said."""
    call = FORMATS["hermes"]
    assert read([f"{call}\n\n{call} \n"]) == ("", [("weather", ROME)] * 2)
    assert read([f"{FORMATS['mistral_list']} [1] is my source"])[0] == "[1] is my source"
    assert read([f"{call}, and then?"])[0] == ", and then?"
    assert read([f"[TOOL_CALLS]weather{ROME}, so"])[0] == ", so"


def test_one_call_may_be_wanted() -> None:
    """Then others are left out, and text stays."""
    text = f"A {FORMATS['hermes']} B {FORMATS['hermes']} C"
    assert read(list(text), one_call=True) == ("A B C", [("weather", ROME)])


def test_a_forced_call_need_not_fit() -> None:
    """The grammar made it, which knows less of schemas; its function must be one of those offered."""
    wrong = '{"name": "weather", "arguments": {"city": 3}}'
    assert read([wrong], forced=True) == ("", [("weather", '{"city": 3}')])
    other = wrong.replace("weather", "delete")
    assert read([other], forced=True) == (other, [])


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>{" + '"' + "a" * 400_000,
        "<tool_call>" + '{"name": "weather", "arguments": {"city": "' + "b\\n" * 200_000 + '"}}',
        '{"name": "weather", "arguments": {"city": "' + "b " * 200_000,
        "<tool_call>" * 40_000,
        "<tool_call>{" * 30_000,
        "[TOOL_CALLS]a" * 30_000,
        " " * 400_000,
        "<tool_call>" + " " * 400_000,
        "[TOOL_CALLS]" + "a" * 400_000,
        "[TOOL_CALLS]a" + " " * 400_000,
        '{"name": "time", "arguments": {}};' * 12_000,
        "<think></think>" * 30_000,
    ],
    ids=lambda text: text[:24].strip() or "blanks",
)
@pytest.mark.parametrize("step", [4, 1_000_000])
@pytest.mark.slow
def test_time_grows_with_the_length_of_the_text_alone(text: str, step: int) -> None:
    """Also of a long call, and of what never becomes one, in small parts and as a whole."""
    began = time.process_time()
    read([text[at : at + step] for at in range(0, len(text), step)])
    assert time.process_time() - began < 3.0


def test_plain_text_is_not_held_back() -> None:
    """Only what may become a marker waits for what follows."""
    reader = ToolReader((WEATHER,), str)
    assert reader.feed("Hello") == [TextPiece("Hello")]
    assert reader.feed(" a <") == [TextPiece(" a ")]
    assert reader.feed("b") == [TextPiece("<b")]
    assert reader.end() == []


def test_a_call_without_arguments_has_none() -> None:
    """Behind a marker an object without arguments stands for a call with an empty object."""
    assert read(['<tool_call>{"name": "time"}</tool_call>']) == ("", [("time", "{}")])


def test_the_schema_of_a_call_keeps_the_references_of_its_arguments() -> None:
    """References within a schema lead to where it was put; one that says nothing takes any object."""
    looped = json.dumps(
        {
            "properties": {"next": {"$ref": "#"}, "it": {"$ref": "#/$defs/it"}},
            "$defs": {"it": {"enum": [1]}},
        }
    )
    schema = call_schema(Tool(name="a", parameters=looped))
    assert schema["properties"] == {"name": {"const": "a"}, "arguments": {"$ref": "#/$defs/arguments"}}
    moved = schema["$defs"]["arguments"]
    assert moved["properties"] == {
        "next": {"$ref": "#/$defs/arguments"},
        "it": {"$ref": "#/$defs/arguments/$defs/it"},
    }
    assert argument_schema(Tool(name="b", parameters="{}")) == {"type": "object"}


@pytest.mark.parametrize(
    ("name", "parameters", "says"),
    [
        ("a b", None, "letters"),
        ("", None, "letters"),
        ("f", b"[]", "must be an object"),
        ("f", b"3", "object"),
    ],
)
def test_tools_that_cannot_be_are_refused(name: str, parameters: bytes | None, says: str) -> None:
    """Names that no grammar could write, and schemas that are no objects."""
    with pytest.raises(InvalidRequest, match=says):
        tool_of(name, None, None if parameters is None else msgspec.Raw(parameters), "tools[0]")


def test_sets_of_tools_are_bounded_and_unique() -> None:
    """Two of one name, more than 4,096, and a choice that is not there."""
    with pytest.raises(InvalidRequest, match="two functions"):
        check_tools([Tool(name="a"), Tool(name="a")])
    with pytest.raises(InvalidRequest, match="4096 at most"):
        check_tools([Tool(name=f"t{number}") for number in range(4097)])
    with pytest.raises(InvalidRequest, match="not among"):
        chosen_tool([Tool(name="a")], "b")


def test_ids_are_stable_and_differ() -> None:
    """Nine letters and digits, the same for the same place."""
    assert call_id("r", 0, 1) == call_id("r", 0, 1)
    assert len({call_id("r", choice, number) for choice in range(9) for number in range(9)}) == 81
    assert call_id("r", 0, 0).isalnum()
    assert len(call_id("r", 0, 0)) == 9


@pytest.mark.parametrize("depth", [198, 300, 2000])
def test_calls_have_a_fixed_depth(depth: int) -> None:
    """Whatever reads them, and from wherever it was called."""
    arguments = '{"a":' * depth + "1" + "}" * depth
    reader = ToolReader([ANY], str)
    text = f'<tool_call>{{"name": "any", "arguments": {arguments}}}</tool_call>'
    found = [*reader.feed(text), *reader.end()]
    assert found == ([CallPiece(0, "0", "any", arguments)] if depth < 200 else [TextPiece(text)])


def test_thoughts_are_passed_on_as_they_come() -> None:
    """A part without the beginning of their end waits for nothing."""
    reader = ToolReader([ANY], str)
    reader.begin_in("<think>")
    assert reader.feed("I think [1]") == [TextPiece("I think [1]")]
    assert reader.feed("a <") == [TextPiece("a ")]
    assert reader.feed("/think>") == [TextPiece("</think>")]
