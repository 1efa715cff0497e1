# SPDX-License-Identifier: GPL-3.0-only
"""Write the table of endpoints in `docs/api.md` from their declarations.

python -m modeld.http.reference docs/api.md     updates it
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from modeld.config.reference import with_tables
from modeld.http.endpoints import ENDPOINTS


def _endpoints() -> Iterator[str]:
    yield from ("| Endpoint | What it does | Scope of a key |", "|---|---|---|")
    for it in ENDPOINTS:
        paths = ", ".join(f"`{path}`" for path in (f"{it.method} {it.template}", *it.also))
        scopes = " or ".join(f"`{scope}`" for scope in sorted(it.scopes)) or "none"
        yield f"| {paths} | {it.summary} | {scopes} |"


TABLES = {"endpoints": _endpoints}

if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(with_tables(path.read_text(encoding="utf-8"), TABLES), encoding="utf-8")
