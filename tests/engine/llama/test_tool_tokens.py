# SPDX-License-Identifier: GPL-3.0-only
"""Control tokens that mark a call are text for those who offered functions, and a prompt may be tokens."""

from __future__ import annotations

import pytest
from support.engine_driver import GREEDY, EngineDriver, generate_request, spec
from support.tiny_gguf import VOCABULARY, write_model
from support.tiny_llama import FIRST_BYTE, TEMPLATE

from modeld.domain.request import Constraint, ConstraintKind, Message, Sampling, Tool
from modeld.domain.tool_calls import THOUGHTS
from modeld.engine.llama.engine import load
from modeld.engine.protocol import RequestAdmitted, RequestFailed

pytestmark = pytest.mark.llama

MARKER, OTHER = VOCABULARY - 2, VOCABULARY - 1


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    folder = tmp_path_factory.mktemp("marked")
    path = write_model(folder / "m.gguf", chat_template=TEMPLATE, controls=("[TOOL_CALLS]", "[OTHER]"))
    engine = load(spec(path, slots=1, ctx=256), lambda _fraction: True)
    yield EngineDriver(engine)
    engine.close()


def always(token):
    return Sampling(temperature=0.0, logit_bias=((token, 1000.0),))


def test_a_marker_is_shown_to_those_who_offered_functions(driver) -> None:
    """Without functions it has no text, and other control tokens never have one."""
    tools = (Tool(name="f"),)
    for offered, token, text in [
        (tools, MARKER, "[TOOL_CALLS]"),
        ((), MARKER, ""),
        (tools, OTHER, ""),
    ]:
        request = generate_request("a", tools=offered, sampling=always(token), max_tokens=2)
        assert driver.generate(request)[0] == text * 2


@pytest.mark.parametrize("marker", ["<think>", "[/THINK]"])
def test_markers_of_thoughts_are_shown_to_those_who_offered_functions(tmp_path, marker) -> None:
    """As whoever looks for calls must know what is none; to others they are no text."""
    path = write_model(tmp_path / "m.gguf", chat_template=TEMPLATE, controls=(marker,))
    engine = load(spec(path, slots=1, ctx=256), lambda _fraction: True)
    for tools, text in (((Tool(name="f"),), marker), ((), "")):
        request = generate_request("a", tools=tools, sampling=always(VOCABULARY - 1), max_tokens=2)
        assert EngineDriver(engine).generate(request)[0] == text * 2
    engine.close()


@pytest.mark.parametrize(
    ("end", "thought"),
    [
        ("<think>\n", "<think>"),
        ("[THINK]", "[THINK]"),
        ("<think>\n\n</think>\n", ""),
        ("<think>.", ""),
        ("", ""),
    ],
)
def test_an_open_thought_at_the_end_of_the_prompt_is_told(tmp_path, end, thought) -> None:
    """Before the first token; not where a grammar binds the text, which then is no thought."""
    template = (
        "{% if not tools == 1 %}{% for m in messages %}{{ m.content }}{% endfor %}{% else %}<tool_call>"
    )
    template += "{% endif %}" + end
    path = write_model(tmp_path / "m.gguf", chat_template=template)
    engine = load(spec(path, slots=1, ctx=256), lambda _fraction: True)
    driver = EngineDriver(engine)
    messages = (Message(role="user", content="Hi"),)
    bound = Constraint(kind=ConstraintKind.JSON_SCHEMA, text='{"type": "object"}')
    for constraint, told in ((None, thought), (bound, "")):
        request = generate_request(prompt=None, messages=messages, constraint=constraint, max_tokens=2)
        assert driver.until(RequestAdmitted, driver.submit(request)).thought == told
        driver.finish()
    driver.until(
        RequestAdmitted,
        driver.submit(generate_request(messages=messages, tools=(Tool(name="f"),), max_tokens=2)),
    )
    [job] = engine._running
    assert job.sampler._constrained._end.decode() == THOUGHTS.get(thought, ""), "a lazy grammar knows it, too"
    driver.finish()
    engine.close()


def test_a_prompt_of_tokens_is_the_prompt(driver) -> None:
    """Nothing is added to it, and its text continues as the same tokens written as text."""
    tokens = tuple(FIRST_BYTE + byte for byte in b"abc")
    request_id = driver.submit(generate_request(prompt_tokens=tokens, sampling=GREEDY))
    assert driver.until(RequestAdmitted, request_id).prompt_tokens == 3
    driver.finish()


def test_a_token_that_there_is_not_is_refused(driver) -> None:
    """With its number, before it waits for a slot."""
    (request_id,) = driver.run(generate_request(prompt_tokens=(1, VOCABULARY)))
    last = driver.last(request_id)
    assert isinstance(last, RequestFailed)
    assert str(VOCABULARY) in last.problem.message
