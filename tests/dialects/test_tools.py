# SPDX-License-Identifier: GPL-3.0-only
"""Calls in texts: every format that templates teach, however it is split; and what only looks like one."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.core.request import Tool
from modeld.dialects.tool_reader import Arguments, Called, Said, ToolReader
from modeld.dialects.tools import call_id, check_tools, named, one_call_of, tool_of
from modeld.errors import InvalidRequest

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
]


def read(parts: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """Read an answer in these parts: its text, and the calls with their arguments."""
    reader = ToolReader({"weather", "time"}, lambda number: f"id{number}")
    text, calls = "", []
    for piece in [*(piece for part in parts for piece in reader.feed(part)), *reader.end()]:
        match piece:
            case Said(text=said):
                text += said
            case Called(number=number, id=identity, name=name):
                assert (number, identity) == (len(calls), f"id{number}")
                calls.append((name, ""))
            case Arguments(number=number, text=more):
                assert number == len(calls) - 1
                calls[-1] = (calls[-1][0], calls[-1][1] + more)
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
            ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "{", "}", '"', "[", "]"]
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


def test_arguments_are_passed_on_before_they_are_complete() -> None:
    """The name comes with its last letter, and then each part of the arguments at once."""
    reader = ToolReader({"weather"}, str)
    assert reader.feed('<tool_call>{"name": "weather"') == [Called(0, "0", "weather")]
    assert reader.feed(', "arguments": {"ci') == [Arguments(0, '{"ci')]
    assert reader.feed('ty": 1') == [Arguments(0, 'ty": 1')]
    assert reader.end() == []


def test_plain_text_is_not_held_back() -> None:
    """Only what may become a marker waits for what follows."""
    reader = ToolReader({"weather"}, str)
    assert reader.feed("Hello") == [Said("Hello")]
    assert reader.feed(" a <") == [Said(" a ")]
    assert reader.feed("b") == [Said("<b")]
    assert reader.end() == []


def test_a_call_without_arguments_has_none() -> None:
    """An object without arguments stands for a call with an empty object."""
    assert read(['<tool_call>{"name": "time"}</tool_call>']) == ("", [("time", "{}")])


def test_a_forced_call_keeps_references_of_each_schema() -> None:
    """References within a schema lead to where it was put; one that says nothing takes any object."""
    looped = json.dumps(
        {
            "properties": {"next": {"$ref": "#"}, "it": {"$ref": "#/$defs/it"}},
            "$defs": {"it": {"enum": [1]}},
        }
    )
    schema = json.loads(
        one_call_of([Tool(name="a", parameters=looped), Tool(name="b", parameters="{}")]).text
    )
    first, second = schema["$defs"]["call0"], schema["$defs"]["call1"]
    assert first["properties"] == {
        "next": {"$ref": "#/$defs/call0"},
        "it": {"$ref": "#/$defs/call0/$defs/it"},
    }
    assert second == {"type": "object"}
    assert [way["properties"]["name"]["const"] for way in schema["anyOf"]] == ["a", "b"]
    both = json.loads(one_call_of([Tool(name="a")], or_else='{"type": "string"}').text)
    assert both["anyOf"][1] == {"$ref": "#/$defs/answer"}


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
    """Two of one name, more than 128, and a choice that is not there."""
    with pytest.raises(InvalidRequest, match="two functions"):
        check_tools([Tool(name="a"), Tool(name="a")])
    with pytest.raises(InvalidRequest, match="128 at most"):
        check_tools([Tool(name=f"t{number}") for number in range(129)])
    with pytest.raises(InvalidRequest, match="not among"):
        named([Tool(name="a")], "b")


def test_ids_are_stable_and_differ() -> None:
    """Nine letters and digits, the same for the same place."""
    assert call_id("r", 0, 1) == call_id("r", 0, 1)
    assert len({call_id("r", choice, number) for choice in range(9) for number in range(9)}) == 81
    assert call_id("r", 0, 0).isalnum()
    assert len(call_id("r", 0, 0)) == 9
