# SPDX-License-Identifier: GPL-3.0-only
"""The script of a fake engine: how long things take, and what goes wrong.

A script is a list of `key=value`, separated by blanks:

    load_s=0       seconds a load takes              step_s=0      seconds of one step
    prefill_s=0    seconds per prompt token          chunk=512     prompt tokens of one step
    context=8192   tokens it was "trained" with      eos_after=0   answers end after so many tokens
    fail_load=     the load fails with these words (_ is a blank)
    die_at=0       the engine breaks in this decode  stall_at=0    this one ends only by `interrupt`
    abort_at=0     the whole process aborts in it    abort_load=0  it aborts in the load (1)
    spam=0         lines on standard error a step
"""

from __future__ import annotations

import msgspec


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """How the fake engine behaves; see the module's docstring."""

    load_s: float = 0.0
    step_s: float = 0.0
    prefill_s: float = 0.0
    chunk: int = 512
    context: int = 8192
    eos_after: int = 0
    fail_load: str = ""
    die_at: int = 0
    stall_at: int = 0
    abort_at: int = 0
    abort_load: int = 0
    spam: int = 0


def parse_script(text: str) -> Script:
    """Read a script. Raises: ValueError that names the bad part."""
    parts = {key: value for key, _, value in (part.partition("=") for part in text.split())}
    unknown = parts.keys() - set(Script.__struct_fields__)
    if unknown:
        raise ValueError(f"the fake engine knows no {min(unknown)!r} in its script")
    return msgspec.convert(parts, Script, strict=False)
