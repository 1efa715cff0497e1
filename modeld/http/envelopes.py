# SPDX-License-Identifier: GPL-3.0-only
"""Which dialect's envelope an error is told in: that of the path which was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from modeld.dialects import anthropic, llamacpp, native, ollama, openai
from modeld.errors import Problem

Envelope = Callable[[Problem, str], tuple[int, bytes]]
"""Takes a problem and the request's id, and returns the HTTP status and the JSON of its dialect."""


def _native(problem: Problem, _: str) -> tuple[int, bytes]:
    return problem.status, native.error_body(problem)


_BY_PATH: Mapping[str, Envelope] = {
    "/api/": ollama.error_answer,
    "/v1/": openai.error_answer,
    "/v1/messages": anthropic.error_answer,
    "/v1/messages/": anthropic.error_answer,
    **dict.fromkeys(
        (
            *("/health", "/props", "/slots", "/completion", "/completions", "/embedding", "/embeddings"),
            *("/models/load", "/models/unload"),
        ),
        llamacpp.error_answer,
    ),
}
"""Paths; one that ends with a slash is for all below it. The longest holds."""


def envelope_of(path: str) -> Envelope:
    """Return the envelope for errors of this path; the native one where no dialect has it."""
    if path in _BY_PATH:
        return _BY_PATH[path]
    above = [prefix for prefix in _BY_PATH if prefix.endswith("/") and path.startswith(prefix)]
    return _BY_PATH[max(above, key=len)] if above else _native
