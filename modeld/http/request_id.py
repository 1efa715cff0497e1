# SPDX-License-Identifier: GPL-3.0-only
"""Request ids: the client's own where it is valid, otherwise a new one."""

from __future__ import annotations

import re
import secrets

_SANE = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}", re.ASCII)


def new_id() -> str:
    """Return 64 random bits as text."""
    return secrets.token_hex(8)


def request_id(header: str | None) -> str:
    """Return the client's `X-Request-ID` if it is short and printable, else a new one."""
    return header if header is not None and _SANE.fullmatch(header) else new_id()
