# SPDX-License-Identifier: GPL-3.0-only
"""Grammars in GBNF before llama.cpp sees them: faults are told with their place, absurd sizes refused."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.engine.llama.constraints.gbnf import MAX_NESTING, check_gbnf
from modeld.errors import InvalidGrammar


def until_done(work):
    """Do all parts; return what they make."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def checked(text):
    """Check a grammar without a pause."""
    return until_done(check_gbnf(text))


@pytest.mark.parametrize(
    "text",
    [
        'root ::= "a"',
        'root ::= "a" | "b" |\n "c" # the end\n',
        "root ::= [a-z] [^\\n\\]] [-a] .",
        'root ::= ("a" | b)* b+ b? b{2} b{2,} b{2,5} b{0}\nb ::= "\\x41\\u00e9\\U0001F600\\"\\\\"',
        'root ::= (\n  "a"\n  | "b"\n)\n\nother ::= "é"',
        "\n# only comments first\nroot ::= \r\n root-2\nroot-2 ::= [0-9]+",
        "root ::= ",
    ],
)
def test_sound_grammars_pass(text):
    """What llama.cpp's syntax allows passes, and names no tokens."""
    assert checked(text) == ()


def test_a_grammar_may_name_tokens():
    """`<token>` and `<[id]>`, also negated, are noticed."""
    assert checked('root ::= <think> !</think>* <[7]> "<no>" <think>') == ("<think>", "</think>", "<[7]>")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no rule named root"),
        ('x ::= "a"', "no rule named root"),
        ("root ::= x", "line 1, column 10: no rule is named x"),
        ('root ::= "a\n', "line 1, column 10: this is never closed"),
        ("root ::= [a", "never closed"),
        ("root ::= []", "cannot be empty"),
        ('root ::= ("a"', "line 1, column 10: this parenthesis is never closed"),
        ('root ::= "a")', "expected the end of the rule"),
        ('root = "a"', "column 6: expected ::="),
        ('root ::= "\\q"', "unknown escape"),
        ("root ::= *", "nothing stands before"),
        ('root ::= "a"{x}', "expected {m}"),
        ('root ::= "a"{3,2}', "at most 2 is less than at least 3"),
        ('root ::= "a"{1001}', "more than 1000 repetitions"),
        ('root ::= "a"{99999999999999999999}', "more than 1000 repetitions"),
        ('root ::= (("a"{900}){900}){900}', "more than 100000 elements"),
        ("root ::= " + "(" * 5000, "nested deeper"),
        ('root ::= "a"\n| "b"', "line 2, column 1: expected the name of a rule"),
        ('root ::= "a\0"', "NUL"),
        ("root ::= <", "expected a token"),
        ("root ::= " + '"a" ' * 100_000, "bytes; the most is"),
    ],
)
def test_bad_grammars_are_refused_with_their_place(text, reason):
    """Each fault has its sentence."""
    with pytest.raises(InvalidGrammar) as caught:
        checked(text)
    assert reason in caught.value.message


