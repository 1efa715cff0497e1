# SPDX-License-Identifier: GPL-3.0-only
"""Read settings from the fields of a struct: from annotation, default, and the text below each.

The key in files, the flag, the environment variable, the checks, the help and the documentation follow from
these. The annotation may be left out where the type alone says which values there are.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Annotated, cast, get_args, get_origin, get_type_hints

import msgspec

from modeld.config.kinds import KIND_OF_TYPE, Kind

ENV_PREFIX = "MODELD_"
_BY_TYPE = Kind("", str)


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. An annotation gives the first five attributes, `settings_of` the others.

    Attributes:
      kind: which values it takes; where none is named, the type of the field says it.
      section: heading in the help and the documentation; it holds for the settings below, up to the next.
      flags: further spellings of the flag.
      zero_is_default: 0 means "not set", as in the Go program.
      default_text: how the default is described, where it is not a constant.
      name: key in files.
      help: one sentence or two, in Markdown.
      default: the value where nothing is set.
    """

    kind: Kind = _BY_TYPE
    section: str = ""
    flags: tuple[str, ...] = ()
    zero_is_default: bool = False
    default_text: str | None = None
    name: str = ""
    help: str = ""
    default: object = None

    @property
    def flag(self) -> str:
        """The flag, with its dashes."""
        return flag_of(self.name)

    @property
    def env(self) -> str:
        """The environment variable."""
        return ENV_PREFIX + self.name.upper()

    @property
    def shown_default(self) -> str:
        """The default as people are told it; the empty text for nothing."""
        return self.kind.show(self.default) if self.default_text is None else self.default_text

    def is_unset(self, raw: object) -> bool:
        """Tell whether `raw` stands for "take the default"."""
        if raw is None:
            return True
        zero = (
            isinstance(raw, int | float | str)
            and not isinstance(raw, bool)
            and str(raw).strip() in {"0", "0s", "0.0"}
        )
        return self.zero_is_default and zero


def flag_of(name: str) -> str:
    """Return the flag of a setting, or of a former one."""
    return "--" + name.replace("_", "-")


def settings_of(
    struct: type[msgspec.Struct], shared: Mapping[str, Setting] = MappingProxyType({})
) -> Mapping[str, Setting]:
    """Return the settings that the fields of `struct` declare, by name, in their order.

    A field without an annotation is the setting of the same name in `shared`, if there is one.

    Raises:
      TypeError: a field names no kind, and its type has none.
    """
    return {setting.name: setting for setting in _declared(struct, shared)}


def _declared(struct: type[msgspec.Struct], shared: Mapping[str, Setting]) -> Iterator[Setting]:
    defaults, texts = struct(), _texts_below_fields(struct)
    section = ""
    for name, hint in cast("dict[str, object]", get_type_hints(struct, include_extras=True)).items():
        of_type, setting = _annotation(hint)
        if setting is None and name in shared:
            setting = shared[name]
        else:
            setting = replace(setting or Setting(), name=name, help=texts.get(name, ""))
        if setting.kind is _BY_TYPE:
            if of_type not in KIND_OF_TYPE:
                raise TypeError(f"{struct.__name__}.{name} names no kind, and its type has none")
            setting = replace(setting, kind=KIND_OF_TYPE[of_type])
        section = setting.section or section
        yield replace(setting, section=section, default=cast("object", getattr(defaults, name)))


def _annotation(hint: object) -> tuple[object, Setting | None]:
    """Return the type that a hint names, and the setting that it declares."""
    if get_origin(hint) is not Annotated:
        return hint, None
    of_type, *extras = cast("tuple[object, ...]", get_args(hint))
    return of_type, next((extra for extra in extras if isinstance(extra, Setting)), None)


def _texts_below_fields(struct: type) -> Mapping[str, str]:
    """Return the text below each field of a class, by name, on one line.

    Python keeps no docstrings of fields, so they are read from the source. Without the source there are none.
    """
    try:
        module = ast.parse(inspect.getsource(sys.modules[struct.__module__]))
    except OSError:
        return {}
    found: dict[str, str] = {}
    for node in ast.walk(module):
        if isinstance(node, ast.ClassDef) and node.name == struct.__name__:
            found.update(_texts(node))
    return found


def _texts(struct: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, text in pairwise(struct.body):
        match field, text:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(words))),
            ):
                yield name, " ".join(words.split())
            case _:
                pass
