# SPDX-License-Identifier: GPL-3.0-only
"""Grammars are compiled beside the streams: GBNF in slices, schemas in a process and a thread."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from msgspec.structs import replace
from support.engine_driver import generate_request
from support.grammars import compiler_for, until_compiled
from support.tiny_llama import FIRST_BYTE

from modeld.domain.request import Constraint, ConstraintKind, Sampling, Tool
from modeld.domain.request_events import FinishReason
from modeld.engine.llama.constraints import compiler as compiler_module
from modeld.engine.llama.constraints import grammar as grammar_module
from modeld.engine.llama.constraints.compiler import Compiled, GrammarCompiler, StillCompiling
from modeld.engine.llama.constraints.gbnf import check_gbnf
from modeld.engine.llama.constraints.grammar import Constraints
from modeld.engine.llama.constraints.guidance import HEAD, try_grammars
from modeld.engine.llama.constraints.matcher import GuidedDraw
from modeld.engine.protocol import RequestAdmitted, RequestFailed, TokenOutput
from modeld.errors import InvalidGrammar, InvalidRequest, PromptTooLong

GBNF = Constraint(
    kind=ConstraintKind.GRAMMAR,
    text="root ::= "
    + " | ".join(f"r{n}" for n in range(2))
    + "".join(f'\nr{n} ::= "{n}" [a-z]*' for n in range(2)),
)
NUMBER = f'{HEAD}start: %json {{"type": "integer"}}\n'


def schema(**more):
    text = json.dumps(
        {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], **more}
    )
    return Constraint(kind=ConstraintKind.JSON_SCHEMA, text=text)


@pytest.fixture
def one_part(monkeypatch):
    """A slice is one part."""
    monkeypatch.setattr(grammar_module, "SLICE_S", -1.0)


@pytest.fixture
def vocab(tiny_lab):
    return tiny_lab.driver(slots=2, ctx=512, ubatch=64).engine._vocab


def slices_of(constraints, constraint):
    """Ask until it is there; return what was made, and how often it was not there yet."""
    pauses = 0
    while True:
        try:
            return constraints.of(constraint), pauses
        except StillCompiling:
            pauses += 1


def test_gbnf_is_looked_at_in_slices_and_then_at_once(vocab, one_part):
    """It is there after as many slices as it has parts."""
    with compiler_for(vocab) as compiler:
        constraints = Constraints(compiler)
        made, pauses = slices_of(constraints, GBNF)
        assert made.gbnf == GBNF.text
        assert pauses == sum(1 for _ in check_gbnf(GBNF.text)) > 1
        assert constraints.of(GBNF) is made


def test_another_constraint_takes_the_place_of_one_that_is_not_there_yet(vocab, one_part):
    """Its request has left. An equal one of another request is another one."""
    second = Constraint(kind=ConstraintKind.GRAMMAR, text=GBNF.text)
    with compiler_for(vocab) as compiler:
        constraints = Constraints(compiler)
        with pytest.raises(StillCompiling):
            constraints.of(GBNF)
        made, pauses = slices_of(constraints, second)
        assert slices_of(constraints, GBNF) == (made, pauses)


def test_what_breaks_is_begun_anew_when_it_is_asked_for_again(vocab, monkeypatch):
    """A text is never left unbound because its grammar broke halfway the last time."""

    def broken(text):
        yield
        raise RecursionError(text)

    with compiler_for(vocab) as compiler:
        constraints = Constraints(compiler)
        with monkeypatch.context() as patched:
            patched.setattr(grammar_module, "check_gbnf", broken)
            with pytest.raises(RecursionError):
                slices_of(constraints, GBNF)
        assert slices_of(constraints, GBNF)[0].gbnf == GBNF.text


def test_what_is_wrong_is_told_as_often_as_it_is_asked_for(vocab, one_part):
    """Also in the middle of the work; and the next one is none the worse for it."""
    wrong = Constraint(kind=ConstraintKind.GRAMMAR, text='root ::= "a" | b\nb ::= "b"\n\nc ::= d')
    with compiler_for(vocab) as compiler:
        constraints = Constraints(compiler)
        for _ in range(2):
            made, _ = slices_of(constraints, wrong)
            assert isinstance(made, InvalidGrammar)
            assert "no rule is named d" in made.message
            assert made.details == {"line": 4, "column": 7}
        assert slices_of(constraints, schema())[0].matcher is not None


def test_trials_are_kept_and_the_oldest_forgotten(vocab, monkeypatch):
    """So is what does not compile; nothing is tried twice. What was made is the same until `forget`."""
    tried = []

    def trying(grammars):
        tried.append(grammars)
        return try_grammars(grammars)

    monkeypatch.setattr(compiler_module, "KEPT", 2)
    compiler = GrammarCompiler(vocab, trying)
    first = compiler.of((NUMBER,), 10.0)
    assert isinstance(first, Compiled)
    assert compiler.of((NUMBER,), 10.0) is first
    compiler.forget()
    assert compiler.of((NUMBER,), 10.0).matcher is not first.matcher
    bad = (f"{HEAD}start: nothing\n",)
    assert isinstance(compiler.of(bad, 10.0), InvalidGrammar)
    assert isinstance(compiler.of((NUMBER,), 10.0), Compiled)
    assert isinstance(compiler.of(bad, 10.0), InvalidGrammar)
    assert len(tried) == 2
    compiler.of((f"{NUMBER}\n",), 10.0)
    assert isinstance(compiler.of((NUMBER,), 10.0), Compiled)
    assert len(tried) == 4, "the first was forgotten"
    compiler.close()


def test_a_schema_serves_any_number_of_texts(vocab):
    """Each has a lexer of its own: with one for all, this pattern used up its states after ten texts."""
    pattern = Constraint(
        kind=ConstraintKind.JSON_SCHEMA,
        text=json.dumps({"type": "array", "items": {"type": "string", "pattern": "^[ab]*a[ab]{16}$"}}),
    )
    with compiler_for(vocab) as compiler:
        for number in range(25):
            constraints, chance = Constraints(compiler), np.random.default_rng(number)
            compiler.forget()
            grammar = until_compiled(lambda constraints=constraints: constraints.of(pattern, 10.0))
            draw = GuidedDraw(vocab, grammar.matcher)
            text = b'["' + bytes(chance.choice([97, 98], 200).tolist())
            assert draw.feed([FIRST_BYTE + byte for byte in text]), number
            draw.close()


def test_choices_of_one_constraint_have_a_matcher_each(tiny_lab):
    """They share the object, and are written at the same time."""
    driver = tiny_lab.driver(slots=2, ctx=512, ubatch=64)
    text = '{"type": "array", "items": {"enum": ["x", "y"]}, "minItems": 3, "maxItems": 3}'
    bound = Constraint(kind=ConstraintKind.JSON_SCHEMA, text=text)
    tool = Tool(name="f", parameters='{"properties": {"n": {"enum": [10, 20]}}, "required": ["n"]}')
    call = Constraint(kind=ConstraintKind.CALL, tools=(tool,), text="")
    for constraint in (bound, call):
        requests = [
            generate_request("x", constraint=constraint, max_tokens=200, sampling=Sampling(seed=seed))
            for seed in (1, 2)
        ]
        for choice in driver.run(*requests):
            assert len(json.loads(driver.text(choice))) in {2, 3}


def test_a_vocabulary_without_an_end_is_served(vocab, monkeypatch):
    """A complete text ends there, as nothing may follow it."""
    monkeypatch.setattr(vocab, "end_tokens", frozenset())
    with compiler_for(vocab) as compiler:
        made = until_compiled(lambda: Constraints(compiler).of(schema(), 10.0))
    draw = GuidedDraw(vocab, made.matcher)
    assert draw.feed([FIRST_BYTE + byte for byte in b'{"a":"x"}'])
    assert not draw.feed([FIRST_BYTE])
    draw.close()
    draw.close()


def test_the_thread_ends_with_the_compiler(vocab):
    """It is joined, also when it still works."""
    others = set(threading.enumerate())
    compiler = GrammarCompiler(vocab, try_grammars)
    with pytest.raises(StillCompiling):
        compiler.of((NUMBER,), 0.0)
    (own,) = set(threading.enumerate()) - others
    assert own.name.startswith("grammars")
    compiler.close()
    assert not own.is_alive()
    compiler.close()


def test_a_long_chain_of_references_does_not_end_the_engine(vocab):
    """The thread has a stack for as many as fit into a schema; the process that tries them may die of it."""
    links = {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(2000)}
    text = json.dumps({"$defs": {**links, "d2000": {"type": "integer"}}, "$ref": "#/$defs/d0"})
    with compiler_for(vocab) as compiler:
        compiler._trial = None
        trial = compiler_module.Trial(0)
        compiler._try = lambda _grammars: trial
        found = until_compiled(lambda: compiler.of((f"{HEAD}start: %json {text}\n",), 20.0))
    assert isinstance(found, Compiled)


def test_a_schema_that_is_never_done_is_refused_and_streams_go_on(tiny_lab):
    """The process that tries it is stopped after its time; a stream has its tokens meanwhile."""
    driver = tiny_lab.driver(slots=2, ctx=512, ubatch=64)
    stream = driver.submit(generate_request("hello", max_tokens=400, ignore_eos=True))
    driver.until(TokenOutput, stream)
    slow = Constraint(
        kind=ConstraintKind.JSON_SCHEMA, text='{"type": "integer", "multipleOf": 12345678}', strict=True
    )
    refused = driver.submit(generate_request("x", constraint=slow, max_tokens=3))
    driver.until(RequestFailed, refused)
    assert driver.tokens(stream) > 50
    problem = driver.last(refused).problem
    assert problem.kind == InvalidGrammar.kind
    assert "took more than 2 s" in problem.message
    after = driver.submit(generate_request("x", constraint=schema(), max_tokens=40))
    driver.finish()
    assert driver.text(after).startswith("{")


def test_what_is_not_kept_is_told_with_the_slot(tiny_lab):
    """Of a schema, and of a function; and nothing is told of those that are kept."""
    driver = tiny_lab.driver(slots=2, ctx=512, ubatch=64)
    loose = schema(dependentRequired={"a": ["b"]})
    tool = Tool(name="f", parameters='{"type": "string", "not": {"const": 1}}')
    call = Constraint(kind=ConstraintKind.CALL, text="", tools=(tool,))
    ids = driver.run(
        generate_request("x", constraint=loose, max_tokens=2),
        generate_request("x", constraint=call, max_tokens=2),
        generate_request("x", constraint=schema(), max_tokens=2),
    )
    told = [
        output.notices
        for request_id in ids
        for output in driver.outputs[request_id]
        if isinstance(output, RequestAdmitted)
    ]
    assert "dependentRequired" in told[0][0]
    assert 'the function "f"' in told[1][0]
    assert told[2] == ()


def test_a_forced_call_and_a_schema_end_by_themselves(tiny_lab):
    """The text is complete, and nothing follows it."""
    driver = tiny_lab.driver(slots=2, ctx=512, ubatch=64)
    tool = Tool(name="f", parameters='{"type": "object", "properties": {}, "additionalProperties": false}')
    call = Constraint(kind=ConstraintKind.CALL, text="", tools=(tool,))
    called, bound = driver.run(
        generate_request("x", constraint=call, max_tokens=200),
        generate_request("x", constraint=schema(), max_tokens=200),
    )
    assert json.loads(driver.text(called)) == {"name": "f", "arguments": {}}
    assert json.loads(driver.text(bound))["a"] in {"x", "y"}
    assert driver.last(bound).reason is FinishReason.STOP


def test_streams_go_on_while_a_grammar_is_checked(tiny_lab, one_part):
    """A token each step; and the request has its answer in the end."""
    driver = tiny_lab.driver(slots=2, ctx=512, ubatch=64)
    stream = driver.submit(generate_request("hello", max_tokens=300, ignore_eos=True))
    driver.until(TokenOutput, stream)
    bound = driver.submit(generate_request("x", constraint=replace(GBNF), max_tokens=3))
    before = driver.tokens(stream)
    driver.until(RequestAdmitted, bound)
    assert driver.tokens(stream) - before >= sum(1 for _ in check_gbnf(GBNF.text))
    driver.finish()
    assert driver.text(bound)[0].isdigit()


def test_who_leaves_while_his_grammar_is_compiled_is_gone(tiny_lab, one_part):
    """The next one behind him is served, and nothing is left."""
    driver = tiny_lab.driver(slots=2, ctx=512, ubatch=64)
    own = replace(GBNF)  # What was asked for last is kept.
    leaving = driver.submit(generate_request("x", constraint=own, max_tokens=3))
    behind = driver.submit(generate_request("y", constraint=schema(), max_tokens=3))
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