AMBIGUOUS = {
    "nested": ('root ::= s\ns ::= [a-z ] s [0-9] | [a-z ] s [0-8] | [a-z ] s "1" | "ZZ"', "ways"),
    "in a corner": (f'root ::= "{"x" * 100}" s\ns ::= [a-z] s "0" | [a-z] s "1" | [a-z] s "2" | "Z"', "ways"),
    "behind decoys": (
        "root ::= s\ns ::= "
        + " | ".join(f'"Q{n}"' for n in range(9))
        + ' | "ab" s "x" | "ab" s "y" | "ab" s "z"',
        "ways",
    ),
    "runs": ('root ::= ("-" "-"?){0,20}', "too ambiguous"),
    "counts": ('root ::= (("a"{0,100}){0,100})', "too ambiguous"),
    "doubling": (
        "root ::= a0\n"
        + "".join(f'a{n} ::= a{n + 1} "y" | a{n + 1} "z"\n' for n in range(24))
        + 'a24 ::= "x"',
        "share it",
    ),
    "the same twice": (
        "root ::= a0\n" + "".join(f"a{n} ::= a{n + 1} | a{n + 1}\n" for n in range(40)) + 'a40 ::= "x"',
        "share it",
    ),
    "a long chain": (
        "root ::= a0\n" + "".join(f"a{n} ::= a{n + 1}\n" for n in range(9000)) + 'a9000 ::= "x"',
        "5000",
    ),
    "many": ("root ::= " + " | ".join(f'"{n}"' for n in range(3000)), "more than 2000 ways"),
    "left": ('root ::= root "a" | "b"', "left recursion"),
    "left behind nothing": ('root ::= a root "x" | "y"\na ::= b\nb ::= "z" |', "left recursion"),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
@pytest.mark.slow
def test_grammars_that_llama_cpp_would_lose_itself_in_are_refused(name):
    """Ways that multiply, chains and left recursion are found, and soon."""
    text, reason = AMBIGUOUS[name]
    began = time.thread_time()
    with pytest.raises(InvalidGrammar, match=reason) as caught:
        checked(text)
    assert time.thread_time() - began < 2
    assert len(caught.value.message) < 400


USUAL = {
    "json": r"""root ::= object
value ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws (string ":" ws value ("," ws string ":" ws value)*)? "}" ws
array ::= "[" ws (value ("," ws value)*)? "]" ws
string ::= "\"" ([^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}))* "\"" ws
number ::= "-"? ([0-9] | [1-9] [0-9]{0,15}) ("." [0-9]+)? ([eE] [-+]? [0-9]{1,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}""",
    "arithmetic": """root ::= (expr "=" ws term "\n")+
expr ::= term ([-+*/] term)*
term ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num ::= [0-9]+ ws
ws ::= [ \t\n]*""",
    "lines": 'root ::= ("- " [^\r\n]+ "\n"){1,10}',
    "words": 'root ::= ([A-Za-z]+ " "?)+',
    "kinds of words": 'root ::= (word | num | " ")+\nword ::= [a-zA-Z]+\nnum ::= [0-9]+',
    "sentences": 'root ::= ([A-Z] [a-z ,]* [.!?] " "?)+',
    "code": """root ::= (kind ws name "(" (kind ws name ("," ws kind ws name)*)? ")" ws "{" ws line* "}")*
kind ::= "int" | "float" | "char"
name ::= [a-zA-Z_] [a-zA-Z_0-9]*
line ::= (kind ws name ws "=" ws sum ";" | name ws "=" ws sum ";" | "while" "(" sum ")" "{" line* "}") ws
sum ::= factor (("+" | "-") factor)*
factor ::= name ("(" (sum ("," ws sum)*)? ")")? | [0-9]+ | "(" ws sum ws ")"
ws ::= [ \t\n]+""",
    "500 names": "root ::= " + " | ".join(f'"item number {n}"' for n in range(500)),
    "any text": "root ::= .*",
    "a thousand letters": "root ::= [a-z]{0,1000}",
}


@pytest.mark.parametrize("name", USUAL)
def test_usual_grammars_pass(name):
    """What people write is not taken for ambiguous."""
    assert checked(USUAL[name]) == (), "no token is named in any of them"


@pytest.mark.slow
def test_a_large_grammar_is_judged_soon():
    """The search for ambiguity has a bounded amount of work."""
    rules = "".join(f'r{n} ::= "abc" r{n + 1} | [a-z]+ "x" r{n + 1}?\n' for n in range(6000))
    began = time.thread_time()
    checked(rules + 'r6000 ::= "x"\nroot ::= r0')
    assert time.thread_time() - began < 3


def verdict(grammar):
    """`sound`, or the sentence that says what is wrong with it."""
    try:
        checked(grammar)
    except InvalidGrammar as error:
        return error.message
    return "sound"


@given(st.text(alphabet='rot:=" \n()[]{}|*+?.,\\-^a<>!#0123é', max_size=60))
def test_any_text_is_judged_without_a_crash(text):
    """Whatever a client sends, the answer is a verdict."""
    for grammar in (text, "root ::= " + text):
        assert verdict(grammar)


def test_the_deepest_nesting_passes():
    """The bound itself is allowed."""
    assert verdict("root ::= " + "(" * MAX_NESTING + '"a"' + ")" * MAX_NESTING) == "sound"
    assert verdict("root ::= " + "(" * (MAX_NESTING + 1) + '"a"' + ")" * (MAX_NESTING + 1)) != "sound"
