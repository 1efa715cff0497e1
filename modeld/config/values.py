# SPDX-License-Identifier: GPL-3.0-only
"""Values of settings: how they are written, parsed and shown.

The same spelling works in a flag, in the environment and in a file; files may also use their own
numbers, booleans and lists. Pure, but for the expansion of `~`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import cast

# ----------------------------------------------------------------------
# The nearest known name, for error messages.


def nearest(name: str, known: Collection[str], cutoff: float = 0.6) -> str | None:
    """Return the known name that looks most like `name`, or None when none does."""
    wanted = name[:80].lower().replace("-", "_")
    by_form = {other.lower().replace("-", "_"): other for other in known}
    found = get_close_matches(wanted, by_form, n=1, cutoff=cutoff)
    return by_form[found[0]] if found else None


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Return "; did you mean X?" or the empty text."""
    other = nearest(name, known)
    return f"; did you mean {other}?" if other else ""


# ----------------------------------------------------------------------

_LONGEST_S = 100 * 365 * 86400.0
"""A century. Nobody means more, and timers overflow long after it."""

_UNITS_S: Mapping[str, float] = {
    "ns": 1e-9,
    "us": 1e-6,
    "\N{MICRO SIGN}s": 1e-6,
    "\N{GREEK SMALL LETTER MU}s": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|\u00b5s|\u03bcs|ms|s|m|h)", re.ASCII)
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)", re.ASCII)
_SIZE = re.compile(r"(\d+\.?\d*|\.\d+)\s*([kmgt]?i?b|[kmgt])?", re.ASCII | re.IGNORECASE)
_SIZES: Mapping[str, int] = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    **{letter + ending: 1024**n for n, letter in enumerate("kmgt", 1) for ending in ("", "ib")},
}
_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})


class BadValue(ValueError):
    """A value that a setting cannot take.

    Attributes:
      problems: one or more (path below the key, sentence); the path is empty for the key itself.
    """

    def __init__(self, message: str, problems: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems) or (("", message),)


def told(value: object) -> str:
    """Return a short picture of a value for an error message, whatever it is."""
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= 60 else f'"{value[:60]}..."'
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "nothing"
    if isinstance(value, int) and value.bit_length() > 200:
        return "a number of more than 60 digits"
    if isinstance(value, int | float):
        return str(value)
    return (
        "a list" if isinstance(value, list | tuple) else "a mapping" if isinstance(value, dict) else "a date"
    )


def parse_duration(value: object) -> float:
    """Return seconds.

    Takes `1m30s`, `1.5s`, `500ms`, as Go's time.ParseDuration does; a plain number is seconds.
    """
    if isinstance(value, str):
        seconds = _duration_of_text(value.strip())
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value) if abs(value) < 1e18 else math.inf
    else:
        seconds = None
    if seconds is None or math.isnan(seconds):
        raise BadValue(f"{told(value)} is no duration; write it as 30s, 1m30s or 500ms")
    if abs(seconds) > _LONGEST_S:
        raise BadValue(f"{told(value)} is longer than a hundred years")
    return seconds


def _duration_of_text(text: str) -> float | None:
    if _NUMBER.fullmatch(text):
        return float(text)
    unsigned = text.lstrip("+-") if text[:1] in {"+", "-"} and text[1:2] not in {"+", "-"} else text
    seconds, at = 0.0, 0
    while part := _PART.match(unsigned, at):
        seconds += float(part[1]) * _UNITS_S[part[2]]
        at = part.end()
    if at == 0 or at != len(unsigned):
        return None
    return -seconds if text.startswith("-") else seconds


def show_duration(value: object) -> str:
    """Write seconds the way people do: `1m30s`, `500ms`, `0s`."""
    seconds = cast("float", value)
    if seconds < 0:
        return "-" + show_duration(-seconds)
    if 0 < seconds < 1:
        return f"{_decimal(seconds * 1e3)}ms"
    hours, rest = divmod(seconds, 3600)
    minutes, rest = divmod(rest, 60)
    text = (f"{int(hours)}h" if hours else "") + (f"{int(minutes)}m" if minutes else "")
    return text if text and not rest else f"{text}{_decimal(rest)}s"


