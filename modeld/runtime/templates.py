# SPDX-License-Identifier: GPL-3.0-only
"""Reads the chat templates of models for those who ask what they are: in a thread, and once for each file."""

from __future__ import annotations

from pathlib import Path

import trio

from modeld.core.models import ModelSpec
from modeld.engine.llama.gguf_template import read_template

KEPT = 32
"""Templates that are remembered; each has 20,000 characters at the most in today's files."""
PATIENCE_S = 5.0
"""After that a disk that does not answer is not waited for."""


class Templates:
    """Knows the chat templates of models, also of those that are not loaded."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int], str] = {}
        self._limiter = trio.CapacityLimiter(1)

    async def of(self, spec: ModelSpec) -> str:
        """Return a model's template; empty where its file has none, or cannot be read in time.

        Cancellation: a read that is under way goes on in its thread, and is forgotten.
        """
        await trio.lowlevel.checkpoint()
        if spec.facts is None or not spec.facts.has_chat_template:
            return ""
        key = (spec.path, spec.size_bytes, spec.modified_ns)
        if key not in self._known:
            text = None
            with trio.move_on_after(PATIENCE_S):
                text = await trio.to_thread.run_sync(
                    read_template, Path(spec.path), limiter=self._limiter, abandon_on_cancel=True
                )
            if text is None:
                return ""
            while len(self._known) >= KEPT:
                del self._known[next(iter(self._known))]
            self._known[key] = text
        return self._known[key]
