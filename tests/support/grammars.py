# SPDX-License-Identifier: GPL-3.0-only
"""Compiles grammars for tests: in this process, and waiting until they are there."""

from __future__ import annotations

from contextlib import contextmanager

from modeld.engine.llama.constraints.compiler import GrammarCompiler, StillCompiling
from modeld.engine.llama.constraints.grammar import Constraints, Grammar
from modeld.engine.llama.constraints.guidance import try_grammars
from modeld.engine.llama.prompts.tool_grammar import CallGrammars


def until_compiled(ask):
    """Ask until it is there, and return it."""
    while True:
        try:
            return ask()
        except StillCompiling:
            pass


@contextmanager
def compiler_for(vocab):
    """A compiler that tries grammars in this process."""
    compiler = GrammarCompiler(vocab, try_grammars)
    try:
        yield compiler
    finally:
        compiler.close()


def grammar_of(vocab, constraint) -> Grammar:
    """Return the grammar of a constraint; raise why there is none."""
    with compiler_for(vocab) as compiler:
        constraints = Constraints(compiler)
        made = until_compiled(lambda: constraints.of(constraint, 10.0))
    if isinstance(made, Exception):
        raise made
    return made


def calls_of(vocab, tools, form) -> Grammar | None:
    """Return the lazy grammar of calls of these functions."""
    tools = tuple(tools)
    with compiler_for(vocab) as compiler:
        calls = CallGrammars(compiler)
        return until_compiled(lambda: calls.of(tools, form, 10.0))