def _decimal(number: float) -> str:
    return f"{number:.6f}".rstrip("0").rstrip(".")


def parse_bool(value: object) -> bool:
    """Return a truth value of true/false, 1/0, yes/no, on/off."""
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower() if isinstance(value, str | int) else ""
    if word in _TRUE | _FALSE:
        return word in _TRUE
    raise BadValue(f"{told(value)} is neither true nor false")


def show_bool(value: object) -> str:
    """Write a truth value."""
    return "true" if value else "false"


def parse_int(value: object, low: int, high: int) -> int:
    """Return a whole number in [low, high]."""
    number: int | None = None
    whole_float = isinstance(value, float) and value.is_integer()
    if whole_float or (isinstance(value, int) and not isinstance(value, bool)):
        number = int(cast("int | float", value))
    elif isinstance(value, str) and re.fullmatch(r"[-+]?\d{1,30}", value.strip(), re.ASCII):
        number = int(value)
    if number is None:
        raise BadValue(f"{told(value)} is no whole number")
    return _within(number, value, low, high)


def parse_size(value: object, unit: int, low: int, high: int) -> int:
    """Return a size in units of `unit` bytes, rounded down: a plain number, or `512KiB`, `22GiB`."""
    if isinstance(value, str) and not re.fullmatch(r"[-+]?\d{1,30}", value.strip(), re.ASCII):
        match = _SIZE.fullmatch(value.strip())
        if match is None or match[2] is None:
            raise BadValue(f"{told(value)} is no size; write a whole number, or one like 512MiB or 22GiB")
        return _within(int(float(match[1]) * _SIZES[match[2].lower()] / unit), value, low, high)
    return parse_int(value, low, high)


def _within(number: int, value: object, low: int, high: int) -> int:
    if number < low:
        raise BadValue(f"{told(value)} is too small; the least is {low}")
    if number > high:
        raise BadValue(f"{told(value)} is too large; the most is {high}")
    return number


def parse_text(value: object) -> str:
    """Return text without surrounding blanks; control characters are refused."""
    if not isinstance(value, str):
        raise BadValue(f"{told(value)} is no text; put it in quotes")
    if any(ord(char) < 32 or ord(char) == 127 for char in value):
        raise BadValue("it holds control characters")
    return value.strip()


def parse_list(value: object) -> tuple[str, ...]:
    """Return texts: a list, or one text with commas. Empty ones and repetitions are dropped."""
    if isinstance(value, list | tuple):
        items = [parse_text(item) for item in cast("Sequence[object]", value)]
    else:
        items = [part.strip() for part in parse_text(value).split(",")]
    return tuple(dict.fromkeys(item for item in items if item))


def show_list(value: object) -> str:
    """Write texts with commas; none at all is the empty text."""
    return ",".join(cast("Sequence[str]", value))


_MOST_SHARES = 16
"""GPUs that llama.cpp puts a model on, at most."""


def parse_shares(value: object) -> tuple[float, ...]:
    """Return shares: numbers in a list, or in one text with commas; at least one is above 0."""
    picture = told(value)
    if isinstance(value, list | tuple):
        items = [str(item) for item in cast("Sequence[object]", value)]
    else:
        items = parse_text(value).split(",")
    try:
        shares = tuple(float(item) for item in items)
    except ValueError:
        shares = ()
    if not any(shares) or not all(0 <= share < 1e6 for share in shares) or len(shares) > _MOST_SHARES:
        hint = f"write one number a GPU, such as 3,1 ({_MOST_SHARES} at most)"
        raise BadValue(f"{picture} is no list of shares; {hint}")
    return shares


def show_shares(value: object) -> str:
    """Write shares with commas."""
    return ",".join(f"{share:g}" for share in cast("Sequence[float]", value))


def parse_path(value: object) -> Path | None:
    """Return a path with `~` expanded; the empty text is None."""
    text = parse_text(value)
    if not text:
        return None
    if not text.startswith("~"):
        return Path(text)  # As it is: of `./~name` Path would make `~name`.
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise BadValue(f'there is no home folder for "{text}"; write the whole path') from None
