# SPDX-License-Identifier: GPL-3.0-only
"""What the native dialect takes, and what it says about everything else."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeld.dialects.native import parse_infer
from modeld.domain.request import Constraint, ConstraintKind, GenerateRequest, Message, Order, Priority
from modeld.errors import InvalidGrammar, InvalidRequest


def body(**keys) -> bytes:
    return json.dumps({"prompt": "Hello", **keys}).encode()


def refusal(data: bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse_infer(data)
    return caught.value.message


def test_a_prompt_alone_takes_every_default() -> None:
    """Only the prompt is needed; the rest is the documented default, and the answer is a stream."""
    command = parse_infer(b'{"prompt":"Hello"}')
    assert command.order == Order(request=GenerateRequest(prompt="Hello"))
    assert command.stream
    assert not command.events


def test_null_means_the_default() -> None:
    """A client that writes null for what it does not set gets the default."""
    keys = "model stream events max_tokens temperature top_k top_p min_p typical_p repeat_penalty seed stop"
    keys += " presence_penalty frequency_penalty logit_bias logprobs grammar json_schema timeout priority"
    keys += (
        " keep_alive ignore_eos messages n_predict stop_token_ids repeat_last_n top_n_sigma xtc_probability"
    )
    keys += (
        " xtc_threshold dynatemp_range dynatemp_exponent mirostat mirostat_tau mirostat_eta dry_multiplier"
    )
    keys += " dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers"
    keys += " echo grammar_lazy grammar_triggers prompt_lookup"
    assert parse_infer(body(**dict.fromkeys(keys.split()))) == parse_infer(body())


def test_every_key_reaches_the_order() -> None:
    """No field is silently dropped."""
    command = parse_infer(
        body(
            model="tiny",
            stream=True,
            events=True,
            max_tokens=7,
            temperature=0,
            top_k=0,
            top_p=1,
            min_p=0,
            typical_p=0.5,
            repeat_penalty=1.1,
            presence_penalty=-1,
            frequency_penalty=2,
            seed=42,
            stop=["a", "b"],
            logit_bias={"5": -1.5, "7": False},
            logprobs=3,
            grammar='root ::= "x"',
            timeout="1m30s",
            priority="high",
            keep_alive="-1",
            ignore_eos=True,
        )
    )
    order, request, sampling = command.order, command.order.request, command.order.request.sampling
    assert (order.model, order.timeout_s, order.priority, order.keep_alive_s) == (
        "tiny",
        90,
        Priority.HIGH,
        -1,
    )
    assert (request.max_tokens, request.stop, request.logprobs, request.ignore_eos) == (
        7,
        ("a", "b"),
        3,
        True,
    )
    assert request.constraint == Constraint(kind=ConstraintKind.GRAMMAR, text='root ::= "x"')
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0, 0, 1, 0)
    assert (sampling.typical_p, sampling.repeat_penalty, sampling.seed) == (0.5, 1.1, 42)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (-1, 2)
    assert sampling.logit_bias == ((5, -1.5), (7, -math.inf))
    assert command.events


def test_every_way_of_sampling_reaches_the_order() -> None:
    """Each key that has a value of its own here arrives as that value."""
    keys = {
        "temperature": 1.5,
        "top_n_sigma": 1.25,
        "xtc_probability": 0.5,
        "xtc_threshold": 0.2,
        "dynatemp_range": 0.75,
        "dynatemp_exponent": 2.0,
        "repeat_last_n": -1,
        "dry_multiplier": 0.8,
        "dry_base": 2.0,
        "dry_allowed_length": 3,
        "dry_penalty_last_n": 128,
        "dry_sequence_breakers": ["\n", "x"],
    }
    sampling = parse_infer(body(**keys)).order.request.sampling
    assert {name: getattr(sampling, name) for name in keys} == keys | {"dry_sequence_breakers": ("\n", "x")}
    keys = {"mirostat": 2, "mirostat_tau": 3.0, "mirostat_eta": 0.5}
    sampling = parse_infer(body(**keys)).order.request.sampling
    assert {name: getattr(sampling, name) for name in keys} == keys


def test_echo_is_the_prompt() -> None:
    """What is to come before the answer is the text as it was sent."""
    assert parse_infer(body(echo=True)).echo == "Hello"
    assert parse_infer(body(echo=False)).echo == parse_infer(body(echo=None)).echo == ""
    assert parse_infer(body(echo=True, logprobs=False)).echo == "Hello"


def test_messages_take_the_place_of_a_prompt() -> None:
    """A conversation arrives turn by turn, as plain text."""
    request = parse_infer(b'{"messages":[{"role":"user","content":"<|im_start|>"}]}').order.request
    assert request.prompt is None
    assert request.messages == (Message(role="user", content="<|im_start|>"),)


@pytest.mark.parametrize(
    ("keys", "read", "expected"),
    [
        ({"stop": "x"}, lambda r: r.stop, ("x",)),
        ({"stop": []}, lambda r: r.stop, ()),
        ({"logprobs": True}, lambda r: r.logprobs, 0),
        ({"logprobs": False}, lambda r: r.logprobs, None),
        ({"logprobs": 0}, lambda r: r.logprobs, 0),
        ({"seed": -1}, lambda r: r.sampling.seed, None),
        ({"seed": 0}, lambda r: r.sampling.seed, 0),
        ({"logit_bias": [[3, 1], [4, False]]}, lambda r: r.sampling.logit_bias, ((3, 1.0), (4, -math.inf))),
        ({"logit_bias": {}}, lambda r: r.sampling.logit_bias, ()),
        ({"logit_bias": {"hi": 1, "7": 2}}, lambda r: r.sampling.logit_bias, (("hi", 1.0), (7, 2.0))),
        ({"logit_bias": {"7.0": 2, "7.5": 1}}, lambda r: r.sampling.logit_bias, ((7, 2.0), ("7.5", 1.0))),
        ({"logit_bias": [["7", 1], [7, 2]]}, lambda r: r.sampling.logit_bias, (("7", 1.0), (7, 2.0))),
        ({"max_tokens": 2**31 - 1}, lambda r: r.max_tokens, 2**31 - 1),
        ({"n_predict": 7}, lambda r: r.max_tokens, 7),
        ({"n_predict": 7, "max_tokens": 7}, lambda r: r.max_tokens, 7),
        ({"n_predict": -1}, lambda r: r.max_tokens, 2**31 - 1),
        ({"prompt_lookup": 8}, lambda r: r.lookup, 8),
        ({"stop_token_ids": [2, 0]}, lambda r: r.stop_tokens, (2, 0)),
        ({"mirostat": 1, "top_k": 0, "top_p": 1, "min_p": 0}, lambda r: r.sampling.mirostat, 1),
        ({"mirostat": 0, "top_k": 5}, lambda r: r.sampling.top_k, 5),
        ({"temperature": 0, "top_k": 5}, lambda r: r.sampling.top_k, 5),
        ({"temperature": 0, "xtc_probability": 0}, lambda r: r.sampling.xtc_probability, 0),
    ],
)
def test_other_spellings(keys, read, expected) -> None:
    """Where a key has more than one spelling, each means what the API says."""
    assert read(parse_infer(body(**keys)).order.request) == expected


def test_a_lazy_grammar_has_its_triggers() -> None:
    """Words and tokens, as llama.cpp's server writes them, for a grammar or a schema."""
    triggers = [
        {"type": 1, "value": "<c>"},
        {"type": 0, "value": "<d>", "token": 7},
        {"type": 1, "value": "x"},
    ]
    keys = {"grammar_lazy": True, "grammar_triggers": triggers}
    constraint = parse_infer(body(grammar="root ::= x", **keys)).order.request.constraint
    assert constraint is not None
    assert (constraint.kind, constraint.text) == (ConstraintKind.GRAMMAR, "root ::= x")
    assert (constraint.trigger_words, constraint.trigger_tokens) == (("<c>", "x"), (7,))
    constraint = parse_infer(body(json_schema={}, **keys)).order.request.constraint
    assert constraint is not None
    assert (constraint.kind, constraint.trigger_tokens) == (ConstraintKind.JSON_SCHEMA, (7,))
    eager = {"grammar_lazy": False, "grammar_triggers": []}
    assert parse_infer(body(grammar="root ::= x", **eager)) == parse_infer(body(grammar="root ::= x"))


