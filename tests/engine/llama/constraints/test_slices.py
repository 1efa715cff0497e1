# SPDX-License-Identifier: GPL-3.0-only
"""Grammars are compiled in slices, so that streams go on meanwhile. On the tiny model."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from support.engine_driver import generate_request

from modeld.domain.request import Constraint, ConstraintKind
from modeld.engine.llama.constraints import slices
from modeld.engine.llama.constraints.grammar import compile_constraint
from modeld.engine.llama.constraints.slices import Constraints, StillCompiling, at_once
from modeld.engine.protocol import RequestAdmitted, RequestFailed, TokenOutput
from modeld.errors import InvalidGrammar, InvalidRequest, PromptTooLong


def schema(properties=6):
    """A constraint of many parts: optional properties are looked at in all their combinations."""
    text = json.dumps(
        {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(properties)}}
    )
    return Constraint(kind=ConstraintKind.JSON_SCHEMA, text=text)


def parts_of(constraint):
    """How many parts the work for a constraint has."""
    return sum(1 for _ in compile_constraint(constraint))


def slices_of(constraints, constraint):
    """Ask until it is there; return what was made, and how often it was not there yet."""
    pauses = 0
    while True:
        try:
            return constraints.of(constraint), pauses
        except StillCompiling:
            pauses += 1


@pytest.fixture
def one_part(monkeypatch):
    """A slice is one part."""
    monkeypatch.setattr(slices, "SLICE_S", -1.0)


def test_a_grammar_is_made_in_slices_and_is_the_same(one_part):
    """It is there after as many slices as it has parts, and then at once."""
    constraints, wanted = Constraints(), schema()
    made, pauses = slices_of(constraints, wanted)
    assert made == at_once(compile_constraint(wanted))
    assert pauses == parts_of(wanted) > 100
    assert constraints.of(wanted) is made


def test_a_slice_has_as_many_parts_as_there_is_time_for(monkeypatch):
    """The clock is looked at after each part."""
    now = iter(range(10**6))
    monkeypatch.setattr(slices, "time", SimpleNamespace(perf_counter=lambda: next(now)))
    monkeypatch.setattr(slices, "SLICE_S", 10)
    wanted = schema()
    assert slices_of(Constraints(), wanted)[1] == parts_of(wanted) // 10


def test_another_constraint_takes_the_place_of_one_that_is_not_there_yet(one_part):
    """Its request has left. An equal one of another request is another one."""
    constraints, first, second = Constraints(), schema(), schema()
    with pytest.raises(StillCompiling):
        constraints.of(first)
    made, pauses = slices_of(constraints, second)
    assert pauses == parts_of(second)
    assert slices_of(constraints, first) == (made, pauses)


def test_what_breaks_is_begun_anew_when_it_is_asked_for_again(monkeypatch):
    """A text is never left unbound because its grammar broke halfway the last time."""
    constraints, wanted = Constraints(), schema()

    def broken(constraint):
        yield
        raise RecursionError(constraint.text)

    with monkeypatch.context() as patched:
        patched.setattr(slices, "compile_constraint", broken)
        with pytest.raises(RecursionError):
            slices_of(constraints, wanted)
    assert slices_of(constraints, wanted)[0] == at_once(compile_constraint(wanted))


def test_what_is_wrong_is_told_as_often_as_it_is_asked_for(one_part):
    """Also in the middle of the work; and the next one is none the worse for it."""
    constraints = Constraints()
    wrong = Constraint(kind=ConstraintKind.GRAMMAR, text='root ::= "a" | b\nb ::= "b"\n\nc ::= d')
    for _ in range(2):
        made, _ = slices_of(constraints, wrong)
        assert isinstance(made, InvalidGrammar)
        assert "no rule is named d" in made.message
        assert made.details == {"line": 4, "column": 7}
    assert slices_of(constraints, schema())[0].gbnf


def test_streams_go_on_while_a_grammar_is_compiled(tiny_lab, one_part):
    """A token each step; and the request has its answer in the end."""
    driver = tiny_lab.driver(slots=2, ctx=512, ubatch=64)
    stream = driver.submit(generate_request("hello", max_tokens=200, ignore_eos=True))
    driver.until(TokenOutput, stream)
    bound = driver.submit(generate_request("x", constraint=schema(), max_tokens=3))
    before = driver.tokens(stream)
    driver.until(RequestAdmitted, bound)
    assert driver.tokens(stream) - before > 100
    driver.finish()
    assert driver.text(bound).startswith("{")


def test_who_leaves_while_his_grammar_is_compiled_is_gone(tiny_lab, one_part):
    """The next one behind him is served, and nothing is left."""
    driver = tiny_lab.driver(slots=2, ctx=512, ubatch=64)
    leaving = driver.submit(generate_request("x", constraint=schema(), max_tokens=3))
    behind = driver.submit(generate_request("y", constraint=schema(3), max_tokens=3))
    driver.step()
    assert not driver.outputs[leaving]
    driver.engine.cancel(leaving)
    driver.finish()
    assert driver.tokens(leaving) == 0
    assert driver.text(behind).startswith("{")


def test_what_is_wrong_with_a_prompt_is_told_before_what_is_wrong_with_a_grammar(tiny_lab, one_part):
    """As it ever was, though the grammar is looked at first."""
    driver = tiny_lab.driver(slots=2, ctx=512, ubatch=64)
    wrong = Constraint(kind=ConstraintKind.GRAMMAR, text="root ::= nothing")
    for prompt, kind in (
        ("word " * 5000, PromptTooLong.kind),
        ("", InvalidRequest.kind),
        ("x", InvalidGrammar.kind),
    ):
        (refused,) = driver.run(generate_request(prompt, constraint=wrong))
        assert isinstance(driver.last(refused), RequestFailed)
        assert driver.last(refused).problem.kind == kind
