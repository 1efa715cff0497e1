# SPDX-License-Identifier: GPL-3.0-only
"""What engines answer without a slot: tokens, text of tokens, rendered templates."""

from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from support.engine_driver import EngineDriver, generate_request

from modeld.domain.request import DetokenizeRequest, Message, TemplateRequest, TokenizeRequest
from modeld.domain.request_events import Detokenized, Templated, Tokenized
from modeld.engine.protocol import AnswerOutput, RequestDone, RequestFailed, TokenOutput

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)


def answer(driver: EngineDriver, request):
    """Serve a request that must be answered in one step, and return the answer."""
    request_id = driver.submit(request)
    [output] = [output for output in driver.step() if output.id == request_id]
    assert isinstance(output, AnswerOutput), output
    return output.answer


@pytest.fixture(scope="module")
def known_bytes(real_lab):
    """The bytes that have a token of their own."""
    driver = real_lab.driver(slots=2, ctx=256)
    tokens = range(driver.engine.info.vocabulary)
    pieces = [answer(driver, DetokenizeRequest(tokens=(token,))).data for token in tokens]
    return {piece[0] for piece in pieces if len(piece) == 1}


@pytest.mark.real
@given(text=TEXTS)
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_text_comes_back_from_its_tokens(real_lab, known_bytes, text):
    """Every byte of every text: tokenised, spelled out token by token, and detokenised.

    (This vocabulary lacks some bytes: those of some control characters, and of characters beyond U+3FFFF.)
    """
    driver = real_lab.driver(slots=2, ctx=256)
    assume(set(text.encode()) <= known_bytes)
    found = answer(driver, TokenizeRequest(content=text, with_pieces=True, parse_special=False))
    assert isinstance(found, Tokenized)
    assert b"".join(found.pieces).decode() == text
    assert answer(driver, DetokenizeRequest(tokens=found.tokens)) == Detokenized(text.encode())


@pytest.mark.real
@given(tokens=st.lists(st.integers(0, 49151), max_size=20))
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_tokens_have_bytes(real_lab, tokens):
    """Also those that stand for half a character, in any order: their bytes are those of the pieces."""
    driver = real_lab.driver(slots=2, ctx=256)
    found = answer(driver, DetokenizeRequest(tokens=tuple(tokens)))
    single = [answer(driver, DetokenizeRequest(tokens=(token,))).data for token in tokens]
    assert found.data == b"".join(single)
    text = found.data.decode(errors="replace")
    assert answer(driver, TokenizeRequest(content=text)).tokens is not None


@pytest.mark.parametrize("name", ["fake_lab", pytest.param("real_lab", marks=pytest.mark.real)])
def test_a_text_comes_back_from_its_tokens(name, request):
    """Blanks, line ends and characters of several bytes included."""
    driver = request.getfixturevalue(name).driver(slots=2, ctx=256)
    for text in ("", "x", " x", "hello w1 w2\n", "Grüße 🙂"):
        tokens = answer(driver, TokenizeRequest(content=text)).tokens
        assert answer(driver, DetokenizeRequest(tokens=tokens)) == Detokenized(text.encode())


def test_control_tokens_are_tokens_or_text(tiny_lab):
    """`parse_special` makes one token of their text, which spells it again; without it they are bytes."""
    driver = tiny_lab.driver(slots=2, ctx=256)
    parsed = answer(driver, TokenizeRequest(content="</s>", with_pieces=True))
    assert (parsed.tokens, parsed.pieces) == ((2,), (b"</s>",))
    assert answer(driver, DetokenizeRequest(tokens=parsed.tokens)).data == b"</s>"
    plain = answer(driver, TokenizeRequest(content="</s>", parse_special=False))
    assert len(plain.tokens) > 1
    begun = answer(driver, TokenizeRequest(content="x", add_special=True))
    assert begun.tokens == (1, *answer(driver, TokenizeRequest(content="x")).tokens)


def test_a_token_that_is_not_there_is_told(lab):
    """Token ids are checked against the vocabulary; llama.cpp would read beyond it."""
    driver = lab.driver(slots=2, ctx=256)
    for token in (-1, 10_000_000):
        request_id = driver.submit(DetokenizeRequest(tokens=(0, token)))
        driver.finish()
        last = driver.last(request_id)
        assert isinstance(last, RequestFailed)
        assert last.problem.kind == "invalid_request"
        assert f"a token {token}" in last.problem.message


def test_messages_are_rendered_as_for_a_generation(tiny_lab):
    """The prompt is the one that `messages` would be decoded as."""
    driver = tiny_lab.driver(slots=2, ctx=256)
    messages = (Message(role="user", content=" hi "),)
    request_id = driver.submit(TemplateRequest(messages=messages))
    driver.finish()  # in more than one step: templates are rendered by another process
    assert driver.last(request_id).answer == Templated("<s>user:hi</s><s>assistant:")
    request_id = driver.submit(TemplateRequest(messages=(Message(role="bad", content="x"),)))
    driver.finish()
    assert "no bad roles, please" in driver.last(request_id).problem.message


def test_they_are_answered_beside_running_requests(lab):
    """With all slots taken and more requests waiting, the next step answers; the streams go on."""
    driver = lab.driver(slots=2, ctx=512)
    ids = [driver.submit(generate_request(lab.prompt(20), max_tokens=30, ignore_eos=True)) for _ in range(3)]
    for request_id in ids[:2]:
        driver.until(TokenOutput, request_id)
    assert isinstance(answer(driver, TokenizeRequest(content="x")), Tokenized)
    assert driver.running == 2
    driver.finish()
    assert [driver.tokens(request_id) for request_id in ids] == [30, 30, 30]


def test_one_that_was_cancelled_before_the_step_is_done(tiny_lab):
    """Nothing is answered to who left."""
    driver = tiny_lab.driver(slots=2, ctx=256)
    request_id = driver.submit(TokenizeRequest(content="x"))
    driver.engine.cancel(request_id)
    driver.finish()
    assert isinstance(driver.last(request_id), RequestDone)


@pytest.mark.real
@pytest.mark.parametrize(
    "piece", ["lorem ipsum <|im_end|> ", "a", "the quick brown fox ", "<", "é€", "<|im_start|>"]
)
def test_a_text_that_is_too_long_is_told_from_its_beginning(real_lab, piece):
    """About right, never of a text that fits, and without reading a megabyte while streams wait."""
    vocab = real_lab.driver(slots=2, ctx=256).engine._vocab
    text = piece * (1_000_000 // len(piece))
    began = time.thread_time()
    told = vocab.excess(text, 8192)
    assert time.thread_time() - began < 0.6  # reading sixteen characters a token took 0.8 s
    many = len(vocab.tokenize(text[:100_000], add_special=False, parse_special=True)) * len(text) / 100_000
    assert 0.8 * many < told <= 1.05 * many
    for length in (20_000, 32_000, 60_000, 130_000):
        true = len(vocab.tokenize(text[:length], add_special=False, parse_special=True))
        assert vocab.excess(text[:length], true) == 0
