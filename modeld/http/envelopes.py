# SPDX-License-Identifier: GPL-3.0-only
"""Which dialect's envelope an error is told in: that of the path which was asked for."""

from __future__ import annotations

from collections.abc import Callable

from modeld.dialects import native, ollama, openai
from modeld.errors import Problem

Envelope = Callable[[Problem, str], tuple[int, bytes]]
"""Takes a problem and the request's id, and returns the HTTP status and the JSON of its dialect."""


def _native(problem: Problem, _: str) -> tuple[int, bytes]:
    return problem.status, native.error_body(problem)


_BY_PREFIX: tuple[tuple[str, Envelope], ...] = (
    ("/api/", ollama.error_answer),
    ("/v1/", openai.error_answer),
)
"""The first that fits holds, so the longer of two goes before the other."""


def envelope_of(path: str) -> Envelope:
    """Return the envelope for errors of this path; the native one where no dialect has it."""
    return next((envelope for prefix, envelope in _BY_PREFIX if path.startswith(prefix)), _native)
