# SPDX-License-Identifier: GPL-3.0-only
"""How the probability of a token is written, in whatever dialect. Pure."""

from __future__ import annotations

from modeld.core.events import TokenLogprob

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot write; OpenAI's own value for tokens out of sight."""


def rounded(logprob: float) -> float:
    """Return a log-probability as it is written."""
    return round(max(logprob, LEAST_LOGPROB), 6)


def text_of(token: TokenLogprob) -> str:
    """Return the text of a token, with U+FFFD for a part of a character: its bytes are told beside it."""
    return token.text.decode(errors="replace")
