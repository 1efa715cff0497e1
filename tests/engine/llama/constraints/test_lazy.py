# SPDX-License-Identifier: GPL-3.0-only
"""Lazy grammars: free until a trigger comes, bound from its beginning on. On the tiny model."""

from __future__ import annotations

import math

import pytest
from support.engine_driver import generate_request
from support.grammars import grammar_of
from support.logits_row import GREEDY, LogitsRow
from support.tiny_llama import BOS, EOS, FIRST_BYTE

from modeld.domain.request import Constraint, ConstraintKind, Sampling
from modeld.domain.request_events import FinishReason
from modeld.engine.llama.constraints import matcher as constrained
from modeld.engine.llama.constraints.grammar import Grammar
from modeld.engine.llama.constraints.matcher import NO_TOKEN
from modeld.engine.llama.sampling.sampler import Sampler
from modeld.engine.protocol import RequestFailed
from modeld.errors import InvalidGrammar

CALL = 'root ::= "<c>" [0-9] "</c>"'
HIGH, LOW = 9.0, 5.0


@pytest.fixture
def row(tiny_lab):
    engine = tiny_lab.driver(slots=2, ctx=512, ubatch=64, prefix_cells=0).engine
    yield LogitsRow(engine)
    engine._places.memory.clear()


def letters(text):
    return [FIRST_BYTE + byte for byte in text.encode()]


class Text:
    """One generation whose next token a test wishes for, and may not get."""

    def __init__(self, row, gbnf, *words, tokens=(), sampling=GREEDY, **options) -> None:
        constraint = Constraint(
            kind=ConstraintKind.GRAMMAR, text=gbnf, trigger_words=words, trigger_tokens=tuple(tokens)
        )
        self.row = row
        grammar = grammar_of(row.vocab, constraint)
        self.sampler = Sampler(row.vocab, sampling, context=256, grammar=grammar, **options)

    def wish(self, *tokens):
        return self.row.draw_preferring(self.sampler, *tokens)

    def write(self, text):
        """Wish for the letters of a text; each of them must be drawn."""
        for letter in letters(text):
            assert self.wish(letter) == letter

    def close(self):
        self.sampler.close()


def word_of(row, text):
    """Return the one token that is a word of several letters."""
    (token,) = [token for token in range(row.vocab.size) if row.vocab.piece(token) == text]
    return token


def test_text_is_free_until_the_trigger_and_bound_from_it_on(row):
    """Anything may come before; then only what the grammar allows, and in the end nothing but the end."""
    text = Text(row, CALL, "<c>")
    text.write("z <z c> <<c>")
    (seven,) = letters("7")
    assert text.wish(*letters("z"), EOS, seven) == seven
    for letter in letters("</c>"):
        assert text.wish(*letters("z")) == letter
    assert text.wish(*letters("z")) == EOS
    text.close()


def test_free_text_may_end_without_a_trigger(row):
    """A lazy grammar forces nobody to begin."""
    text = Text(row, CALL, "<c>")
    text.write("hello")
    assert text.wish(EOS) == EOS
    text.close()


def test_the_first_of_several_triggers_begins(row):
    """Words are looked for together; the grammar goes on with the one that came."""
    text = Text(row, 'root ::= "<a>" "1" | "[b" "2"', "<a>", "[b")
    text.write("<a [b")
    assert text.wish(*letters("1")) == letters("2")[0]
    text.close()


def test_a_trigger_within_a_token_begins_there(row):
    """A word that begins and ends inside of tokens binds from its first letter on."""
    word = word_of(row, b"w45")
    text = Text(row, 'root ::= "45" [x-z]', "45")
    assert text.wish(word) == word
    assert text.wish(*letters("a")) in letters("xyz")
    text.close()


def test_a_token_that_goes_on_against_the_grammar_is_not_drawn(row):
    """What completes a trigger must also go on as the grammar does; else the next best token is taken."""
    word = word_of(row, b"w45")
    text = Text(row, 'root ::= "w4" [x-z]', "w4")
    assert text.wish(word, *letters("q")) == letters("q")[0]
    text.write("w4")
    assert text.wish(word) in letters("xyz")
    text.close()


def test_a_token_can_be_the_trigger(row):
    """It binds the text itself, and the grammar begins with it."""
    text = Text(row, "root ::= <[100]> [0-9]", tokens=[100])
    text.write("09")
    assert text.wish(100) == 100
    assert text.wish(*letters("z")) in letters("0123456789")
    text.close()


def test_a_word_that_is_a_control_token_is_that_token(row):
    """A control token has no text that could be found; as a trigger it is known by its number."""
    text = Text(row, 'root ::= "<s>" [0-9]', "<s>")
    text.write("<s>z")
    assert text.wish(BOS) == BOS
    assert text.wish(*letters("z")) in letters("0123456789")
    text.close()


def test_control_tokens_are_hidden_once_the_grammar_binds(row):
    """A grammar that matches their spelling does not get them, as in an eager one."""
    text = Text(row, 'root ::= "<c>" "<s>"', "<c>")
    assert text.wish(BOS) == BOS
    text.write("<c>")
    assert text.wish(BOS) == letters("<")[0]
    text.close()


def test_thoughts_are_text_to_a_clients_own_grammar(row):
    """Only grammars of calls know of them."""
    text = Text(row, CALL, "<c>")
    text.write("<think><c>")
    assert text.wish(*letters("z")) in letters("0123456789")
    text.close()


