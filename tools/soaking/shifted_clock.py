# SPDX-License-Identifier: GPL-3.0-only
"""Run modeld under a wall clock that jumps: `python shifted_clock.py FILE serve ...`.

FILE holds by how many seconds the clock is wrong; it is read at each look at the clock. Only `time.time`, its
kin and `datetime` are touched, as a clock that is set touches them: steady clocks go on.
"""

from __future__ import annotations

import datetime as dt
import sys
import time
from pathlib import Path
from typing import Self, SupportsIndex

_FILE = Path(sys.argv.pop(1))
_time, _time_ns, _gmtime, _localtime = time.time, time.time_ns, time.gmtime, time.localtime


def _wrong() -> float:
    return float(_FILE.read_text())


_Seconds = float | SupportsIndex | None


def _shifted_gmtime(seconds: _Seconds = None, /) -> time.struct_time:
    return _gmtime(time.time() if seconds is None else seconds)


def _shifted_localtime(seconds: _Seconds = None, /) -> time.struct_time:
    return _localtime(time.time() if seconds is None else seconds)


class _Datetime(dt.datetime):
    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> Self:
        """Return the time of the shifted clock."""
        return cls.fromtimestamp(time.time(), tz)


time.time = lambda: _time() + _wrong()
time.time_ns = lambda: _time_ns() + int(_wrong() * 1e9)
time.gmtime = _shifted_gmtime
time.localtime = _shifted_localtime
dt.datetime = _Datetime  # type: ignore[misc]  # this program exists to replace it

if __name__ == "__main__":
    from modeld.cli.main import main

    main()
