# SPDX-License-Identifier: GPL-3.0-only
"""Settings as flags of commands that take a few of them, and start no daemon."""

from __future__ import annotations

from collections.abc import Mapping

import click

from modeld.config.fields import BY_NAME
from modeld.config.values import BadValue


def typed_settings(flags: Mapping[str, str | None], spelled: Mapping[str, str]) -> dict[str, object]:
    """Return the values of those that were given, by name; `spelled` is the flag that complaints name.

    Raises:
      click.BadParameter: one of them cannot be read.
    """
    chosen: dict[str, object] = {}
    for name, raw in flags.items():
        if raw is None:
            continue
        try:
            chosen[name] = BY_NAME[name].kind.parse(raw)
        except BadValue as error:
            raise click.BadParameter(str(error.problems[0][1]), param_hint=spelled[name]) from None
    return chosen
