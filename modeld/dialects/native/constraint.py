# SPDX-License-Identifier: GPL-3.0-only
"""What the text of an answer must match, as a native body asks for it. Pure."""

from __future__ import annotations

from typing import cast

import msgspec
from msgspec.structs import replace

from modeld.core.request import Constraint, ConstraintKind
from modeld.dialects.native.wire import InferBody
from modeld.dialects.schema import schema_text
from modeld.errors import InvalidGrammar, InvalidRequest

_TOKEN, _WORD = 0, 1
"""Types of triggers in llama.cpp (common.h); 2 and 3 are regular expressions."""


def constraint_of(wire: InferBody) -> Constraint | None:
    """Return what the text must match; None for free text.

    Raises: InvalidRequest, InvalidGrammar for triggers that cannot be used.
    """
    schema = wire.json_schema
    has_schema = isinstance(schema, msgspec.Raw) and bytes(schema) != b"null"
    if wire.grammar is not None and has_schema:
        raise InvalidRequest("give either `grammar` or `json_schema`, not both")
    if wire.grammar is not None:
        if not wire.grammar.strip():
            raise InvalidRequest("`grammar` is empty; leave it out for free text")
        return _with_triggers(Constraint(kind=ConstraintKind.GRAMMAR, text=wire.grammar), wire)
    if not has_schema:
        if wire.grammar_lazy or wire.grammar_triggers:
            raise InvalidRequest("`grammar_lazy` and `grammar_triggers` need a `grammar` or a `json_schema`")
        return None
    text = schema_text(cast("msgspec.Raw", schema), "json_schema")
    return _with_triggers(Constraint(kind=ConstraintKind.JSON_SCHEMA, text=text), wire)


def _with_triggers(constraint: Constraint, wire: InferBody) -> Constraint:
    triggers = wire.grammar_triggers or ()
    if not wire.grammar_lazy:
        if triggers:
            raise InvalidRequest("`grammar_triggers` are for a lazy grammar: set `grammar_lazy` to true")
        return constraint
    if not triggers:
        raise InvalidGrammar(
            'a lazy grammar needs `grammar_triggers`, such as [{"type": 1, "value": "<call>"}]'
        )
    words: list[str] = []
    tokens: list[int] = []
    for number, trigger in enumerate(triggers):
        if trigger.type == _TOKEN and trigger.token is not None:
            tokens.append(trigger.token)
        elif trigger.type == _WORD and trigger.value:
            words.append(trigger.value)
        elif trigger.type in (_TOKEN, _WORD):
            lacking = "token" if trigger.type == _TOKEN else "value"
            raise InvalidGrammar(f"`grammar_triggers[{number}]` lacks its `{lacking}`")
        else:
            raise InvalidGrammar(
                f"`grammar_triggers[{number}]` is a pattern (type {trigger.type}), and the search for it "
                f"has no bound in time; give words (type 1) or tokens (type 0)"
            )
    return replace(constraint, trigger_words=tuple(words), trigger_tokens=tuple(tokens))
