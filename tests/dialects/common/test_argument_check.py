# SPDX-License-Identifier: GPL-3.0-only
"""Whether arguments fit a schema, also where schema and arguments were made to take time."""

from __future__ import annotations

import json
import time
import urllib.request
from typing import Any

import pytest

from modeld.dialects.common import argument_check
from modeld.dialects.common.argument_check import ArgumentCheck
from modeld.domain.request import Tool

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def fits(schema: object, arguments: object) -> bool:
    return ArgumentCheck().fits(Tool(name="f", parameters=json.dumps(schema)), json.dumps(arguments))


def about(**properties: object) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


FITTING: list[tuple[object, object]] = [
    (CITY, {"city": "Rome"}),
    ({"$schema": "http://json-schema.org/draft-07/schema#", **CITY}, {"city": "Rome"}),
    ({}, {"anything": 1}),
    ({"type": "object"}, {"anything": 1}),
    ({**CITY, "additionalProperties": True}, {"city": "Rome", "more": 1}),
    ({**CITY, "additionalProperties": {"type": "integer"}}, {"city": "Rome", "more": 1}),
    (about(a={"anyOf": [{"type": "null"}, {"enum": ["x", "y"]}]}), {"a": "y"}),
    ({"$defs": {"c": {"enum": [1]}}, **about(a={"$ref": "#/$defs/c"})}, {"a": 1}),
    ({"definitions": {"a/b": {"const": 1}}, **about(a={"$ref": "#/definitions/a~1b"})}, {"a": 1}),
    (about(next={"$ref": "#"}, n={"type": "integer"}), {"next": {"next": {"n": 3}}}),
    (about(a={"type": "array", "items": {"type": "integer"}, "uniqueItems": True}), {"a": [1, 2, 3]}),
    (about(a={"type": "string", "pattern": "^(a+)+$"}), {"a": "what a pattern says is not looked at"}),
    ({"type": "object", "patternProperties": {"(": {}}, "additionalProperties": False}, {"x": 1}),
    (about(**{"$schema": {"type": "string"}}), {"$schema": "x"}),
    # as older drafts, OpenAPI and Go write schemas
    (about(a={"items": [{"type": "integer"}, {"type": "string"}]}), {"a": [1, "x", None]}),
    (about(a={"minimum": 0, "exclusiveMinimum": True}), {"a": 0.5}),
    (about(a={"maximum": 0, "exclusiveMaximum": False}), {"a": 0}),
    (about(a={"type": "string", "nullable": True}), {"a": None}),
    ({**about(a={}), "required": None}, {}),
]
UNFIT: list[tuple[object, object]] = [
    (CITY, {}),
    (CITY, {"city": 3}),
    (CITY, {"city": "Rome", "more": 1}),
    (CITY, CITY),
    ({"type": "object"}, {"type": "object"}),
    ({}, {}),
    ({"type": "object", "properties": {}}, {"type": "object", "properties": {}}),
    ({**CITY, "additionalProperties": {"type": "integer"}}, {"city": "Rome", "more": "x"}),
    (about(a={"anyOf": [{"type": "null"}, {"enum": ["x", "y"]}]}), {"a": "z"}),
    (about(next={"$ref": "#"}, n={"type": "integer"}), {"next": {"next": {"n": "3"}}}),
    (about(a={"uniqueItems": True}), {"a": [{"x": 1, "y": 2}, {"y": 2, "x": 1}]}),
    (about(a={"items": [{"type": "integer"}], "additionalItems": False}), {"a": [1, 2]}),
    (about(a={"minimum": 0, "exclusiveMinimum": True}), {"a": 0}),
    # schemas with which nothing can be told
    (about(a={"$ref": "#/$defs/none"}), {"a": 1}),
    (about(a={"$ref": "https://json-schema.org/draft/2020-12/schema"}), {"a": {}}),
    (about(a={"$ref": "#anchor", "$anchor": "anchor"}), {"a": 1}),
    (about(a={"$ref": 7}), {"a": 1}),
    ({"a" * 2000: {}, "$ref": "#/" + "a" * 2000}, {}),
    (about(a={"type": "colour"}), {"a": 1}),
    (about(a={"minimum": "x"}), {"a": 1}),
    (about(a={"required": "ab"}), {"a": {"a": 1, "b": 2}}),
    (about(a=3), {"a": 1}),
    ({"type": "object", "properties": 3}, {"a": 1}),
    (about(a={"$ref": "#/properties/a"}), {"a": 1}),
]


@pytest.mark.parametrize(("schema", "arguments"), FITTING)
def test_what_fits(schema: object, arguments: object) -> None:
    """As JSON Schema has it; patterns are not evaluated."""
    assert fits(schema, arguments)


@pytest.mark.parametrize(("schema", "arguments"), UNFIT)
def test_what_does_not_fit(schema: object, arguments: object) -> None:
    """Nor does a definition that is quoted, nor an argument that is not told of, nor what nobody can tell."""
    assert not fits(schema, arguments)


