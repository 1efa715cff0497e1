# SPDX-License-Identifier: GPL-3.0-only
"""Generate the tables of `docs/configuration.md` from the settings.

python -m modeld.config.reference docs/configuration.md     writes them again
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from modeld.config.field import Field
from modeld.config.fields import FIELDS, LEGACY, show_default
from modeld.config.model_fields import MODEL_FIELDS

_BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->\n)", re.DOTALL)


def with_tables(document: str, tables: Mapping[str, Callable[[], Iterator[str]]]) -> str:
    """Return `document` with the text between its marks replaced by the lines of the tables of that name."""
    return _BLOCK.sub(lambda found: found[1] + "\n".join(tables[found[2]]()) + "\n" + found[3], document)


def _settings() -> Iterator[str]:
    group = ""
    for field in FIELDS:
        if field.group != group:
            group = field.group
            yield from (
                "",
                f"### {group}",
                "",
                "| Setting | Value | Default | Meaning |",
                "|---|---|---|---|",
            )
        yield f"| `{field.name}` | {_value(field)} | {_default(field)} | {_meaning(field)} |"
    yield ""


def _models() -> Iterator[str]:
    yield from ("| Option | Value | Meaning |", "|---|---|---|")
    yield from (f"| `{field.name}` | {_value(field)} | {_meaning(field)} |" for field in MODEL_FIELDS)


def _legacy() -> Iterator[str]:
    yield from ("| Key | Instead |", "|---|---|")
    yield from (f"| `{name}` | {hint} |" for name, hint in LEGACY.items())


def _value(field: Field) -> str:
    return field.kind.metavar.replace("|", " \\| ")


def _default(field: Field) -> str:
    default = show_default(field)
    return default if field.default is not None or not default else f"`{default}`"


def _meaning(field: Field) -> str:
    more = "".join(f" The flag may also be written `{flag}`." for flag in field.flags)
    return field.help + more


TABLES = {"settings": _settings, "models": _models, "legacy": _legacy}

if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(with_tables(path.read_text(encoding="utf-8"), TABLES), encoding="utf-8")
