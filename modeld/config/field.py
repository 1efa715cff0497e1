# SPDX-License-Identifier: GPL-3.0-only
"""What a setting is: its name in files, flags and the environment, its kind, and its meaning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from modeld.config.address import parse_address
from modeld.config.settings import AUTO
from modeld.config.values import (
    BOOL,
    SHARES,
    TEXT,
    BadValue,
    Kind,
    duration,
    one_of,
    or_auto,
    or_none,
    parse_size,
    parse_text,
    told,
    whole,
)
from modeld.domain.model import MIB, EngineKind, Isolation


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


# ----------------------------------------------------------------------
# The kinds of values that settings have: which are allowed, and how they are read and told.

INT32 = 2**31 - 1
"""llama.cpp counts cells, tokens and layers in 32 bits."""
_MOST_SLOTS = 256
"""LLAMA_MAX_SEQ of llama.cpp."""
_MOST_THREADS = 512
"""GGML_MAX_N_THREADS of ggml."""
_MOST_BYTES = 2**40
_LEAST_ROTATION = 64 * 1024
_MOST_MIB = 2**40 // 1024
QUANTISED_KV = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
KV_TYPES = ("f16", "bf16", "f32", *QUANTISED_KV)
LOG_LEVELS = ("off", "error", "warn", "info", "debug")


def parse_addr(value: object) -> str:
    """Return an address to listen on, as it was written. Raises: BadValue."""
    if isinstance(value, int) and not isinstance(value, bool):
        raise BadValue(f'{value} is only a port; write ":{value}", in quotes')
    text = parse_text(value)
    parse_address(text)
    return text


def mib(low: int) -> Kind:
    """MiB, of `low` at least; also written with a unit."""
    return Kind("MIB", lambda value: parse_size(value, MIB, low, _MOST_MIB))


def size_bytes(low: int) -> Kind:
    """Bytes, `low` at least; also written with a unit."""
    return Kind("BYTES", lambda value: parse_size(value, 1, low, _MOST_BYTES))


def parse_rotation(value: object) -> int:
    """Return the bytes at which a file is rotated; 0 is never. Raises: BadValue."""
    size = parse_size(value, 1, 0, _MOST_BYTES)
    if 0 < size < _LEAST_ROTATION:
        raise BadValue(f"{told(value)} is too small; the least is {_LEAST_ROTATION}, and 0 is never")
    return size


def parse_engine(value: object) -> EngineKind:
    """Return which engine runs models. Raises: BadValue."""
    return EngineKind(cast("str", one_of([str(kind) for kind in EngineKind]).parse(value)))


def parse_isolation(value: object) -> Isolation:
    """Return where an engine runs. Raises: BadValue."""
    return Isolation(cast("str", one_of([str(kind) for kind in Isolation]).parse(value)))


_LOG_LEVEL = one_of(LOG_LEVELS)


def parse_log_level(value: object) -> str:
    """Return a level of the log; YAML's `off` is false. Raises: BadValue."""
    word = "off" if value is False or value == "" else value
    return cast("str", _LOG_LEVEL.parse("warn" if word == "warning" else word))


NAME = or_none(TEXT, ("",))
CTX = or_auto(whole(16, INT32, "CELLS"), AUTO)
SLOTS = or_auto(whole(1, _MOST_SLOTS), AUTO)
THREADS = whole(1, _MOST_THREADS)
NGL = or_none(whole(-1, INT32), ("auto",), lambda layers: layers == -1)
GPU = or_none(whole(0, 15), ("auto",))
SPLIT = or_none(SHARES, ("auto",))
FLASH = or_none(BOOL, ("auto",))
KV = one_of(KV_TYPES)
PREFIX = or_none(whole(0, INT32, "CELLS"), ("auto",))
UBATCH = whole(1, 65536, "TOKENS")
DEPTH = whole(1, 1_000_000)
TTL = or_none(duration(-INT32), ("forever", "never"), lambda seconds: cast("float", seconds) < 0)
