# SPDX-License-Identifier: GPL-3.0-only
"""How every body is read, whatever its dialect: numbers as clients of other languages write them."""

from __future__ import annotations

import json
import time
import tracemalloc
from codecs import BOM_UTF8
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.dialects import anthropic, llamacpp, native, ollama, openai
from modeld.dialects.common.body import decode
from modeld.errors import InvalidRequest

HELLO = [{"role": "user", "content": "Hello"}]
FUNCTION = {"type": "object", "properties": {"a": {"type": "number", "minimum": 0.5}}}

BODIES: list[tuple[Callable[[bytes], object], dict[str, Any]]] = [
    (native.parse_infer, {"prompt": "x", "max_tokens": 5, "top_k": 40, "seed": 7, "stop_token_ids": [1, 2]}),
    (native.parse_infer, {"prompt": "x", "n_predict": -1, "logprobs": 3, "logit_bias": [[15043, 1], [2,
    False]]}), (native.parse_embed, {"input": [[1, 2], [3]]}), (native.parse_tokenize, {"content": "4096.0"}),
    (native.parse_detokenize, {"tokens": [1, 2, 3]}), (native.parse_plan, {"model": "m", "context": 4096,
    "slots": 2}), (openai.parse_chat, {"messages": HELLO, "max_tokens": 100, "seed": 3, "n": 2}),
    (openai.parse_completion, {"prompt": [1, 2], "max_tokens": 9, "n": 2, "logprobs": 1, "best_of": 2}),
    (openai.parse_response, {"input": "x", "max_output_tokens": 100}), (openai.parse_embeddings, {"input": [1,
    2, 3]}), (anthropic.parse_messages, {"model": "m", "max_tokens": 64, "messages": HELLO, "top_k": 5}),
    (llamacpp.parse_completion, {"prompt": [1, 2], "n_predict": 4, "top_k": 5, "id_slot": -1, "n_cmpl": 1}),
    (llamacpp.parse_embedding, {"content": [1, 2], "embd_normalize": 2}), (ollama.parse_generate, {"prompt":
    "x", "options": {"num_ctx": 4096, "seed": 10**18 + 1}}), (ollama.parse_chat, {"messages": HELLO,
    "options": {"top_k": 40, "num_gpu": 99, "mirostat": 0}}), (ollama.parse_embed, {"input": "x", "options":
    {"num_ctx": 4096}}),
]  # fmt: skip
BAD = [
    ("100.5", "must be a whole number, not a number with a fraction"),
    ("1e-3", "must be a whole number, not a number with a fraction"),
    ("-1.0", "must be a whole number >= "),
    ("1e30", "must be a whole number <= "),
    ("1e308", "must be a whole number <= "),
    ("1e400", "`max_tokens`"),
    ("1e99999999", "number out of range"),
    ("NaN", "the body is not JSON"),
    ('"100"', "must be a whole number, not a string"),
    ('"100.0"', "must be a whole number, not a string"),
    ("true", "must be a whole number, not true or false"),
]


def with_floats(value: object) -> object:
    """The same value with a fraction of zero at each whole number."""
    match value:
        case dict():
            return {key: with_floats(item) for key, item in value.items()}
        case list():
            return [with_floats(item) for item in value]
        case int() if not isinstance(value, bool):
            return msgspec.Raw(f"{value}.0".encode())
        case _:
            return value


@pytest.mark.parametrize(("parse", "body"), BODIES)
def test_whole_numbers_may_be_floats_in_every_body(
    parse: Callable[[bytes], object], body: dict[str, Any]
) -> None:
    """`4096.0` means 4096, in objects and lists at any depth; large ones are exact."""
    floats = msgspec.json.encode(with_floats(body))
    assert parse(floats) == parse(json.dumps(body).encode())


@pytest.mark.parametrize(("number", "told"), BAD)
def test_what_is_no_whole_number_is_refused_in_a_sentence(number: str, told: str) -> None:
    """Also alongside a whole number that is a float."""
    for before in ("", '"top_k":40.0,'):
        with pytest.raises(InvalidRequest) as caught:
            native.parse_infer(f'{{"prompt":"x",{before}"max_tokens":{number}}}'.encode())
        assert told in caught.value.message
        assert "top_k" not in caught.value.message


CODINGS = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]


@pytest.mark.parametrize(("parse", "body"), BODIES)
def test_a_byte_order_mark_is_passed_over_in_every_body(
    parse: Callable[[bytes], object], body: dict[str, Any]
) -> None:
    """One in front, as Windows' editors write; UTF-16 and UTF-32 are refused in a sentence."""
    data = json.dumps(body)
    assert parse(data.encode("utf-8-sig")) == parse(data.encode())
    for coding in CODINGS:
        with pytest.raises(InvalidRequest, match="the body is UTF-16 or UTF-32; JSON is UTF-8"):
            parse(data.encode(coding))


