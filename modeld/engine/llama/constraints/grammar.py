# SPDX-License-Identifier: GPL-3.0-only
"""Turn the constraint of a request into a grammar: schemas for llguidance, GBNF for llama.cpp.

GBNF that passes here is sound in syntax, bounded in size, not left-recursive, and not so ambiguous that
llama.cpp would lose itself in it (`stacks`). What is slow all the same ends in `matcher`.
"""

from __future__ import annotations

import time
from collections.abc import Generator

import msgspec
from llguidance import LLMatcher

from modeld.domain.request import Constraint, ConstraintKind
from modeld.engine.llama.constraints.compiler import GrammarCompiler, StillCompiling
from modeld.engine.llama.constraints.gbnf import check_gbnf
from modeld.engine.llama.constraints.guidance import HEAD, Trial
from modeld.engine.llama.constraints.json_schema import Leniency, json_rule, parse_schema, relaxed
from modeld.engine.llama.constraints.schema_tree import Json
from modeld.errors import InvalidGrammar

SLICE_S = 0.03
"""Seconds after which no further part of a GBNF grammar is looked at in this step: streams have their turn.
To see that llama.cpp will come to an end with one takes up to a second of a core in Python."""


class Grammar(msgspec.Struct, frozen=True):
    """A grammar. `tokens`: the single tokens that it names, control tokens perhaps.

    It binds the text from the first trigger on, or all of it where there is none.
    """

    gbnf: str = ""
    matcher: LLMatcher | None = None
    """That of llguidance, in place of GBNF, for one text."""
    tokens: tuple[str, ...] = ()
    trigger_words: tuple[str, ...] = ()
    trigger_tokens: tuple[int, ...] = ()
    opening_words: tuple[str, ...] = ()
    """Triggers only where nothing but blanks, and thoughts if they are known, was written before them."""
    thought: str | None = None
    """None: thoughts are text like any other. Else no trigger counts within one; the text begins in that of
    this marker (`domain.tool_calls`), or in none if it is empty."""
    notices: tuple[str, ...] = ()
    """What of a schema it does not keep, each in a sentence."""

    @property
    def lazy(self) -> bool:
        """Whether text is free until a trigger comes."""
        return bool(self.trigger_words or self.trigger_tokens or self.opening_words)


class Constraints:
    """Compiles what the text of a request must match. Use it from one thread.

    One at a time: the first request that is not ready holds the others up. What was made is kept until
    another is asked for, as its request may have to wait for its prompt.
    """

    def __init__(self, compiler: GrammarCompiler) -> None:
        self._compiler = compiler
        self._constraint: Constraint | None = None
        self._gbnf: Generator[None, None, tuple[str, ...]] | None = None
        self._schema: Json = {}
        self._grammars: tuple[str, ...] = ()
        self._made: Grammar | InvalidGrammar | None = None

    def forget(self) -> None:
        """Let go of what was made: its text has begun, or its request has left."""
        self._constraint = self._gbnf = self._made = None
        self._grammars = ()

    def of(self, constraint: Constraint, patience_s: float = 0.0) -> Grammar | InvalidGrammar:
        """Return the grammar of a constraint, or why there is none.

        Raises: StillCompiling, and what says that the process that tries grammars is not done.
        """
        if constraint is not self._constraint:
            self._constraint, self._gbnf, self._grammars, self._made = constraint, None, (), None
        if self._made is None:
            try:
                self._made = self._compiled(constraint, patience_s)
            except InvalidGrammar as error:
                # Without the frames that it came through.
                self._made = InvalidGrammar(error.message, details=error.details)
        return self._made

    def _compiled(self, constraint: Constraint, patience_s: float) -> Grammar:
        words, tokens = constraint.trigger_words, constraint.trigger_tokens
        if constraint.kind is ConstraintKind.GRAMMAR:
            return Grammar(
                constraint.text, tokens=self._checked(constraint), trigger_words=words, trigger_tokens=tokens
            )
        if not self._grammars:
            schema = self._schema = parse_schema(constraint.text)
            ways = (Leniency.NONE,) if constraint.strict else tuple(Leniency)
            self._grammars = tuple(f"{HEAD}start: answer\nanswer: {json_rule(schema, way)}\n" for way in ways)
        found = self._compiler.of(self._grammars, patience_s)
        if isinstance(found, InvalidGrammar):
            raise InvalidGrammar(f"the JSON schema cannot be kept: {found.message}")
        return Grammar(
            matcher=found.matcher,
            trigger_words=words,
            trigger_tokens=tokens,
            notices=notices_of(found.trial, self._schema, "the JSON schema"),
        )

    def _checked(self, constraint: Constraint) -> tuple[str, ...]:
        """Look at GBNF for a slice of time; return the tokens that it names. Raises: StillCompiling."""
        if self._gbnf is None:
            self._gbnf = check_gbnf(constraint.text)
        until = time.perf_counter() + SLICE_S
        while True:
            try:
                next(self._gbnf)
            except StopIteration as end:
                named: tuple[str, ...] = end.value
                return named
            except BaseException:  # whatever it is: what broke is begun again, and never taken for no grammar
                self._gbnf = None
                raise
            if time.perf_counter() >= until:
                raise StillCompiling


def notices_of(trial: Trial, schema: Json, what: str) -> tuple[str, ...]:
    """Return what of a schema is not kept by the way that was chosen; `what`: whose schema it is."""
    if not trial.chosen:
        return ()
    left_out = (*relaxed(schema, Leniency(trial.chosen))[1], *trial.warnings)
    return (f"{what} is not kept whole: {'; '.join(left_out) or trial.reasons[0]}",)
