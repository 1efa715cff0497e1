# SPDX-License-Identifier: GPL-3.0-only
"""The kinds of values that settings have: which are allowed, how they are parsed and shown."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar, cast

from modeld.config.address import parse_address
from modeld.config.values import (
    BadValue,
    did_you_mean,
    parse_bool,
    parse_duration,
    parse_int,
    parse_list,
    parse_path,
    parse_shares,
    parse_size,
    parse_text,
    show_bool,
    show_duration,
    show_list,
    show_shares,
    told,
)
from modeld.domain.model import MIB

_Word = TypeVar("_Word", bound=StrEnum)

INT32 = 2**31 - 1
"""llama.cpp counts cells, tokens and layers in 32 bits."""
LLAMA_MAX_SEQ = 256
"""Of llama.cpp: the most slots."""
GGML_MAX_N_THREADS = 512
"""Of ggml: the most threads."""
_MOST_BYTES = 2**40
_LEAST_ROTATION = 64 * 1024
QUANTISED_KV = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
_LOG_LEVELS = ("off", "error", "warn", "info", "debug")


def _unchanged(value: object) -> object:
    return value


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of value. `parse` raises `BadValue`; `parse(show(value))` gives `value` back.

    Attributes:
      metavar: how the value is called in the help and the documentation.
      parse: reads what a flag, a variable or a file holds.
      show: writes a value the way people do.
      as_json: writes it as JSON has it, so that `parse` reads the same again.
    """

    metavar: str
    parse: Callable[[object], object]
    show: Callable[[object], str] = str
    as_json: Callable[[object], object] = _unchanged


# ----------------------------------------------------------------------
# Kinds with limits, and kinds made of others.


def one_of(words: Collection[str]) -> Kind:
    """One of these words, in any case."""

    def parse(value: object) -> str:
        word = parse_text(value).lower()
        if word not in words:
            choices = ", ".join(words)
            raise BadValue(f"{told(value)} is none of {choices}{did_you_mean(word, words)}")
        return word

    return Kind("|".join(words), parse)


def word_of(words: type[_Word], metavar: str) -> Kind:
    """One of the words of an enumeration, in any case."""
    kind = one_of([str(word) for word in words])
    return Kind(metavar, lambda value: words(cast("str", kind.parse(value))))


def whole(low: int, high: int, metavar: str = "N") -> Kind:
    """A whole number in [low, high]."""
    return Kind(metavar, lambda value: parse_int(value, low, high))


def duration(low: float = 0.0) -> Kind:
    """A duration of at least `low` seconds."""

    def parse(value: object) -> float:
        seconds = parse_duration(value)
        if seconds < low or (low > 0 and seconds == 0):
            raise BadValue(f"{told(value)} is too short; the least is {show_duration(low)}")
        return seconds

    return Kind("DURATION", parse, show_duration)


def mib(low: int) -> Kind:
    """MiB, at least `low`; also written with a unit."""
    return Kind("MIB", lambda value: parse_size(value, MIB, low, _MOST_BYTES // 1024))


def size_bytes(low: int) -> Kind:
    """Bytes, at least `low`; also written with a unit."""
    return Kind("BYTES", lambda value: parse_size(value, 1, low, _MOST_BYTES))


def or_none(kind: Kind, words: Collection[str], is_none: Callable[[object], bool] | None = None) -> Kind:
    """The kind, or one of these words for None; `is_none` says which parsed values mean None too."""
    word = next(iter(words))

    def parse(value: object) -> object:
        if value is None or (isinstance(value, str) and value.strip().lower() in words):
            return None
        parsed = kind.parse(value)
        return None if is_none is not None and is_none(parsed) else parsed

    metavar = f"{kind.metavar}|{word}" if word else kind.metavar
    return Kind(metavar, parse, lambda value: word if value is None else kind.show(value))


def or_auto(kind: Kind, chosen: int) -> Kind:
    """The kind, or the word `auto`, which becomes the value `chosen`."""

    def parse(value: object) -> object:
        is_auto = isinstance(value, str) and value.strip().lower() == "auto"
        return chosen if is_auto else kind.parse(value)

    return Kind(
        f"{kind.metavar}|auto",
        parse,
        lambda value: "auto" if value == chosen else kind.show(value),
        lambda value: "auto" if value == chosen else kind.as_json(value),
    )


# ----------------------------------------------------------------------
# Kinds that need no limits.


def _parse_addr(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        raise BadValue(f'{value} is only a port; write ":{value}", in quotes')
    text = parse_text(value)
    parse_address(text)
    return text


def _parse_rotation(value: object) -> int:
    size = parse_size(value, 1, 0, _MOST_BYTES)
    if 0 < size < _LEAST_ROTATION:
        raise BadValue(f"{told(value)} is too small; the least is {_LEAST_ROTATION}, and 0 is never")
    return size


def _parse_log_level(value: object) -> str:
    word = "off" if value is False or value == "" else value  # YAML's `off` is false
    return cast("str", one_of(_LOG_LEVELS).parse("warn" if word == "warning" else word))


def _show_path(value: object) -> str:
    return "" if value is None else str(value)


ADDR = Kind("ADDR", _parse_addr)
"""An address to listen on, kept as it was written."""
BOOL = Kind("BOOL", parse_bool, show_bool)
TEXT = Kind("TEXT", parse_text)
LIST = Kind("A,B,...", parse_list, show_list)
PATH = Kind("PATH", parse_path, _show_path, _show_path)
SHARES = Kind("A,B,...", parse_shares, show_shares)
ROTATION = Kind("BYTES", _parse_rotation)
"""The bytes at which a file is rotated; 0 is never."""
TIMEOUT = duration(0.1)
WAIT = duration(0.001)
LOG_LEVEL = Kind("|".join(_LOG_LEVELS), _parse_log_level)
KV_TYPE = one_of(("f16", "bf16", "f32", *QUANTISED_KV))

KIND_OF_TYPE: Mapping[object, Kind] = {
    bool: BOOL,
    bool | None: or_none(BOOL, ("auto",)),
    str: TEXT,
    str | None: or_none(TEXT, ("",)),
    Path: PATH,
    Path | None: PATH,
    tuple[str, ...]: LIST,
    float: duration(),
}
"""The kind of a setting whose declaration names none, by the type of its field."""