def test_a_mark_alone_is_an_empty_body_and_one_in_a_text_stays() -> None:
    """What may be missing may be a mark; only the first one is none of the text."""
    with pytest.raises(InvalidRequest, match="the body is empty"):
        native.parse_infer(BOM_UTF8)
    assert native.parse_load(BOM_UTF8) == native.parse_load(b"")
    request = native.parse_infer('\ufeff{"prompt":"\ufeffx"}'.encode()).order.request
    assert request.prompt == "\ufeffx"
    with pytest.raises(InvalidRequest, match="the body is not JSON"):
        native.parse_infer(BOM_UTF8 * 2 + b'{"prompt":"x"}')


def test_strings_keep_what_looks_like_a_float() -> None:
    """In the prompt, in keys, behind escapes; and a schema's own floats keep their value."""
    prompt = r"\"2.0\" 3.0 \\"
    body = f'{{"prompt":"{prompt}","top_k":40.0,"json_schema":{{"maximum":1.5,"minimum":0.0,"const":"1.0"}}}}'
    request = native.parse_infer(body.encode()).order.request
    assert request.prompt == '"2.0" 3.0 \\'
    assert request.constraint is not None
    assert json.loads(request.constraint.text) == {"maximum": 1.5, "minimum": 0, "const": "1.0"}


class Numbers(msgspec.Struct):
    """Numbers of both kinds."""

    whole: int
    others: list[float] = []


_numbers = msgspec.json.Decoder(Numbers)


@given(st.integers(-(2**63), 2**63 - 1), st.lists(st.floats(allow_nan=False, allow_infinity=False)))
def test_values_are_exact(whole: int, others: list[float]) -> None:
    """Sixty-four bits of them, and floats alongside them do not change."""
    body = f'{{"others":{json.dumps(others)},"whole":{whole}.00}}'.encode()
    assert decode(body, _numbers, "") == Numbers(whole, others)


HOSTILE = {
    "digits": '{"prompt":"x","max_tokens":1.0,"seed":' + "1" * 900_000 + "}",
    "an open string": '{"prompt":"x","max_tokens":1.0,"stop":"' + '\\"' * 450_000,
    "exponents": '{"prompt":"x","max_tokens":1.0,"stop_token_ids":[' + "1e999," * 150_000 + "1]}",
    "floats in a list": '{"prompt":"x","max_tokens":1.0,"stop_token_ids":[' + "1.0," * 240_000 + "1]}",
    "large exponents": '{"prompt":"x","max_tokens":1.0,"stop_token_ids":[' + "1e308," * 150_000 + "1]}",
    "lists in a list": '{"input":[' + "[1.0]," * 150_000 + "[1.0]]}",
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.slow
def test_reading_floats_takes_time_that_grows_with_the_body(case: str) -> None:
    """A body of a megabyte keeps the event loop for a moment, whatever it holds."""
    parse = native.parse_embed if "input" in HOSTILE[case][:9] else native.parse_infer
    body = HOSTILE[case].encode()
    began = time.process_time()
    with pytest.raises(InvalidRequest):
        parse(body)
    assert time.process_time() - began < 3  # 0.6 s at most on a machine with other work
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest):
            parse(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100 * len(body)


@pytest.mark.parametrize("limit", ["16", "16.0"])
def test_a_float_beside_what_is_passed_on_changes_nothing_in_it(limit: str) -> None:
    """Schemas and arguments of calls reach the engine as they were written."""
    body = f'{{"prompt":"x","max_tokens":{limit},"json_schema":{{"enum":[1.0,2.50,1e40]}}}}'
    constraint = native.parse_infer(body.encode()).order.request.constraint
    assert constraint is not None
    assert constraint.text == '{"enum":[1.0,2.50,1e40]}'


@pytest.mark.parametrize("number", ["01.0", "00.0", "1.", ".5", "+1.0"])
def test_what_is_no_json_stays_none_beside_a_float(number: str) -> None:
    """A body is not read more leniently because a whole number in it is a float."""
    with pytest.raises(InvalidRequest, match="the body is not JSON"):
        native.parse_infer(f'{{"prompt":"x","max_tokens":1.0,"temperature":{number}}}'.encode())


def test_lists_take_no_exponents() -> None:
    """Nobody writes ids like that, and a megabyte of them would take seconds to read."""
    assert native.parse_infer(b'{"prompt":"x","stop_token_ids":[10.0]}').order.request
    with pytest.raises(InvalidRequest, match="must be a whole number"):
        native.parse_infer(b'{"prompt":"x","stop_token_ids":[1e1]}')
