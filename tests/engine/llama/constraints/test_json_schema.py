# SPDX-License-Identifier: GPL-3.0-only
"""JSON schemas: what is accepted is kept, what cannot be kept is told, and nothing hangs."""

from __future__ import annotations

import contextlib
import json
import time

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from modeld.engine.llama.constraints.grammar import notices_of
from modeld.engine.llama.constraints.guidance import HEAD, compile_grammar, try_grammars
from modeld.engine.llama.constraints.json_schema import MAX_SCHEMA_DEPTH, Leniency, json_rule, parse_schema
from modeld.errors import InvalidGrammar

BYTES = LLTokenizer("byte")


def grammars(schema, ways=tuple(Leniency)):
    parsed = parse_schema(schema if isinstance(schema, str) else json.dumps(schema))
    return [f"{HEAD}start: {json_rule(parsed, way)}\n" for way in ways]


def compiled(schema, way=Leniency.NONE):
    return compile_grammar(BYTES, grammars(schema, (way,))[0])


def allows(matcher, text):
    """Whether a matcher allows a text, and that it ends there."""
    matcher.reset()
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


def texts_of(matcher, seed, most=400):
    """Yield texts that a matcher generates by chance; those that did not end in `most` bytes are left out."""
    chance = np.random.default_rng(seed)
    mask = allocate_token_bitmask(1, BYTES.vocab_size)
    for _ in range(12):
        matcher.reset()
        text = bytearray()
        while len(text) < most and not (matcher.is_accepting() and chance.random() < 0.5):
            fill_next_token_bitmask(matcher, mask)
            assert not matcher.is_error(), matcher.get_error()
            (allowed,) = np.nonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")[:256])
            if not len(allowed):
                break
            # Signs that end something are taken more often, so that texts come to an end.
            ends = [byte for byte in allowed if byte in b'"}]']
            byte = int(chance.choice(ends if ends and chance.random() < 0.4 else allowed))
            assert matcher.consume_token(byte)
            text.append(byte)
        if matcher.is_accepting():
            yield text.decode(errors="replace")


