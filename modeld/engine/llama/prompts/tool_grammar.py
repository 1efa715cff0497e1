# SPDX-License-Identifier: GPL-3.0-only
"""Functions to a lazy grammar: text is free until the model begins a call, and the call is one of theirs.

A call that begins must be written to its end, with the name of a function that was offered and arguments
that satisfy its schema; more calls may follow it, and nothing else. What cannot be compiled binds less:
such a function's arguments are any object, unless it is `strict`.

To see that llama.cpp will come to an end with a schema takes some 60 ms of a core. So each function is
compiled by itself and remembered, and who has others waiting beside him compiles one at a time.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import OrderedDict

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
from modeld.engine.llama.constraints.gbnf import MAX_BYTES, check_gbnf
from modeld.engine.llama.constraints.grammar import Grammar, rules_of
from modeld.engine.llama.constraints.slices import SLICE_S, StillCompiling, at_once
from modeld.engine.llama.prompts.tool_form import CallForm
from modeld.errors import InvalidGrammar

KEPT = 512
"""Functions that are remembered: agents send the same ones with every turn. More than one request has."""
MOST_KEPT = 8 * 2**20
"""Characters of all of them; the functions of one request come to less, see `MAX_BYTES`."""
MOST_S = 3.0
"""What compiling for one request may take, as others wait behind it. What is done by then is remembered."""
_ANY_OBJECT = '{"type": "object"}'
_LLAMA_OPENINGS = ('{{"name": "{}", "parameters"', '{{"name":"{}","parameters"')
"""Llama 3 leaves its tag out most often: text that begins like this, with the name of a function that was
offered, is a call. With less of it, it may as well be data."""
_ROOTS = {
    CallForm.HERMES: f'("{HERMES_BEGIN}" gap a-call gap "{HERMES_END}" gap )+',
    CallForm.MISTRAL_LIST: f'"{MISTRAL_CALLS}" gap "[" gap a-call ("," gap a-call )* "]" gap',
    CallForm.MISTRAL_NAMES: f'("{MISTRAL_CALLS}" gap a-call gap )+',
    CallForm.LLAMA: f'("{LLAMA_TAG}" gap )? a-call (";" gap a-call )*',
}
_GAP = 'gap ::= "\\n"{0,2} " "{0,4}'
_MARKERS = {
    CallForm.HERMES: HERMES_BEGIN,
    CallForm.MISTRAL_LIST: MISTRAL_CALLS,
    CallForm.MISTRAL_NAMES: MISTRAL_CALLS,
    CallForm.LLAMA: LLAMA_TAG,
}
_WORDS = re.compile(
    r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|\{[^}]*\}|(?<![A-Za-z0-9-])(?:way|ref)[A-Za-z0-9-]*'
)
"""Literals, character classes and counts; and the names of rules that belong to one schema."""


class CallGrammars:
    """Compiles the functions of requests. Use it from one thread."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[Tool, CallForm], str | InvalidGrammar] = OrderedDict()
        self._size = 0
        self._compiling: tuple[Tool, ...] = ()
        self._spent_s = 0.0
        """On those that are being compiled."""

    def of(self, tools: tuple[Tool, ...], form: CallForm) -> Grammar | None:
        """Return the grammar of calls of these functions; None where they are too much for one.

        Raises: StillCompiling; InvalidGrammar for a function that is strict and cannot be compiled.
        """
        if tools is not self._compiling:
            self._compiling, self._spent_s = tools, 0.0
        began = time.perf_counter()
        try:
            rules = self._rules_of(tools, form, began)
        finally:
            self._spent_s += time.perf_counter() - began
        if rules is None:
            if any(tool.strict for tool in tools):
                raise InvalidGrammar(
                    f"the {len(tools)} functions, some of which are strict, are too much for one grammar; "
                    f"offer fewer, or with smaller schemas"
                )
            return None
        named = _LLAMA_OPENINGS if form is CallForm.LLAMA else ()
        openings = tuple(opening.format(tool.name) for opening in named for tool in tools)
        return Grammar(rules, trigger_words=(_MARKERS[form],), opening_words=openings, thought="")

    def _rules_of(self, tools: tuple[Tool, ...], form: CallForm, began: float) -> str | None:
        """Return the grammar; one function is compiled in any case, then as many as time allows."""
        rules: dict[str, None] = {_GAP: None}
        names: list[str] = []
        compiled = size = 0
        for tool in tools:
            if (tool, form) not in self._known:
                if self._spent_s > MOST_S:
                    return None
                if compiled and time.perf_counter() > began + SLICE_S:
                    raise StillCompiling
                compiled += 1
            text = self._compiled(tool, form)
            if isinstance(text, InvalidGrammar):
                if tool.strict:
                    raise InvalidGrammar(f'the function "{tool.name}" is strict, but {text}')
                text = self._compiled(replace(tool, parameters=_ANY_OBJECT), form)
            size += len(str(text))
            if isinstance(text, InvalidGrammar) or size > MAX_BYTES:
                return None
            lines = text.splitlines()
            names.append(lines[0].partition(" ")[0])
            rules.update(dict.fromkeys(lines))
        return "\n".join([f"root ::= {_ROOTS[form]}", f"a-call ::= {' | '.join(names)}", *rules])

    def _compiled(self, tool: Tool, form: CallForm) -> str | InvalidGrammar:
        """Return the rules of a call, its own first; or why there are none."""
        key = tool, form
        found = self._known.get(key)
        if found is None:
            try:
                found = _rules(tool, form)
            except InvalidGrammar as error:
                found = InvalidGrammar(str(error))  # Without the frames that it came through.
            self._known[key] = found
            self._size += _size(key, found)
            while len(self._known) > KEPT or self._size > MOST_KEPT:
                self._size -= _size(*self._known.popitem(last=False))
        self._known.move_to_end(key)
        return found


def _size(key: tuple[Tool, CallForm], found: str | InvalidGrammar) -> int:
    """Return how many characters are remembered for a function."""
    return len(key[0].parameters) + len(key[0].description) + len(str(found))


def _rules(tool: Tool, form: CallForm) -> str:
    """Return the rules of a call of one function, the first of which is the call. Raises: InvalidGrammar."""
    if form is CallForm.MISTRAL_NAMES:
        (call,), rules = rules_of(json.dumps(argument_schema([tool])))
        identity = f'("{MISTRAL_ID}" [a-zA-Z0-9]{{1,32}})? ("{MISTRAL_ARGUMENTS}")?'
        first = f'"{tool.name}" {identity} gap {call}'
    else:
        key = "parameters" if form is CallForm.LLAMA else "arguments"
        (first,), rules = rules_of(json.dumps(call_schema([tool], arguments=key)))
    name = _name(tool)
    lines = [f"{name} ::= {_WORDS.sub(lambda word: _own(word[0], name), first)}"]
    lines += [_WORDS.sub(lambda word: _own(word[0], name), line) for line in rules.splitlines() if line]
    text = "\n".join(lines)
    at_once(check_gbnf(f"root ::= {name}\n{_GAP}\n{text}"))
    return text


def _name(tool: Tool) -> str:
    """Return the name of a function's rule, which no other function has."""
    digest = hashlib.sha256(f"{tool.name}\0{tool.parameters}".encode(errors="replace"))
    return f"c{digest.hexdigest()[:8]}"


def _own(word: str, name: str) -> str:
    """Return a word of a rule; if it is the name of a rule, one that belongs to this function alone."""
    return word if word[0] in '"[{' else f"{name}-{word.replace('ref-call0', 'r', 1)}"