@pytest.mark.parametrize(
    ("triggers", "told"),
    [
        ([], "a lazy grammar needs `grammar_triggers`"),
        ([{"type": 0, "value": "x"}], "`grammar_triggers[0]` lacks its `token`"),
        ([{"type": 1, "value": "x"}, {"type": 1, "token": 5}], "`grammar_triggers[1]` lacks its `value`"),
        ([{"type": 1, "value": ""}], "`grammar_triggers[0]` lacks its `value`"),
        ([{"type": 2, "value": "x.*"}], "`grammar_triggers[0]` is a pattern (type 2)"),
    ],
)
def test_triggers_that_cannot_be_used_are_bad_grammars(triggers, told) -> None:
    """They are refused as a grammar that does not compile is."""
    with pytest.raises(InvalidGrammar) as caught:
        parse_infer(body(grammar="root ::= x", grammar_lazy=True, grammar_triggers=triggers))
    assert told in caught.value.message


def test_a_schema_travels_as_its_own_text() -> None:
    """A JSON schema is not rewritten on its way, so the order of its keys stays."""
    data = b'{"prompt":"x","json_schema":{"type": "object", "a": 1}}'
    assert parse_infer(data).order.request.constraint == Constraint(
        kind=ConstraintKind.JSON_SCHEMA, text='{"type": "object", "a": 1}'
    )


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"temprature": 1}, 'unknown key "temprature"; did you mean temperature?'),
        ({"qqq": 1}, 'unknown key "qqq"'),
        ({"temperature": "hot"}, "`temperature` must be a number, not a string"),
        ({"temperature": -0.1}, "`temperature` must be a number >= 0.0"),
        ({"temperature": 1e6}, "`temperature` must be a number <= 100.0"),
        ({"temperature": True}, "`temperature` must be a number, not true or false"),
        ({"top_p": 0}, "`top_p` must be a number > 0.0"),
        ({"top_p": 1.01}, "`top_p` must be a number <= 1.0"),
        ({"min_p": 2}, "`min_p` must be a number <= 1.0"),
        ({"typical_p": 0}, "`typical_p` must be a number > 0.0"),
        ({"repeat_penalty": 0}, "`repeat_penalty` must be a number > 0.0"),
        ({"presence_penalty": 11}, "`presence_penalty` must be a number <= 10.0"),
        ({"frequency_penalty": -11}, "`frequency_penalty` must be a number >= -10.0"),
        ({"top_k": -1}, "`top_k` must be a whole number >= 0"),
        ({"top_k": 1.5}, "`top_k` must be a whole number, not a number"),
        ({"max_tokens": 0}, "`max_tokens` must be a whole number >= 1"),
        ({"max_tokens": 10**300}, "`max_tokens` must be a whole number <= 2147483647"),
        ({"max_tokens": True}, "`max_tokens` must be a whole number, not true or false"),
        ({"n_predict": -2}, "`n_predict` must be a whole number >= -1"),
        ({"n_predict": 0}, "`n_predict` is 0; it must be at least 1, or -1"),
        ({"n_predict": 3, "max_tokens": 4}, "`max_tokens` is 4 and `n_predict` 3, and both mean the same"),
        ({"n_predict": -1, "max_tokens": 4}, "`max_tokens` is 4 and `n_predict` -1"),
        ({"prompt_lookup": 17}, "`prompt_lookup` must be a whole number <= 16"),
        ({"prompt_lookup": True}, "`prompt_lookup` must be a whole number"),
        ({"stop_token_ids": [-1]}, "`stop_token_ids[0]` must be a whole number >= 0"),
        ({"stop_token_ids": ["a"]}, "`stop_token_ids[0]` must be a whole number, not a string"),
        ({"stop_token_ids": 2}, "`stop_token_ids` must be a list, not a whole number"),
        ({"stop_token_ids": [1] * 65}, "`stop_token_ids` must be"),
        ({"repeat_last_n": -2}, "`repeat_last_n` must be a whole number >= -1"),
        ({"top_n_sigma": -2}, "`top_n_sigma` must be a number >= -1.0"),
        ({"xtc_probability": 1.1}, "`xtc_probability` must be a number <= 1.0"),
        ({"xtc_threshold": -0.1}, "`xtc_threshold` must be a number >= 0.0"),
        ({"dynatemp_range": -1}, "`dynatemp_range` must be a number >= 0.0"),
        ({"dynatemp_range": 2}, "the range can be at most the temperature"),
        ({"dynatemp_exponent": 11}, "`dynatemp_exponent` must be a number <= 10.0"),
        ({"mirostat": 3}, "`mirostat` must be a whole number <= 2"),
        ({"mirostat_eta": 2}, "`mirostat_eta` must be a number <= 1.0"),
        ({"dry_multiplier": -1}, "`dry_multiplier` must be a number >= 0.0"),
        ({"dry_base": 0.5}, "`dry_base` must be a number >= 1.0"),
        ({"dry_allowed_length": 0}, "`dry_allowed_length` must be a whole number >= 1"),
        ({"dry_penalty_last_n": -2}, "`dry_penalty_last_n` must be a whole number >= -1"),
        ({"dry_sequence_breakers": [""]}, "`dry_sequence_breakers[0]` must be a string of length >= 1"),
        ({"dry_sequence_breakers": ["x"] * 9}, "`dry_sequence_breakers` must be a list of length <= 8"),
        ({"mirostat": 2, "top_k": 40, "min_p": 0.1}, "leave out `top_k`, `min_p`, or `mirostat`"),
        ({"mirostat": 2, "temperature": 0}, "and `mirostat` draws"),
        ({"xtc_probability": 0.5, "temperature": 0}, "and `xtc_probability` draws"),
        ({"dynatemp_range": 0.5, "temperature": 0}, "and `dynatemp_range` draws"),
        ({"repetition_penalty": 1.1}, "did you mean repeat_penalty?"),
        ({"echo": True, "prompt": None, "messages": [{"role": "user", "content": "x"}]}, "`echo` repeats"),
        ({"echo": True, "logprobs": 0}, "`echo` and `logprobs` do not go together"),
        ({"echo": "yes"}, "`echo` must be true or false"),
        ({"grammar_lazy": True}, "need a `grammar` or a `json_schema`"),
        ({"grammar_triggers": [{"type": 1, "value": "x"}]}, "need a `grammar` or a `json_schema`"),
        ({"grammar": "x", "grammar_triggers": [{"type": 1, "value": "x"}]}, "set `grammar_lazy` to true"),
        ({"grammar": "x", "grammar_triggers": [{"type": 4}]}, "`grammar_triggers[0].type` must be"),
        ({"grammar": "x", "grammar_triggers": [{"typ": 1}]}, "did you mean type?"),
        ({"grammar": "x", "grammar_triggers": ["x"]}, "`grammar_triggers[0]` must be an object"),
        ({"seed": -2}, "`seed` must be a whole number >= -1"),
        ({"seed": 2**32 - 1}, "`seed` must be a whole number <= 4294967294"),
        ({"stop": ["a", ""]}, "`stop[1]` must be a string of length >= 1"),
        ({"stop": [1]}, "`stop[0]` must be a string, not a whole number"),
        ({"stop": ["a"] * 65}, "`stop` must be"),
        ({"logit_bias": {"99999999999": 1}}, "`logit_bias`: a token id is a whole number"),
        ({"logit_bias": {"-1": 1}}, "`logit_bias`: a token id is a whole number"),
        ({"logit_bias": {"9" * 30: 1}}, "`logit_bias`: a token id is a whole number"),
        (
            {"logit_bias": {f"word {n}": 1 for n in range(513)}},
            "`logit_bias` has 513 texts; send 512 at most",
        ),
        ({"logit_bias": {"": 1}}, "`logit_bias`: an empty text has no tokens"),
        ({"logit_bias": [["", 1]]}, "`logit_bias`: an empty text has no tokens"),
        ({"logit_bias": {"x" * 201: 1}}, "a text has at most 200 characters, and all of them together 10000"),
        (
            {"logit_bias": [["x" * 200, 1]] * 51},
            "a text has at most 200 characters, and all of them together 10000",
        ),
        ({"logit_bias": [["x", True]]}, "`logit_bias`: a bias is a number from -1000 to 1000, or false"),
        ({"logit_bias": [["x", "y"]]}, "`logit_bias[0][1]` must be true or false or a number, not a string"),
        ({"logit_bias": [[None, 1]]}, "`logit_bias[0][0]` must be a whole number or a string, not null"),
        ({"logit_bias": [[1.5, 1]]}, "`logit_bias[0][0]` must be a whole number or a string, not a number"),
        ({"logit_bias": {"x": None}}, "must be true or false or a number, not null"),
        ({"logit_bias": {"5": True}}, "`logit_bias`: a bias is a number from -1000 to 1000, or false"),
        ({"logit_bias": {"5": 1e9}}, "`logit_bias`: a bias is a number from -1000 to 1000, or false"),
        ({"logit_bias": [[2**40, 1]]}, "`logit_bias`: a token id is a whole number"),
        ({"logit_bias": [[3]]}, "`logit_bias[0]` must be a list of length 2"),
        ({"logprobs": -1}, "`logprobs` must be a whole number >= 0"),
        ({"logprobs": 101}, "`logprobs` must be a whole number <= 100"),
        ({"priority": "urgent"}, '`priority` must be one of high, normal, low, not "urgent"'),
        ({"timeout": "soon"}, '`timeout`: "soon" is no duration; write it as 30s, 1m30s or 500ms'),
        ({"timeout": "0s"}, "`timeout` must be longer than nothing"),
        ({"timeout": -5}, "`timeout` must be longer than nothing"),
        ({"timeout": 1e300}, "`timeout`: 1e+300 is longer than a hundred years"),
        ({"timeout": True}, "`timeout` must be a number or a string, not true or false"),
        ({"keep_alive": "later"}, '`keep_alive`: "later" is no duration'),
        ({"stream": "yes"}, "`stream` must be true or false, not a string"),
        ({"stream": False, "events": True}, "events are lines of a stream"),
        ({"model": ""}, "`model` is empty"),
        ({"model": 5}, "`model` must be a string, not a whole number"),
        ({"prompt": ""}, "`prompt` is empty"),
        ({"prompt": ["a"]}, "`prompt` must be a string, not a list"),
        ({"prompt": None}, "there is nothing to answer"),
        ({"messages": []}, "give either `prompt` or `messages`, not both"),
        ({"prompt": None, "messages": []}, "`messages` is empty"),
        ({"messages": [{"role": "user"}]}, '`messages[0]` lacks the key "content"'),
        ({"messages": [{"role": "u", "content": "a", "contents": 1}]}, "did you mean content?"),
        ({"messages": [{"role": "", "content": "a"}]}, "`messages[0].role` must be a string of length >= 1"),
        ({"grammar": "x", "json_schema": {}}, "give either `grammar` or `json_schema`, not both"),
        ({"grammar": "  "}, "`grammar` is empty"),
        ({"json_schema": [1]}, "`json_schema` must be an object"),
        ({"json_schema": "{}"}, "`json_schema` must be an object"),
    ],
)
def test_what_is_wrong_is_named(keys, told) -> None:
    """Each bad key is refused with a sentence that names it and says what would do."""
    assert told in refusal(body(**keys))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "the body is empty"),
        (b"  \n", "the body is empty"),
        (b"hello", "the body is not JSON"),
        (b'{"prompt":"x"', "the body is not JSON"),
        (b'{"prompt":"x"} x', "the body is not JSON"),
        (b"[]", "the body must be an object, not a list"),
        (b"null", "the body must be an object, not null"),
        (b'{"prompt":"x","temperature":NaN}', "the body is not JSON"),
        (b'{"prompt":"x","temperature":Infinity}', "the body is not JSON"),
        (b'{"prompt":"x","temperature":1e999}', "`temperature`: number out of range"),
        (b'{"prompt":"x","max_tokens":' + b"9" * 5000 + b"}", "`max_tokens`: integer value out of range"),
        (b'{"prompt":"\xff"}', "the body is not UTF-8: byte 11 cannot be decoded"),
        (b'{"prompt":"\\ud83d"}', "only half of a character"),
        (b'{"prompt":"\\ud83d x"}', "only half of a character"),
        (b'{"prompt":"\\ude00"}', "only half of a character"),
        (b'{"prompt":"x","json_schema":{"a":"\\ud83d"}}', "only half of a character"),
        (b"[" * 100_000, "the body must be an object, not a list"),
        (b'{"prompt":' + b"[" * 100_000, "`prompt` must be a string, not a list"),
        (b'{"prompt":"x","json_schema":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"prompt":"x","json_schema":' + b'{"a":' * 101 + b"1" + b"}" * 101 + b"}", "more than 100 levels"),
    ],
)
def test_what_is_no_request_is_refused(data: bytes, told: str) -> None:
    """Broken JSON, numbers that JSON has not, broken text and deep nesting get a sentence, not a crash."""
    assert told in refusal(data)


def test_a_whole_character_may_be_escaped() -> None:
    """A pair of surrogate escapes is one character, and a backslash before `ud83d` is text."""
    assert parse_infer(b'{"prompt":"\\ud83d\\ude00 \\\\ud83d"}').order.request.prompt == "\U0001f600 \\ud83d"


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
_keys = st.sampled_from(
    ["prompt", "messages", "stop", "logit_bias", "logprobs", "timeout", "seed", "json_schema"]
)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(_keys | st.text(), _values))
def test_no_body_crashes_the_parser(value: dict) -> None:
    """Whatever JSON-like thing arrives, it is an order or an `InvalidRequest`."""
    data = json.dumps(value).encode("utf-8", "surrogatepass")
    outcome: object = None
    try:
        outcome = parse_infer(data)
    except InvalidRequest as refused:
        outcome = refused.message
    assert outcome


@settings(deadline=None, max_examples=50)
@given(st.binary())
def test_no_bytes_crash_the_parser(data: bytes) -> None:
    """Arbitrary bytes are refused with a sentence."""
    assert refusal(data)
