# SPDX-License-Identifier: GPL-3.0-only
"""How model files write the call of a function. Facts that an engine and those who read its text share.

Sources: the chat templates of the models named below, and llama.cpp's docs/function-calling.md.
"""

from __future__ import annotations

HERMES_BEGIN, HERMES_END = "<tool_call>", "</tool_call>"
"""Hermes 2 Pro and 3, Qwen 2.5 and 3: around each call, a JSON object with `name` and `arguments`."""
MISTRAL_CALLS = "[TOOL_CALLS]"
"""Mistral: before a JSON list of calls; since version 11 before each name, which `[ARGS]` may follow."""
MISTRAL_ID, MISTRAL_ARGUMENTS = "[CALL_ID]", "[ARGS]"
LLAMA_TAG = "<|python_tag|>"
"""Llama 3.1: before a JSON object with `name` and `parameters`; most often it is left out."""

TOOL_MARKERS = frozenset({HERMES_BEGIN, HERMES_END, MISTRAL_CALLS, MISTRAL_ID, MISTRAL_ARGUMENTS, LLAMA_TAG})
"""Texts that vocabularies may list as control tokens, which have no text of their own."""
