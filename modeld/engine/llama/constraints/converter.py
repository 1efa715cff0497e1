# SPDX-License-Identifier: GPL-3.0-only
"""The bindings' converter from JSON schema to GBNF, made safe for schemas of strangers.

Its time must grow with the size of the schema only: it runs in one thread that holds the
interpreter's lock. As the bindings have it, repetitions are written out as nested parentheses, a
name that is taken is searched for one by one, a reference may be resolved once for each use (so
exponentially in a chain of them), the rules of an object take the cube of its properties, and the
name of a rule holds those of all around it. Each of these is replaced here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import cast

from llama_cpp import llama_grammar

from modeld.engine.llama.constraints.gbnf import MAX_REPETITIONS
from modeld.errors import InvalidGrammar

MAX_NAME = 48
"""Characters of a rule's name that come from the schema."""
_COMMA = ' "," space '
_TO_ESCAPE = re.compile(r'[\r\n"\\]')
_ESCAPES = {"\r": "\\r", "\n": "\\n", '"': '\\"', "\\": "\\\\"}
_NOT_IN_A_NAME = re.compile(r"[^a-zA-Z0-9-]+")
_LOOSE_CHARACTER = r'[^"\\] |'
_JSON_CHARACTER = r'[^"\\\x7F\x00-\x1F] |'
"""JSON has no control characters in its strings; the converter would allow them."""


def repetition(
    item: str,
    least: int,
    most: int | None,
    separator_rule: str | None = None,
    **_literal: bool,
) -> str:
    """Write a repetition with a count, in place of the converter's nested parentheses.

    The converter also says by `item_rule_is_literal` whether the item is a text; a count needs no such help.
    Raises: InvalidGrammar when the counts make no sense or are too great.
    """
    if max(least, most or 0) > MAX_REPETITIONS or (most is not None and most < least):
        raise InvalidGrammar(
            f"the JSON schema repeats something {least} to {most} times; it can be 0 to {MAX_REPETITIONS}"
        )
    if most == 0:
        return ""
    if separator_rule is None:
        return f"{item}{{{least},{'' if most is None else most}}}"
    further = f"{{{max(0, least - 1)},{'' if most is None else most - 1}}}"
    text = item if most == 1 else f"{item} ({separator_rule} {item}){further}"
    return text if least else f"({text})?"


_NESTED_DIGITS: str = vars(llama_grammar)["_up_to_15_digits"]
_DIGITS = "[0-9]{0,15}"
llama_grammar.__dict__["_build_repetition"] = repetition  # the converter finds it there, by this name


class Converter(llama_grammar.SchemaConverter):
    """A converter for one schema."""

    def __init__(self) -> None:
        super().__init__(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)
        self._next_number: dict[str, int] = {}
        self._named: dict[tuple[str, str], str] = {}
        self._resolved: dict[str, str] = {}

    def convert(self, schema: dict[str, object]) -> str:
        """Return the grammar. Raises whatever the bindings' converter raises on a schema it cannot read."""
        root = self.visit(self.resolve_refs(schema, "schema"), "")
        if root != "root":
            self._rules["root"] = root
        return self.format_grammar()

    def alternatives(self, schema: dict[str, object]) -> tuple[list[str], str]:
        """Return the names of the rules of what `anyOf` lists, and all rules, none of which is the root.

        Raises whatever the bindings' converter raises on a schema it cannot read.
        """
        resolved = self.resolve_refs(schema, "schema")
        ways = cast("list[dict[str, object]]", resolved["anyOf"])
        names = [self.visit(way, f"way{number}") for number, way in enumerate(ways)]
        return names, self.format_grammar()

    def visit(self, schema: dict[str, object], name: str) -> str:
        """Add the rules of a part of the schema; return the name of its first."""
        return super().visit(schema, name[-MAX_NAME:])

    def _format_literal(self, literal: str) -> str:
        return '"' + _TO_ESCAPE.sub(lambda match: _ESCAPES[match[0]], literal) + '"'

    def _add_rule(self, name: str, rule: str) -> str:
        """Add a rule under its name, or that name and a number if another has it."""
        if name == "char":
            rule = rule.replace(_LOOSE_CHARACTER, _JSON_CHARACTER)
        rule = rule.replace(_NESTED_DIGITS, _DIGITS)
        short = _NOT_IN_A_NAME.sub("-", name[-2 * MAX_NAME :])
        known = self._named.get((short, rule))
        if known is None:
            known = self._free_name(short)
            self._rules[known] = rule
            self._named[short, rule] = known
        return known

    def _free_name(self, wish: str) -> str:
        name = wish
        while name in self._rules:
            number = self._next_number.get(wish, 0)
            self._next_number[wish] = number + 1
            name = f"{wish}{number}"
        return name

    def _resolve_ref(self, ref: str) -> str:
        """Return the rule of a reference. It has its name before it is resolved: it may refer to itself."""
        name = self._resolved.get(ref)
        if name is None:
            name = self._resolved[ref] = self._free_name("ref")
            self._rules[name] = ""
            self._rules[name] = self.visit(self._refs[ref], f"{name}-{ref.rsplit('/', 1)[-1]}")
        return name

    def _build_object_rule(
        self,
        properties: Sequence[tuple[str, dict[str, object]]],
        required: AbstractSet[str],
        name: str,
        additional_properties: dict[str, object] | list[object] | bool | None,
    ) -> str:
        """Write an object: what is required in the order of the schema, then any of the rest in order.

        For optional properties a, b, c the rule is `a ab | b bc | c`, where `ab` is "perhaps b, and
        then what may follow it"; so rules and time grow with the number of properties.
        """
        prefix = f"{name}-" if name else ""
        pairs: dict[str, str] = {}
        for key, schema in properties:
            value = self.visit(schema, f"{prefix}{key}")
            literal = self._format_literal(json.dumps(key))
            pairs[key] = self._add_rule(f"{prefix}{key[-MAX_NAME:]}-kv", f'{literal} space ":" space {value}')
        optional = [pair for key, pair in pairs.items() if key not in required]
        ways: list[str] = []
        rest = ""
        if additional_properties is True or isinstance(additional_properties, dict):
            schema = {} if additional_properties is True else additional_properties
            value = self.visit(schema, f"{prefix}additional-value")
            text = self._add_primitive("string", llama_grammar.PRIMITIVE_RULES["string"])
            pair = self._add_rule(f"{prefix}additional-kv", f'{text} space ":" space {value}')
            rest = self._add_rule(f"{prefix}additional-rest", f"({_COMMA}{pair} )*")
            ways.append(f"{pair} {rest}")
        for pair in reversed(optional):
            ways.append(f"{pair} {rest}".rstrip())
            rest = self._add_rule(f"{pair}-rest", f"({_COMMA}{pair} )? {rest}".rstrip())
        body = _COMMA.join(pair for key, pair in pairs.items() if key in required)
        if ways:
            choice = " | ".join(reversed(ways))
            body = f"{body} ({_COMMA}( {choice} ) )?" if body else f"( {choice} )?"
        return f'"{{" space {body} "}}" space'
