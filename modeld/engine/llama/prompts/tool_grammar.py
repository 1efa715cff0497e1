# SPDX-License-Identifier: GPL-3.0-only
"""Turn functions into grammars of calls: lazy ones, for calls a model may begin, and forced ones.

A call that begins must be written to its end, with the name of a function that was offered and arguments
that satisfy its schema; more calls may follow it, and nothing else. What cannot be compiled binds less:
such a function's arguments are any object, unless it is `strict`.

Each function is tried by itself, so that one that cannot be compiled costs no other its schema, and what came
of it is remembered: agents send the same functions with every turn.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict

import msgspec
from msgspec.structs import replace

from modeld.domain.request import Tool
from modeld.domain.tool_calls import (
    HERMES_BEGIN,
    HERMES_END,
    LLAMA_TAG,
    MISTRAL_ARGUMENTS,
    MISTRAL_CALLS,
    MISTRAL_ID,
    argument_schema,
    call_schema,
)
from modeld.engine.llama.constraints.compiler import Compiled, GrammarCompiler
from modeld.engine.llama.constraints.grammar import Grammar, notices_of
from modeld.engine.llama.constraints.guidance import HEAD
from modeld.engine.llama.constraints.json_schema import Leniency, json_rule, parse_schema
from modeld.engine.llama.constraints.schema_tree import Json
from modeld.engine.llama.prompts.tool_form import CallForm
from modeld.errors import InvalidGrammar

KEPT = 1024
"""Functions that are remembered. More than one request has."""
MOST_BYTES = 256 * 1024
"""Of one grammar."""
MOST_S = 5.0
"""What trying the functions of one request may take, as others wait behind it. What is done by then is
remembered."""
_ANY_OBJECT = '{"type": "object"}'
_LLAMA_OPENINGS = ('{{"name": "{}", "parameters"', '{{"name":"{}","parameters"')
"""Llama 3 leaves its tag out most often: text that begins like this, with the name of a function that was
offered, is a call. With less of it, it may as well be data."""
_STARTS = {
    CallForm.HERMES: f'("{HERMES_BEGIN}" gap call gap "{HERMES_END}" gap)+',
    CallForm.MISTRAL_LIST: f'"{MISTRAL_CALLS}" gap "[" gap call ("," gap call)* "]" gap',
    CallForm.MISTRAL_NAMES: f'("{MISTRAL_CALLS}" gap call gap)+',
    CallForm.LLAMA: f'("{LLAMA_TAG}" gap)? call (";" gap call)*',
}
_GAP = "gap: /\\n{0,2} {0,4}/"
_MARKERS = {
    CallForm.HERMES: HERMES_BEGIN,
    CallForm.MISTRAL_LIST: MISTRAL_CALLS,
    CallForm.MISTRAL_NAMES: MISTRAL_CALLS,
    CallForm.LLAMA: LLAMA_TAG,
}


class _Rule(msgspec.Struct, frozen=True):
    """How a call of one function is written in Lark, and what of its schema that does not keep."""

    text: str
    notices: tuple[str, ...] = ()


class CallGrammars:
    """Compiles the functions of requests. Use it from one thread."""

    def __init__(self, compiler: GrammarCompiler) -> None:
        self._compiler = compiler
        self._known: OrderedDict[tuple[Tool, CallForm | None], _Rule | InvalidGrammar] = OrderedDict()
        self._asked: tuple[Tool, ...] = ()
        self._since = 0.0
        """When these were first asked for."""

    def of(self, tools: tuple[Tool, ...], form: CallForm, patience_s: float = 0.0) -> Grammar | None:
        """Return the grammar of calls of these functions; None where they are too much for one.

        Raises: StillCompiling and its like, see `GrammarCompiler.of`; InvalidGrammar for a function that is
          strict and cannot be compiled.
        """
        found = self._compiled(tools, form, _STARTS[form], "", patience_s)
        if isinstance(found, InvalidGrammar):
            if any(tool.strict for tool in tools):
                raise found
            return None
        named = _LLAMA_OPENINGS if form is CallForm.LLAMA else ()
        openings = tuple(opening.format(tool.name) for opening in named for tool in tools)
        return replace(found, trigger_words=(_MARKERS[form],), opening_words=openings, thought="")

    def forced(
        self, tools: tuple[Tool, ...], or_else: str, *, strict: bool, patience_s: float = 0.0
    ) -> Grammar:
        """Return the grammar of a text that is the call of one function, an object of `name` and `arguments`.

        `or_else`: JSON text of a schema that the text may satisfy instead; empty: none. `strict`: whether it
        must be kept whole.

        Raises: as `of`; InvalidGrammar.
        """
        start = "call | answer" if or_else else "call"
        answer = ""
        notices: tuple[str, ...] = ()
        if or_else:
            rule = self._answer(or_else, strict=strict)
            answer, notices = f"answer: {rule.text}\n", rule.notices
        found = self._compiled(tools, None, start, answer, patience_s)
        if isinstance(found, InvalidGrammar):
            raise found
        return replace(found, notices=notices + found.notices)

    def _compiled(
        self, tools: tuple[Tool, ...], form: CallForm | None, start: str, more: str, patience_s: float
    ) -> Grammar | InvalidGrammar:
        if tools is not self._asked:
            self._asked, self._since = tools, time.perf_counter()
        rules: list[_Rule] = []
        size = 0
        for tool in tools:
            if (tool, form) not in self._known and time.perf_counter() > self._since + MOST_S:
                return _too_much(tools)
            rule = self._rule(tool, form)
            if isinstance(rule, InvalidGrammar):
                raise rule
            rules.append(rule)
            size += len(rule.text)
            if size > MOST_BYTES:
                return _too_much(tools)
        calls = " | ".join(f"c{number}" for number in range(len(rules)))
        lines = [f"start: {start}", f"call: {calls}", _GAP]
        lines += [f"c{number}: {rule.text}" for number, rule in enumerate(rules)]
        found = self._compiler.of((HEAD + "\n".join(lines) + "\n" + more,), patience_s)
        if not isinstance(found, Compiled):
            return _too_much(tools)
        return Grammar(matcher=found.matcher, notices=tuple(each for rule in rules for each in rule.notices))

    def _rule(self, tool: Tool, form: CallForm | None) -> _Rule | InvalidGrammar:
        """Return the rule of a call of one function; InvalidGrammar if it is strict and cannot be kept."""
        key = tool, form
        found = self._known.get(key)
        if found is None:
            found = self._tried(tool, form)
            self._known[key] = found
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return found

    def _tried(self, tool: Tool, form: CallForm | None) -> _Rule | InvalidGrammar:
        _, (any_object,) = _rules(replace(tool, parameters=_ANY_OBJECT), form, (Leniency.NONE,))
        what = f'the schema of the function "{tool.name}"'
        try:
            schema, rules = _rules(tool, form, (Leniency.NONE,) if tool.strict else tuple(Leniency))
            trial = self._compiler.try_out(tuple(f"{HEAD}start: {rule}\n{_GAP}\n" for rule in rules))
            if trial.chosen is not None:
                return _Rule(rules[trial.chosen], notices_of(trial, schema, what))
            reason = trial.reasons[0]
        except InvalidGrammar as error:
            reason = error.message
        if tool.strict:
            return InvalidGrammar(
                f'the function "{tool.name}" is strict, but its JSON schema cannot be kept: {reason}'
            )
        return _Rule(any_object, (f"{what} is not kept, its arguments are any object: {reason}",))

    def _answer(self, schema: str, *, strict: bool) -> _Rule:
        """Return the rule of an answer that is no call. Raises: as `of`; InvalidGrammar."""
        parsed = parse_schema(schema)
        rules = [json_rule(parsed, way) for way in ((Leniency.NONE,) if strict else Leniency)]
        trial = self._compiler.try_out(tuple(f"{HEAD}start: {rule}\n" for rule in rules))
        if trial.chosen is None:
            raise InvalidGrammar(f"the JSON schema cannot be kept: {trial.reasons[0]}")
        return _Rule(rules[trial.chosen], notices_of(trial, parsed, "the JSON schema"))


def _rules(tool: Tool, form: CallForm | None, ways: tuple[Leniency, ...]) -> tuple[Json, list[str]]:
    """Return the schema of a call of one function, and its rule for each way. Raises: InvalidGrammar."""
    if form is CallForm.MISTRAL_NAMES:
        schema = parse_schema(json.dumps(argument_schema(tool)))
        identity = f'("{MISTRAL_ID}" /[a-zA-Z0-9]{{1,32}}/)? ("{MISTRAL_ARGUMENTS}")?'
        before = f"{json.dumps(tool.name)} {identity} gap "
    else:
        key = "parameters" if form is CallForm.LLAMA else "arguments"
        schema = parse_schema(json.dumps(call_schema(tool, arguments=key)))
        before = ""
    return schema, [before + json_rule(schema, way) for way in ways]


def _too_much(tools: tuple[Tool, ...]) -> InvalidGrammar:
    return InvalidGrammar(
        f"the {len(tools)} functions, one of which must be called or is strict, are too much for one grammar;"
        f" offer fewer, or with smaller schemas"
    )
