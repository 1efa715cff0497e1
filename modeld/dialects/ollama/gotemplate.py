# SPDX-License-Identifier: GPL-3.0-only
"""Interpret the part of Go's template language that `/api/generate` uses. Pure.

`{{ .System }}`, `{{ .Prompt }}`, `{{ .Response }}` (the prompt ends there), `{{ if }}`, `{{ else if }}`,
`{{ else }}`, `{{ end }}` with `not`, `and` and `or`, text in quotes, comments, and `-` that trims blanks.
Source: pkg.go.dev/text/template; docs/template.mdx of Ollama. Anything else is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from modeld.errors import InvalidRequest

MOST_ACTIONS = 1000
"""Of one template; those of models have some tens."""
_COMMENT = re.compile(r"/\*.*\*/", re.DOTALL)
_WORD = re.compile(r'\(|\)|"(?:[^"\\]|\\.)*"|`[^`]*`|[^\s()"`]+')


class GoTemplate:
    """A template that a client sent. Raises: InvalidRequest for one that cannot be used."""

    def __init__(self, source: str) -> None:
        self._parts = _split(source)

    def render(self, *, prompt: str, system: str) -> str:
        """Return the prompt that it makes: what comes before `{{ .Response }}`.

        Raises: InvalidRequest for an action that is not known.
        """
        values = {"System": system, "Prompt": prompt, "Response": "", "Suffix": ""}
        out: list[str] = []
        # For each `if` that is open: whether this branch is taken, one was, and what is around it is.
        branches: list[tuple[bool, bool, bool]] = []
        for text, action in self._parts:
            shown = all(taken for taken, _, _ in branches)
            if shown:
                out.append(text)
            word, _, rest = action.partition(" ")
            if word == "if":
                truth = _truth(rest, values)
                branches.append((truth, truth, shown))
            elif word == "else":
                if not branches:
                    raise _bad("`{{ else }}` without an `{{ if }}`")
                _, one_was, outer = branches.pop()
                condition = rest.removeprefix("if ") if rest else ""
                if rest and condition == rest:
                    raise _bad(f"`{{{{ {action[:60]} }}}}` is not known")
                truth = not one_was and (not rest or _truth(condition, values))
                branches.append((truth, one_was or truth, outer))
            elif action == "end":
                if not branches:
                    raise _bad("`{{ end }}` without an `{{ if }}`")
                branches.pop()
            elif shown and action == ".Response":
                return "".join(out)
            elif action and not _COMMENT.fullmatch(action):
                value = _value(_words(action), values)
                if shown:
                    out.append(value)
        if branches:
            raise _bad("an `{{ if }}` has no `{{ end }}`")
        return "".join(out)


def _split(source: str) -> list[tuple[str, str]]:
    """Return texts, each with the action behind it; that of the last one is empty."""
    parts: list[tuple[str, str]] = []
    rest = source
    while True:
        text, opened, behind = rest.partition("{{")
        if not opened:
            return [*parts, (text, "")]
        action, closed, rest = behind.partition("}}")
        if not closed:
            raise _bad("a `{{` is not closed")
        if len(parts) == MOST_ACTIONS:
            raise _bad(f"it has more than {MOST_ACTIONS} actions")
        if re.match(r"-\s", action):
            text, action = text.rstrip(), action[1:]
        if re.search(r"\s-$", action):
            rest, action = rest.lstrip(), action[:-1]
        parts.append((text, action.strip()))


def _truth(condition: str, values: Mapping[str, str]) -> bool:
    return bool(_value(_words(condition), values))


def _words(action: str) -> list[str]:
    if _WORD.sub("", action).strip():
        raise _bad(f"`{{{{ {action[:60]} }}}}` is not known")
    return _WORD.findall(action)


def _value(words: list[str], values: Mapping[str, str]) -> str:
    """Return the value of an expression; truth is a text that is not empty, as in Go."""
    value, rest = _expression(words, values, 0)
    if rest:
        raise _bad(f"`{' '.join(words)[:60]}` is not known")
    return value


def _expression(words: list[str], values: Mapping[str, str], depth: int) -> tuple[str, list[str]]:
    if not words or depth > 20:
        raise _bad("an expression is empty, or nested more than 20 levels deep")
    if words[0] not in {"not", "and", "or"}:
        return _operand(words, values, depth)
    name, rest = words[0], words[1:]
    operands: list[str] = []
    while rest and rest[0] != ")":
        value, rest = _operand(rest, values, depth)
        operands.append(value)
    if not operands or (name == "not" and len(operands) > 1):
        raise _bad(f"`{name}` has {len(operands)} operands")
    if name == "not":
        return ("" if operands[0] else "true"), rest
    decisive = [value for value in operands if bool(value) is (name == "or")]
    return (decisive[0] if decisive else operands[-1]), rest


def _operand(words: list[str], values: Mapping[str, str], depth: int) -> tuple[str, list[str]]:
    word, rest = words[0], words[1:]
    if word == "(":
        value, rest = _expression(rest, values, depth + 1)
        if rest[:1] != [")"]:
            raise _bad("a `(` is not closed")
        return value, rest[1:]
    if word.removeprefix("$")[:1] == "." and (name := word.removeprefix("$")[1:]) in values:
        return values[name], rest
    if word[0] == "`":
        return word[1:-1], rest
    if word[0] == '"':
        return _quoted(word), rest
    raise _bad(
        f"`{word[:60]}` is not known; there are .System, .Prompt, .Response, if, else, end, not, and, or"
    )


def _quoted(word: str) -> str:
    escapes = {"n": "\n", "t": "\t", "r": "\r"}
    return re.sub(r"\\(.)", lambda match: escapes.get(match[1], match[1]), word[1:-1], flags=re.DOTALL)


def _bad(why: str) -> InvalidRequest:
    return InvalidRequest(f"`template`: {why}. Or leave it out: the model has its own")
