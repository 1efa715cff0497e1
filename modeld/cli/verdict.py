# SPDX-License-Identifier: GPL-3.0-only
"""What a check of the preflight finds."""

from __future__ import annotations

import msgspec


class Ok(msgspec.Struct, frozen=True):
    """The check passed; `note` tells what is worth knowing all the same."""

    note: str = ""


class NotOk(msgspec.Struct, frozen=True):
    """The check failed: why, and what to do."""

    why: str


Verdict = Ok | NotOk


def reason_of(error: OSError) -> str:
    """Return the system's words for an error."""
    return (error.strerror or str(error)).lower()
