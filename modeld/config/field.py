# SPDX-License-Identifier: GPL-3.0-only
"""What a setting is: its name in files, flags and the environment, its kind, and its meaning."""

from __future__ import annotations

from dataclasses import dataclass

from modeld.config.values import (
    Kind,
)


@dataclass(frozen=True, slots=True)
class Field:
    """One setting.

    Attributes:
      name: key in files; the flag and the environment variable follow from it.
      help: one sentence or two, in Markdown.
      group: heading in the help and the documentation.
      flags: further spellings of the flag.
      zero_is_default: 0 means "not set", as in the Go program.
      default: how the default is told, where it is not a constant.
    """

    name: str
    kind: Kind
    help: str
    group: str = ""
    flags: tuple[str, ...] = ()
    zero_is_default: bool = False
    default: str | None = None

    @property
    def flag(self) -> str:
        """The flag, with its dashes."""
        return "--" + self.name.replace("_", "-")

    @property
    def env(self) -> str:
        """The environment variable."""
        return "MODELD_" + self.name.upper()


def is_unset(field: Field, raw: object) -> bool:
    """Tell whether `raw` stands for "take the default"."""
    if raw is None:
        return True
    zero = (
        isinstance(raw, int | float | str)
        and not isinstance(raw, bool)
        and str(raw).strip() in {"0", "0s", "0.0"}
    )
    return field.zero_is_default and zero