def test_a_schema_reaches_nothing_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """References to addresses are not followed, and another dialect does not bring its own rules."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a schema was fetched")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    assert not fits(about(a={"$ref": "http://127.0.0.1:1/schema.json"}), {"a": 1})
    assert not fits({"$id": "http://127.0.0.1:1/", **about(a={"$ref": "other.json"})}, {"a": 1})
    draft = "http://json-schema.org/draft-07/schema#"
    assert fits(about(a={"$schema": draft, "pattern": "^b$"}), {"a": "c"})


def nested(depth: int, key: str) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {key: value}
    return value


HOSTILE: dict[str, tuple[object, object]] = {
    "backtracking": (about(a={"pattern": "^(a+)+$"}, **{"b" * 99: {}}), {"a": "a" * 40 + "!"}),
    "backtracking in another dialect": (
        about(a={"$schema": "http://json-schema.org/draft-07/schema#", "pattern": "^(a+)+$"}),
        {"a": "a" * 40 + "!"},
    ),
    "backtracking names": (
        {"patternProperties": {"^(a+)+$": {}}, "additionalProperties": False, "unevaluatedProperties": False},
        {"a" * 40 + "!": 1},
    ),
    "references that double": (
        {
            "$defs": {
                f"d{at}": {"anyOf": [{"$ref": f"#/$defs/d{at + 1}"}] * 2, "not": {}} for at in range(40)
            },
            "$ref": "#/$defs/d0",
        },
        {"a": 1},
    ),
    "a reference to itself": ({"allOf": [{"$ref": "#"}, {"$ref": "#"}]}, {"a": 1}),
    "many ways for many items": (
        about(a={"items": {"anyOf": [{"type": "integer"}] * 1000}}),
        {"a": ["x"] * 1000},
    ),
    "many items of any kind": (about(a={"items": {}}), {"a": [[]] * 60_000}),
    "many equal items": (about(a={"uniqueItems": True}), {"a": [{"": at} for at in range(1000)]}),
    "many long items": (
        about(a={"items": {"uniqueItems": True}}),
        {"a": [[{"x": "y" * 1000}] * 60] * 60},
    ),
    "constants that are compared again and again": (
        {
            "$defs": {
                **{f"d{at}": {"anyOf": [{"$ref": f"#/$defs/d{at + 1}"}] * 2} for at in range(11)},
                "d11": {"enum": [[[{}] * 5000]]},
            },
            **about(a={"$ref": "#/$defs/d0"}),
        },
        {"a": [[*[{}] * 4999, {"x": 1}]]},
    ),
    "items again and again": (about(a={"allOf": [{"items": {}}] * 20}), {"a": [1] * 20_000}),
    "a very long text": (about(a={"items": {}}), {"a": [[]] * 500_000}),
    "long messages": (
        about(a={"anyOf": [{"type": "integer"}] * 4000}),
        {"a": ["x" * 1000] * 1000},
    ),
    "long schemas in messages": (
        about(a={"items": {"not": {"description": "x" * 100_000}}}),
        {"a": [1] * 1000},
    ),
    "many names": (
        about(a={"anyOf": [{"required": [f"n{at}" for at in range(3000)]}] * 30}),
        {"a": {}},
    ),
    "many names that depend": (
        about(a={"anyOf": [{"dependentRequired": {"x": [f"n{at}" for at in range(3000)]}}, False] * 30}),
        {"a": {"x": 1}},
    ),
    "deep arguments": (about(a={"$ref": "#/properties/a", "properties": {}}), nested(900, "a")),
    "deep schema": (nested(900, "not"), {"a": 1}),
    "a number of many digits": (about(a={"multipleOf": 1e-300}), {"a": 10**4000}),
    "a long pointer again and again": (
        {"A\u00e9" * 100: {"$ref": "#/" + "%41\u00e9" * 100}, "$ref": "#/" + "%41\u00e9" * 100},
        {},
    ),
    "a pointer without end": ({"A\u00e9" * 4000: {}, "$ref": "#/" + "%41\u00e9" * 4000}, {}),
    "numbers in messages": (about(a={"anyOf": [{"type": "string"}] * 30}), {"a": [1e-9] * 20_000}),
    "a long pointer": (about(a={"$ref": "#" + "/a" * 100_000}), {"a": 1}),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.slow
def test_nothing_takes_long(name: str) -> None:
    """Whatever the answer is: it comes within a fraction of a second of CPU, as streams wait for it."""
    schema, arguments = HOSTILE[name]
    tool = Tool(name="f", parameters=json.dumps(schema))
    text = json.dumps(arguments)
    ArgumentCheck().fits(Tool(name="warm"), "{}")
    began = time.process_time()
    ArgumentCheck().fits(tool, text)
    assert time.process_time() - began < 0.25


def test_the_calls_of_an_answer_share_their_steps() -> None:
    """So many calls take no longer than one; what a usual one needs is far below."""
    check = ArgumentCheck()
    tool = Tool(name="f", parameters=json.dumps(about(a={"items": {"type": "integer"}})))
    many, few = json.dumps({"a": list(range(600))}), json.dumps({"a": [1, 2]})
    assert all(ArgumentCheck().fits(tool, many) for _ in range(9))
    assert not all(check.fits(tool, many) for _ in range(9))
    assert not check.fits(tool, few)
    assert all(ArgumentCheck().fits(tool, few) for _ in range(200))


def test_what_calls_share_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The schema of a function once an answer, and a reference once a call, however often it is followed."""
    counts = {"loads": 0, "unquote": 0}

    def counted(name: str, function: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            counts[name] += 1
            return function(*given, **named)

        return call

    schema = {"$defs": {"d": {}}, "allOf": [{"$ref": "#/$defs/d"}] * 20}
    tool = Tool(name="f", parameters=json.dumps(schema))
    monkeypatch.setattr(argument_check.json, "loads", counted("loads", json.loads))
    monkeypatch.setattr(argument_check, "unquote", counted("unquote", argument_check.unquote))
    check = ArgumentCheck()
    assert all(check.fits(tool, "{}") for _ in range(5))
    assert counts == {"loads": 1, "unquote": 5}
