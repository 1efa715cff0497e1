# SPDX-License-Identifier: GPL-3.0-only
"""Bodies of `/tokenize`, `/detokenize` and `/apply-template`, and their answers."""

from __future__ import annotations

import json

import pytest

from modeld.dialects.native.vocabulary import (
    MOST,
    parse_detokenize,
    parse_template,
    parse_tokenize,
    vocabulary_answer,
)
from modeld.domain.request import DetokenizeRequest, Message, Priority, TemplateRequest, TokenizeRequest
from modeld.domain.request_events import Detokenized, Templated, Tokenized
from modeld.errors import InvalidRequest


def body(**keys: object) -> bytes:
    return json.dumps(keys).encode()


def test_keys_are_those_of_llama_cpps_server() -> None:
    """Defaults too: control tokens are parsed, the tokens at the ends are not added."""
    order = parse_tokenize(body(content="hi"))
    assert order.request == TokenizeRequest(content="hi", add_special=False, parse_special=True)
    assert order.needs_no_slot
    full = parse_tokenize(body(content="hi", add_special=True, parse_special=False, with_pieces=True))
    assert full.request == TokenizeRequest(
        content="hi", add_special=True, parse_special=False, with_pieces=True
    )
    assert parse_detokenize(body(tokens=[1, 2])).request == DetokenizeRequest(tokens=(1, 2))
    messages = [{"role": "user", "content": "hi"}]
    assert parse_template(body(messages=messages)).request == TemplateRequest(
        messages=(Message(role="user", content="hi"),)
    )


def test_terms_are_those_of_infer() -> None:
    """Model, timeout, priority and keep_alive are read as in `POST /infer`."""
    order = parse_tokenize(body(content="", model="a", timeout="2s", priority="high", keep_alive="1m"))
    assert (order.model, order.timeout_s, order.priority, order.keep_alive_s) == ("a", 2.0, Priority.HIGH, 60)


@pytest.mark.parametrize(
    ("parse", "data", "says"),
    [
        (parse_tokenize, b"", "the body is empty"),
        (parse_tokenize, b"{", "not JSON"),
        (parse_tokenize, body(), "lacks the key"),
        (parse_tokenize, body(content=1), "`content` must be a string"),
        (parse_tokenize, body(content="x" * (MOST + 1)), "`content` must be a string of length"),
        (parse_tokenize, body(content="x", add_specials=True), "did you mean add_special?"),
        (parse_tokenize, body(content="x", model=""), "`model` is empty"),
        (parse_detokenize, body(tokens="1 2"), "`tokens` must be a list"),
        (parse_detokenize, body(tokens=[1.5]), "`tokens[0]` must be a whole number"),
        (parse_detokenize, body(tokens=[-1]), "`tokens[0]` must be a whole number >= 0"),
        (parse_detokenize, body(tokens=[2**31]), "must be a whole number"),
        (parse_detokenize, body(tokens=[1] * (MOST + 1)), "`tokens` must be a list of length"),
        (parse_template, body(messages=[]), "`messages` must be a list of length >= 1"),
        (parse_template, body(messages=[{"role": "user"}]), 'lacks the key "content"'),
        (parse_template, body(messages=[{"role": "u", "content": "x" * MOST}]), "characters; send"),
    ],
)
def test_what_is_wrong_is_said_with_its_key(parse, data, says) -> None:
    """A sentence that names the key and what it should be."""
    with pytest.raises(InvalidRequest) as caught:
        parse(data)
    assert says in caught.value.message


def test_pieces_are_text_or_bytes() -> None:
    """A piece that is no whole characters is told as its bytes."""
    answer = vocabulary_answer(Tokenized((1, 2), (b"a", b"\xf0\x9f")))
    assert json.loads(answer) == {"tokens": [{"id": 1, "piece": "a"}, {"id": 2, "piece": [240, 159]}]}
    assert json.loads(vocabulary_answer(Tokenized((1, 2)))) == {"tokens": [1, 2]}


def test_bytes_that_are_no_text_are_not_lost() -> None:
    """The text has replacement characters, the bytes come with it; a text that has them itself is exact."""
    assert json.loads(vocabulary_answer(Detokenized(b"a\xf0\x9f"))) == {
        "content": "a\ufffd",
        "bytes": [97, 240, 159],
    }
    assert json.loads(vocabulary_answer(Detokenized("\ufffd".encode()))) == {"content": "\ufffd"}
    assert json.loads(vocabulary_answer(Templated("<s>"))) == {"prompt": "<s>"}