NULLABLE = {
    "type": "object",
    "properties": {
        "o": {"type": ["object", "null"], "properties": {"n": {"type": "integer"}}, "required": ["n"]},
        "a": {"type": ["array", "null"], "items": {"type": "integer"}, "minItems": 2, "maxItems": 3},
        "s": {"type": ["string", "null"], "pattern": "^[ab]{2}$"},
    },
    "required": ["o", "a", "s"],
}
COLOUR = {"$defs": {"colour": {"enum": ["red", "green"]}}}
KEPT = {
    "a nullable enum": ({"type": ["string", "null"], "enum": ["a", None]}, ['"a"', "null"], ['"b"']),
    "nullable objects, arrays and patterns": (
        NULLABLE,
        ['{"o":{"n":1},"a":[1,2],"s":"ab"}', '{"o":null,"a":null,"s":null}'],
        ['{"o":{},"a":null,"s":null}', '{"o":null,"a":[1],"s":null}', '{"o":null,"a":null,"s":"abc"}'],
    ),
    "bounds of integers": ({"type": "integer", "minimum": 1, "maximum": 5}, ["1", "5"], ["0", "6", "2427"]),
    "allOf with one reference": (
        {"allOf": [{"$ref": "#/$defs/colour"}], **COLOUR},
        ['"red"'],
        ["{}", '"blue"'],
    ),
    "allOf alongside properties": (
        {
            "properties": {"a": {"type": "integer"}},
            "required": ["a"],
            "allOf": [{"properties": {"b": {"type": "integer"}}, "required": ["b"]}],
        },
        ['{"a":1,"b":2}'],
        ['{"a":1}', '{"a":"x","b":2}'],
    ),
    "anyOf of required": (
        {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
        },
        ['{"a":1}', '{"b":2}'],
        ["{}"],
    ),
    "minItems without items": ({"type": "array", "minItems": 2, "maxItems": 3}, ['[1,"x"]'], ["[1]"]),
    "anything": ({}, ["1", '"x"', "[]", "null"], ["x"]),
    "any properties": (
        {"type": "object", "additionalProperties": True},
        ['{"a":1}', "{}", '{"b":{"c":[]}}'],
        ["1"],
    ),
    "additionalProperties alone": ({"additionalProperties": True}, ["1", "{}"], ["x"]),
    "a pattern with classes": ({"type": "string", "pattern": r"^\d{2}-\w(?:x|y)$"}, ['"12-ax"'], ['"1-ax"']),
    "a pattern without anchors": ({"type": "string", "pattern": "[0-9]"}, ['"a1b"', '"1"'], ['"ab"']),
    "a long string": ({"type": "string", "maxLength": 2000}, [f'"{"x" * 2000}"'], [f'"{"x" * 2001}"']),
    "a property with only a description": (
        {"type": "object", "properties": {"a": {"description": "Anything"}}},
        ['{"a":[1]}', '{"a":null}', "{}"],
        ['{"b":1}'],
    ),
    "a property that must not be there": (
        {"type": "object", "properties": {"a": {"not": {}}, "b": {"type": "integer"}}},
        ['{"b":1}', "{}"],
        ['{"a":1}'],
    ),
    "a reference to all of it": (
        {"type": "object", "properties": {"next": {"$ref": "#"}}},
        ['{"next":{"next":{}}}'],
        ['{"next":1}'],
    ),
    "a reference into a list": (
        {"type": "array", "prefixItems": [{"type": "integer"}, {"$ref": "#/prefixItems/0"}], "minItems": 2},
        ["[1,2]"],
        ['[1,"x"]'],
    ),
    "a reference with escapes": (
        {"$defs": {"a/b c": {"type": "integer"}}, "$ref": "#/$defs/a~1b%20c"},
        ["1"],
        ['"x"'],
    ),
    "required that is null, as Go writes it": (
        {"type": "object", "properties": {"a": {"type": "integer"}}, "required": None},
        ["{}", '{"a":1}'],
        ['{"a":"x"}'],
    ),
    "a property called $ref": (
        {"type": "object", "properties": {"$ref": {"type": "string"}}, "required": ["$ref"]},
        ['{"$ref":"x"}'],
        ['{"$ref":1}'],
    ),
    "keywords in a default": (
        {"type": "object", "default": {"$ref": "http://elsewhere", "type": 7}},
        ["{}"],
        ["1"],
    ),
    "200 properties": (
        {"type": "object", "properties": {f"p{n}": {"type": "integer"} for n in range(200)}},
        ['{"p0":1,"p199":2}'],
        ['{"p0":"x"}'],
    ),
    "an enum of 2,500 words": (
        {"enum": [f"word number {n}" for n in range(2500)]},
        ['"word number 0"', '"word number 2499"'],
        ['"word number 2500"'],
    ),
    "words that are not ASCII": (
        {"type": "object", "properties": {"größe": {"enum": ["日本", "é"]}}, "required": ["größe"]},
        ['{"größe":"日本"}', '{"größe":"é"}'],
        ['{"gr\\u00f6\\u00dfe":"\\u00e9"}'],
    ),
    "counts written as 2.0": ({"type": "string", "minLength": 2.0, "maxLength": 3.0}, ['"ab"'], ['"a"']),
    "any type": ({"type": "any"}, ["1", '"x"'], ["x"]),
    "bounds of draft 4": (
        {"type": "integer", "minimum": 1, "exclusiveMinimum": True, "maximum": 3, "exclusiveMaximum": False},
        ["2", "3"],
        ["1", "4"],
    ),
    "oneOf alongside properties": (
        {
            "type": "object",
            "properties": {"kind": {"enum": ["p", "q"]}},
            "required": ["kind"],
            "oneOf": [
                {"properties": {"kind": {"const": "p"}, "x": {"type": "integer"}}, "required": ["x"]},
                {"properties": {"kind": {"const": "q"}, "y": {"type": "integer"}}, "required": ["y"]},
            ],
        },
        ['{"kind":"p","x":1}', '{"kind":"q","y":1}'],
        ['{"kind":"p","y":1}', '{"kind":"q"}', '{"kind":"r","x":1}'],
    ),
    "anyOf of properties alongside properties": (
        {
            "type": "object",
            "properties": {"a": {"type": "integer"}},
            "required": ["a"],
            "anyOf": [{"properties": {"b": {"type": "integer"}}, "required": ["b"]}, {"required": ["c"]}],
        },
        ['{"a":1,"b":2}', '{"a":1,"c":"x"}'],
        ['{"a":1}', '{"a":1,"b":"x"}', '{"b":1}'],
    ),
    "a reference alongside properties": (
        {
            "$ref": "#/$defs/b",
            "properties": {"a": {"type": "integer"}},
            "$defs": {"b": {"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["b"]}},
        },
        ['{"b":2,"a":1}'],
        ['{"a":1}', '{"b":2,"a":"x"}'],
    ),
    "an item that must not be there": ({"type": "array", "items": {"not": {}}}, ["[]"], ["[1]"]),
    "keywords that say nothing": (
        {"type": "array", "uniqueItems": False, "then": False, "unevaluatedItems": True, "not": False},
        ["[1,1]"],
        ["1"],
    ),
    "no other properties, by another name": (
        {"type": "object", "properties": {"a": {"type": "integer"}}, "unevaluatedProperties": False},
        ['{"a":1}'],
        ['{"b":1}'],
    ),
    "as many properties as must be there": (
        {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["a"], "minProperties": 1},
        ['{"a":1}'],
        ["{}"],
    ),
    "a draft that nobody knows": (
        {"$schema": "https://example.com/draft", "type": "integer"},
        ["1"],
        ['"x"'],
    ),
    "const alongside type": ({"type": "integer", "const": 7}, ["7"], ["8"]),
    "no properties": ({"type": "object", "properties": {}}, ["{}"], ['{"a":1}']),
    "no more properties than are listed": (
        {"type": "object", "properties": {"a": {"type": "integer"}}},
        ['{"a":1}'],
        ['{"a":1,"b":2}'],
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_is_accepted_is_kept(name) -> None:
    """Each keyword counts, alongside others too; what is generated by chance satisfies the schema."""
    schema, good, bad = KEPT[name]
    matcher = compiled(schema)
    assert [text for text in good if not allows(matcher, text)] == []
    assert [text for text in bad if allows(matcher, text)] == []
    judge = json.loads(json.dumps(schema))
    if name in {"required that is null, as Go writes it", "any type", "bounds of draft 4"}:
        judge = parse_schema(json.dumps(schema))  # These are no schemas of the standard.
    found = list(texts_of(matcher, seed=len(name)))
    assert found or name in {"a long string", "anything", "any properties"}
    for text in found:
        jsonschema.validate(json.loads(text), judge, jsonschema.Draft202012Validator)


A = {"type": "integer"}
OBJECT = {"type": "object"}
LEFT_OUT = {
    "not": ({"type": "string", "not": {"const": "x"}}, Leniency.KEYWORDS, "not", '"y"', "1"),
    "oneOf": (
        {"oneOf": [{"type": "integer"}, {"type": "number", "maximum": 9}]},
        Leniency.ONE_OF,
        "oneOf",
        "3",
        '"x"',
    ),
    "an unknown format": ({"type": "string", "format": "phone"}, Leniency.KEYWORDS, "phone", '"x"', "1"),
    "lookahead": (
        {**OBJECT, "properties": {"a": {"type": "string", "pattern": "^(?=a)b", "maxLength": 3}}},
        Leniency.KEYWORDS,
        'pattern "^(?=a)b" at /properties/a',
        '{"a":"xyz"}',
        '{"a":"wxyz"}',
    ),
    "unique items": ({"type": "array", "uniqueItems": True}, Leniency.KEYWORDS, "uniqueItems", "[1,1]", "1"),
    "another document": (
        {"type": "array", "items": {"$ref": "https://example.com/x"}},
        Leniency.KEYWORDS,
        '$ref "https://example.com/x" at /items',
        "[1]",
        "1",
    ),
    "a count of optional properties": (
        {**OBJECT, "properties": {"a": A}, "minProperties": 1, "additionalProperties": True},
        Leniency.KEYWORDS,
        "minProperties 1 at /",
        '{"a":1}',
        "1",
    ),
    "patterns of keys that overlap": (
        {**OBJECT, "patternProperties": {"^a": A, "a$": {"type": "string"}}},
        Leniency.PATTERNS,
        "patternProperties",
        '{"a":1}',
        "1",
    ),
    "a reference to itself with more alongside": (
        {**OBJECT, "properties": {"a": {"$ref": "#", "maxProperties": 3}}},
        Leniency.PATTERNS,
        "maxProperties 3 at /properties/a",
        '{"a":{}}',
        '{"a":1}',
    ),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_cannot_be_kept_is_refused_if_strict_and_else_told(name) -> None:
    """The rest of the schema is kept."""
    schema, way, word, good, bad = LEFT_OUT[name]
    with pytest.raises(InvalidGrammar):
        compiled(schema)
    trial = try_grammars(grammars(schema))
    assert trial.chosen == way
    (notice,) = notices_of(trial, parse_schema(json.dumps(schema)), "the JSON schema")
    assert word in notice
    matcher = compiled(schema, way)
    assert allows(matcher, good)
    assert not allows(matcher, bad)


CLOSED = {
    "an object that lists its own": ({**OBJECT, "properties": {"a": A}}, False),
    "one without any": ({**OBJECT, "properties": {}}, False),
    "one that does not say what it is": ({"properties": {"a": A}}, False),
    "one that says that there may be more": (
        {**OBJECT, "properties": {}, "additionalProperties": True},
        True,
    ),
    "one that lists nothing": (OBJECT, True),
    "where another is required": ({**OBJECT, "properties": {"a": A, "y": {}}, "required": ["x"]}, True),
    "by a reference": ({"$ref": "#/$defs/o", "$defs": {"o": {**OBJECT, "properties": {"a": A}}}}, False),
    "in anyOf": ({"anyOf": [{**OBJECT, "properties": {"a": A}}, A]}, False),
    "in anyOf alongside others": ({"anyOf": [{"properties": {"a": A}}], "properties": {"x": {}}}, True),
    "alone in oneOf": ({"oneOf": [{**OBJECT, "properties": {"a": A}}, {"type": "null"}]}, False),
    "one of two in oneOf": (
        {
            "oneOf": [
                {**OBJECT, "properties": {"a": {"enum": [1, 2], "type": "integer"}}, "required": ["a"]},
                {**OBJECT, "properties": {"a": {"type": "string"}}, "required": ["a"]},
            ]
        },
        True,
    ),
    "in allOf": ({"allOf": [{**OBJECT, "properties": {"a": A}}, {**OBJECT, "properties": {"x": {}}}]}, True),
    "with more by a reference": ({"properties": {"a": A}, "$ref": "#/$defs/o", "$defs": {"o": OBJECT}}, True),
}


@pytest.mark.parametrize("name", CLOSED)
def test_an_object_is_closed_only_where_that_narrows_the_schema(name) -> None:
    """Not where another schema binds the same value: that one may bring properties, or rule this one out."""
    schema, open_ = CLOSED[name]
    assert any(allows(compiled(schema), text) for text in ('{"a":1,"x":2}', '{"x":2,"a":1}')) is open_


def test_closing_never_lets_a_text_satisfy_two_of_one_of() -> None:
    """An open object takes what another of them has: closed, both would seem to exclude each other."""
    one, other = {**OBJECT, "properties": {"a": {"const": "p"}}, "required": ["a"]}, {"properties": {"b": {}}}
    with pytest.raises(InvalidGrammar, match="oneOf"):
        compiled({"oneOf": [one, other]})


def test_a_definition_that_is_intersected_somewhere_stays_open() -> None:
    """Elsewhere too."""
    schema = {**OBJECT, "properties": {"p": {"$ref": "#/$defs/p"}}, "$defs": {"p": {"properties": {"x": A}}}}
    assert not allows(compiled(schema), '{"p":{"y":1}}')
    schema["properties"]["q"] = {"allOf": [{"$ref": "#/$defs/p"}, {"properties": {"y": A}}]}
    assert allows(compiled(schema), '{"p":{"y":1},"q":{"y":2}}')
    assert not allows(compiled(schema), '{"p":{"x":"a"}}')


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"type": "array", "items": {}, "minItems": 3, "maxItems": 2}, "minItems (3) is greater"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "not an object"),
        ({"type": "fruit"}, "fruit"),
        ({"$ref": "#/nowhere"}, "/nowhere"),
        ({"$ref": "https://example.com/schema"}, "leads outside"),
        ({"type": "string", "maxLength": 10**9}, "maxLength"),
        ({"type": "array", "items": {}, "minItems": -1}, "minItems"),
        ({"type": "string", "pattern": "("}, "a pattern: unclosed group"),
        ({"enum": []}, "Unsatisfiable"),
        ("x" * 300_000, "bytes; the most is"),
        ({"type": "string", "pattern": "\ud800"}, "surrogate"),
    ],
)
def test_bad_schemas_are_refused(value, reason) -> None:
    """Each fault has its sentence, whether strict or not, and absurd sizes are not even tried."""
    with pytest.raises(InvalidGrammar) as caught:
        compiled(value)
    assert reason in caught.value.message
    assert len(caught.value.message) < 400


def test_a_deep_schema_is_refused() -> None:
    value: dict[str, object] = {}
    for _ in range(MAX_SCHEMA_DEPTH):
        value = {"type": "array", "items": value}
    with pytest.raises(InvalidGrammar, match="nested deeper"):
        parse_schema(json.dumps({"type": "array", "items": value}))
    assert parse_schema(json.dumps(value)), "the bound itself is allowed"


def test_what_a_client_writes_is_never_pasted() -> None:
    """Neither options for llguidance nor a second grammar get in by the text of a schema."""
    sly = '{"type": "integer", "x-guidance": {"lenient": true}, "unevaluatedItems": false}'
    assert "lenient" not in json_rule(parse_schema(sly), Leniency.NONE)
    with pytest.raises(InvalidGrammar):
        compiled(sly)
    with pytest.raises(InvalidGrammar, match="not JSON"):
        parse_schema('{}}, {"lark_grammar": "start: /.*/"')


NASTY = {
    "an enum": {"enum": [1] * 40_000},
    "literals": {"anyOf": [{"const": 1}] * 7000},
    "objects": {"anyOf": [{"properties": {f"p{n}": {} for n in range(128)}}] * 60},
    "references": {
        "anyOf": [{"$ref": f"#/$defs/{n}"} for n in range(2400)],
        "$defs": {f"{n}": {"const": n} for n in range(2400)},
    },
    "doubling": {
        "$defs": {
            **{f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)},
            "d40": {"const": 1},
        },
        "$ref": "#/$defs/d0",
    },
    "stars": {"anyOf": [{"type": "string", "pattern": "^a" + "*" * 2040 + "$"}] * 50},
    "a repetition": {"type": "string", "pattern": "^a{0,1000000000}$"},
    "a product": {"allOf": [{"anyOf": [{"const": n} for n in range(30)]}] * 20},
    "a long constant": {"const": "(a " * 40_000},
}


@pytest.mark.parametrize("name", NASTY)
@pytest.mark.slow
def test_no_schema_is_worked_on_for_long(name) -> None:
    """What these cost is far from the limit of the process that tries them; the rest ends there."""
    began = time.thread_time()
    with contextlib.suppress(InvalidGrammar):
        compiled(NASTY[name])
    assert time.thread_time() - began < 2


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
keywords = st.sampled_from(
    (
        *(
            "type",
            "items",
            "properties",
            "enum",
            "const",
            "anyOf",
            "allOf",
            "oneOf",
            "not",
            "$ref",
            "maxItems",
        ),
        *("minLength", "pattern", "required", "additionalProperties", "format", "prefixItems", "minimum"),
        *("exclusiveMaximum", "patternProperties", "default", "$defs"),
    )
)


@given(
    st.dictionaries(keywords, json_values | st.dictionaries(keywords, json_values, max_size=3), max_size=4)
)
def test_any_schema_is_judged_without_a_crash(value) -> None:
    """Whatever a client sends, the answer is a matcher or an InvalidGrammar."""
    for way in Leniency:
        with contextlib.suppress(InvalidGrammar):
            assert compiled(value, way)
