# SPDX-License-Identifier: GPL-3.0-only
"""Detect the call format that a chat template teaches. Pure; the template is only parsed."""

from __future__ import annotations

from enum import StrEnum

from jinja2 import TemplateError

from modeld.domain.tool_calls import HERMES_BEGIN, LLAMA_TAG, MISTRAL_ARGUMENTS, MISTRAL_CALLS
from modeld.engine.llama.prompts.template import environment, knows_tools

_NOT_JSON = ("<function=", "<parameter=", "<arg_key>", "<invoke")
"""What templates have that write calls between the same markers in another form (Qwen3-Coder, GLM 4.5)."""
_LLAMA_WORDS = "dictionary of argument name and its value"
"""How the templates of Llama 3 ask for `{"name": ..., "parameters": ...}`."""


class CallForm(StrEnum):
    """How a call is written; see `dialects/common/tool_reader.py`, which reads them all."""

    HERMES = "hermes"
    MISTRAL_LIST = "mistral_list"
    MISTRAL_NAMES = "mistral_names"
    LLAMA = "llama"


def form_of(source: str | None) -> CallForm | None:
    """Return the form that a usable template teaches; None: one that is not known here.

    A template that knows of no functions gets them told in Hermes' form (`tool_prompt`).
    """
    if not source or not _knows_tools(source):
        return CallForm.HERMES
    if MISTRAL_CALLS in source:
        return CallForm.MISTRAL_NAMES if MISTRAL_ARGUMENTS in source else CallForm.MISTRAL_LIST
    if any(mark in source for mark in _NOT_JSON):
        return None
    if HERMES_BEGIN in source:
        return CallForm.HERMES
    return CallForm.LLAMA if LLAMA_TAG in source or _LLAMA_WORDS in source else None


def _knows_tools(source: str) -> bool:
    try:
        return knows_tools(environment().parse(source))
    except (TemplateError, RecursionError, MemoryError):
        return False
