# SPDX-License-Identifier: GPL-3.0-only
"""Compile Lark grammars by llguidance, within limits: for the engine, and for the process that tries them.

A schema comes from a stranger, and llguidance can be kept busy for minutes by one of a few hundred bytes
(multiples, patterns under `allOf`), or end the process by a chain of a thousand references. So each grammar
is compiled in a confined process first (`prompts.render_child`), which has `TRY_CPU_S`.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from modeld.errors import InvalidGrammar

HEAD = '%llguidance {"no_forcing": true}\n'
"""First line of each grammar. Forced text would be tokenised with the interpreter's lock held."""
TRY_CPU_S = 2.0
"""CPU seconds in which a grammar is compiled, or else is refused."""
_LIMITS = LLParserLimits(
    step_lexer_fuel=60_000,
    step_max_items=20_000,
    max_items_in_row=5_000,
    max_lexer_states=50_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)
"""With these no mask of the official test suite and of our own hostile schemas took 50 ms; half of the fuel
refuses an enumeration of 2,500 words."""
_REASON_CHARACTERS = 300
_QUOTE = "'"
_ELSEWHERE = f"Resource {_QUOTE}"
"""So llguidance begins to say that it fetches nothing."""


class Trial(msgspec.Struct, frozen=True):
    """Which of several grammars is the first that compiles.

    `chosen`: its index; None: none does. `reasons`: why each before it does not.
    `warnings`: what it leaves out.
    """

    chosen: int | None
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def compile_grammar(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    """Return the matcher of a grammar that can begin. Raises: InvalidGrammar."""
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=_LIMITS)
    if not matcher.is_error():
        matcher.compute_bitmask()  # What fails in its first step fails here.
    if matcher.is_error():
        raise InvalidGrammar(reason_of(matcher))
    return matcher


def try_grammars(grammars: Sequence[str]) -> Trial:
    """Compile one grammar after the other for a vocabulary of bytes, until one succeeds."""
    tokenizer = LLTokenizer("byte")
    reasons: list[str] = []
    for index, grammar in enumerate(grammars):
        try:
            matcher = compile_grammar(tokenizer, grammar)
        except InvalidGrammar as error:
            reasons.append(error.message)
        else:
            warnings = tuple(warning[:_REASON_CHARACTERS] for warning in matcher.get_grammar_warnings())
            return Trial(index, tuple(reasons), warnings)
    return Trial(None, tuple(reasons))


def reason_of(matcher: LLMatcher) -> str:
    """Return what is wrong, in one line. llguidance adds the grammar, and where in it."""
    lines = matcher.get_error().split("\n")
    line = lines[0].rpartition("failed to compile JSON schema: ")[2]
    if line.endswith("error:"):  # Of a pattern: the pattern follows, and then what is wrong with it.
        line = next((f"a pattern: {more[7:]}" for more in lines if more.startswith("error: ")), line)
    if line.startswith(_ELSEWHERE):
        line = f"$ref {line.removeprefix(_ELSEWHERE).partition(_QUOTE)[0]!r} leads outside of the schema"
    return line[:_REASON_CHARACTERS]