def test_the_draw_follows_bans_and_the_seed(row):
    """A banned token stays banned in both parts, and the same seed draws the same."""
    ban = tuple((token, -math.inf) for token in range(FIRST_BYTE, 320) if token not in letters("<c>05/"))
    sampling = Sampling(temperature=2.0, top_k=0, seed=3, logit_bias=ban)
    drawn = []
    for _ in range(2):
        text = Text(row, CALL, "<c>", sampling=sampling, ignore_end=True)
        text.write("<c>")
        drawn.append([text.wish() for _ in range(5)])
        assert drawn[-1][0] in letters("05")
        assert text.wish() == NO_TOKEN
        text.close()
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    ("gbnf", "words", "tokens", "told"),
    [
        (CALL, ["<d>"], [], "does not begin with its trigger '<d>'"),
        (CALL, ["<c>x"], [], "does not begin with its trigger '<c>x'"),
        (CALL, [], [100], "does not begin with its trigger token 100"),
        (CALL, [], [320], "is token 320; this model has tokens 0 to 319"),
        (CALL, [], [EOS], "which ends the text"),
        (CALL, ["</s>"], [], "which ends the text"),
        (CALL, [""], [], "has 0 bytes"),
        (CALL, ["<" * 201], [], "has 201 bytes"),
        (CALL, ["<c>"] * 17, [], "has 17 triggers; the most is 16"),
        ('root ::= "', ["<c>"], [], "never closed"),
        ("root ::= root", ["<c>"], [], "recursion"),
        ('root ::= (("a"{0,100}){0,100})', ["a"], [], "ambiguous"),
    ],
)
def test_bad_lazy_grammars_are_refused(row, gbnf, words, tokens, told):
    """What an eager grammar is refused for, and triggers that it could never begin with."""
    with pytest.raises(InvalidGrammar) as caught:
        Text(row, gbnf, *words, tokens=tokens)
    assert told in caught.value.message


@pytest.mark.parametrize("name", ["<secret>", "!<se cret>", "<[secret]>", "<[ 7]>", "<[]>"])
@pytest.mark.parametrize("words", [(), ("<c>",)])
def test_a_token_that_there_is_not_is_refused_before_llama_cpp_sees_it(row, name, words, capfd):
    """That would write the whole grammar, which is the client's, to standard error."""
    with pytest.raises(InvalidGrammar) as caught:
        Text(row, f'root ::= "<c>" {name}', *words)
    assert f"names {name.lstrip('!')}, which is no single token" in caught.value.message
    assert "secret" not in "".join(capfd.readouterr())


def test_tokens_that_there_are_may_be_named(row):
    """By their text and by their number."""
    text = Text(row, f'root ::= <s> <[{FIRST_BYTE}]> !<[1]> "<nothing>"')
    assert text.wish(EOS, BOS) == BOS
    text.close()


def test_the_check_of_a_trigger_leaves_the_grammar_at_its_beginning(row):
    """Several triggers are tried out one after the other, and each works afterwards."""
    for chosen in ("<a>", "<ab>", "<abc>"):
        text = Text(row, 'root ::= "<a" "b"? "c"? ">" [0-9]', "<a>", "<ab>", "<abc>")
        text.write(chosen)
        assert text.wish(*letters("z")) in letters("0123456789")
        text.close()


def test_a_lazy_request_runs_in_the_engine(tiny_lab):
    """It is served alongside others, with the reasons and texts that the contract asks for."""
    driver = tiny_lab.driver(slots=2, ctx=512, ubatch=64)
    biases = tuple((token, 100.0) for token in letters("<"))
    lazy = Constraint(kind=ConstraintKind.GRAMMAR, text='root ::= "<" "abc"', trigger_words=("<",))
    request = generate_request(
        "x", constraint=lazy, max_tokens=20, sampling=Sampling(temperature=0.0, logit_bias=biases)
    )
    bound, free = driver.run(request, generate_request("hello", max_tokens=9, ignore_eos=True))
    assert driver.text(bound) == "<abc"
    assert driver.last(bound).reason is FinishReason.STOP
    assert driver.tokens(free) == 9


def test_a_lazy_grammar_has_only_so_much_time(tiny_lab, monkeypatch):
    """The bound on the time of a draw holds for it too, and ends this request only."""
    driver = tiny_lab.driver(slots=2, ctx=512, ubatch=64)
    monkeypatch.setattr(constrained, "MAX_DRAW", -1.0)
    biases = tuple((token, 100.0) for token in letters("<"))
    lazy = Constraint(kind=ConstraintKind.GRAMMAR, text='root ::= "<" "abc"', trigger_words=("<",))
    slow = generate_request(
        "x", constraint=lazy, max_tokens=20, sampling=Sampling(temperature=0.0, logit_bias=biases)
    )
    slow, free = driver.run(slow, generate_request("hello", max_tokens=9, ignore_eos=True))
    assert isinstance(driver.last(slow), RequestFailed)
    assert "took more than" in driver.last(slow).problem.message
    assert driver.tokens(free) == 9


def test_a_grammar_without_triggers_is_not_lazy():
    """Only triggers make it so."""
    assert not Grammar(CALL).lazy
    assert Grammar(CALL, trigger_tokens=(0,)).lazy
