# SPDX-License-Identifier: GPL-3.0-only
"""Generate the tables of `docs/configuration.md` from the declarations of the settings.

python -m modeld.config.reference docs/configuration.md     writes them again
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from modeld.config.setting import Setting
from modeld.config.settings import LEGACY, MODEL_SETTINGS, SETTINGS

_BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->\n)", re.DOTALL)


def with_tables(document: str, tables: Mapping[str, Callable[[], Iterator[str]]]) -> str:
    """Return `document` with the text between its marks replaced by the lines of the tables of that name."""
    return _BLOCK.sub(lambda found: found[1] + "\n".join(tables[found[2]]()) + "\n" + found[3], document)


def _settings() -> Iterator[str]:
    section = ""
    for setting in SETTINGS.values():
        if setting.section != section:
            section = setting.section
            yield from (
                "",
                f"### {section}",
                "",
                "| Setting | Value | Default | Meaning |",
                "|---|---|---|---|",
            )
        yield f"| `{setting.name}` | {_value(setting)} | {_default(setting)} | {_meaning(setting)} |"
    yield ""


def _models() -> Iterator[str]:
    yield from ("| Option | Value | Meaning |", "|---|---|---|")
    yield from (
        f"| `{setting.name}` | {_value(setting)} | {_meaning(setting)} |"
        for setting in MODEL_SETTINGS.values()
    )


def _legacy() -> Iterator[str]:
    yield from ("| Key | Instead |", "|---|---|")
    yield from (f"| `{name}` | {hint} |" for name, hint in LEGACY.items())


def _value(setting: Setting) -> str:
    return setting.kind.metavar.replace("|", " \\| ")


def _default(setting: Setting) -> str:
    default = setting.shown_default
    return default if setting.default_text is not None or not default else f"`{default}`"


def _meaning(setting: Setting) -> str:
    more = "".join(f" The flag may also be written `{flag}`." for flag in setting.flags)
    return setting.help + more


TABLES = {"settings": _settings, "models": _models, "legacy": _legacy}

if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(with_tables(path.read_text(encoding="utf-8"), TABLES), encoding="utf-8")
