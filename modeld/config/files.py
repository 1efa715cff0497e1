# SPDX-License-Identifier: GPL-3.0-only
"""Read a config file: YAML, JSON or TOML, by its extension or its content.

Every format is held to the same: one mapping, no key twice, no endless nesting, at most 1 MiB.
YAML reads as version 1.2 does: only `true` and `false` are booleans, so `log_level: off` is text.
"""

from __future__ import annotations

import json
import re
import tomllib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Hashable
from pathlib import Path
from typing import cast

import yaml

_MOST_BYTES = 1024 * 1024
_MOST_NODES = 20_000
"""Values a YAML file may hold once its aliases are written out."""

_Resolvers = dict[str, list[tuple[str, re.Pattern[str]]]]
"""What a YAML scalar may be, by its first character: tags and their patterns (PyYAML's own form)."""
_FORMATS = {".yaml": "YAML", ".yml": "YAML", ".json": "JSON", ".toml": "TOML"}


class UnreadableConfig(ValueError):
    """The file cannot be read as a config; the message says why, without the file's name."""


def read_config(path: Path) -> dict[str, object]:
    """Return the mapping in the file; an empty file is an empty one.

    Raises:
      UnreadableConfig: it is missing, too large, no UTF-8, malformed, or not one mapping.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UnreadableConfig(f"cannot be read: {(error.strerror or str(error)).lower()}") from None
    if len(data) > _MOST_BYTES:
        raise UnreadableConfig("is larger than 1 MiB; this is no config file")
    if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        raise UnreadableConfig("is UTF-16, as PowerShell writes; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableConfig(f"is no UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}") from None
    if not text.strip():
        return {}
    kind = _FORMATS.get(path.suffix.lower()) or guess_format(text)
    try:
        content = {"YAML": parse_yaml, "JSON": parse_json, "TOML": parse_toml}[kind](text)
    except RecursionError:
        raise UnreadableConfig(f"is no {kind}: it is nested too deeply") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UnreadableConfig("must hold one mapping of settings to values")
    mapping = cast("dict[object, object]", content)
    if odd := [key for key in mapping if not isinstance(key, str)]:
        raise UnreadableConfig(f"has a key that is no text: {str(odd[0])[:40]}")
    return cast("dict[str, object]", mapping)


def guess_format(text: str) -> str:
    """Return YAML, JSON or TOML, from the first line that is neither empty nor a comment."""
    for line in text.splitlines():
        first = line.strip()
        if not first or first.startswith("#"):
            continue
        if first.startswith("{"):
            return "JSON"
        return "TOML" if re.match(r"[\w.\"'-]+\s*=|\[", first) else "YAML"
    return "YAML"


def parse_json(text: str) -> object:
    """Return the value of a JSON text; NaN, infinities and repeated keys are refused."""

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        found: dict[str, object] = {}
        for key, value in items:
            if key in found:
                raise UnreadableConfig(f'has the key "{key}" twice')
            found[key] = value
        return found

    def constant(word: str) -> object:
        raise UnreadableConfig(f"is no JSON: {word} is no number")

    try:
        return cast("object", json.loads(text, object_pairs_hook=pairs, parse_constant=constant))
    except json.JSONDecodeError as error:
        raise UnreadableConfig(
            f"is no JSON: line {error.lineno}, column {error.colno}: {error.msg}"
        ) from None
    except UnreadableConfig:
        raise
    except ValueError:
        raise UnreadableConfig("is no usable JSON: a number has too many digits") from None


def parse_toml(text: str) -> object:
    """Return the table of a TOML text."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UnreadableConfig(f"is no TOML: {error}") from None
    except ValueError:
        raise UnreadableConfig("is no usable TOML: a number has too many digits") from None


def parse_yaml(text: str) -> object:
    """Return the value of the one YAML document in `text`."""
    try:
        return cast("object", _Loader(text).get_single_data())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UnreadableConfig(f"is no YAML: {where}{error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UnreadableConfig(f"is no YAML: {str(error).splitlines()[0]}") from None
    except UnreadableConfig:
        raise
    except ValueError:
        raise UnreadableConfig("is no usable YAML: a number has too many digits") from None


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2, without repeated keys and endless aliases."""

    def get_single_node(self) -> yaml.Node | None:
        """Return the one document as it is written. Raises: UnreadableConfig if it would grow too large."""
        node = super().get_single_node()
        if node is not None:
            _refuse_bombs(node)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                name = str(key.value)
                if name in seen:
                    raise UnreadableConfig(
                        f'has the key "{name}" twice, again in line {key.start_mark.line + 1}'
                    )
                seen.add(name)
        return super().construct_mapping(node, deep)


_SCALARS = (
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", "tTfF"),
    ("int", r"(?:[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+)", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?[0-9]+[eE][-+]?[0-9]+", "-+0123456789"),
    ("float", r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))", "-+."),
    ("null", r"(?:~|null|Null|NULL|)", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
)
"""Tag, pattern and first characters of what is no text, in the order in which they are tried."""


def _resolvers() -> _Resolvers:
    made: _Resolvers = {}
    for name, pattern, firsts in _SCALARS:
        tagged = (f"tag:yaml.org,2002:{name}", re.compile(f"(?:{pattern})$"))
        for first in firsts:
            made.setdefault(first, []).append(tagged)
    return made


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which also quotes what only `_Loader` would take for something else than text."""


_OURS = _resolvers()
_THEIRS: _Resolvers = yaml.SafeDumper.yaml_implicit_resolvers
_Loader.yaml_implicit_resolvers = _OURS
_Dumper.yaml_implicit_resolvers = {
    first: [*_THEIRS.get(first, []), *_OURS.get(first, [])] for first in {*_THEIRS, *_OURS}
}


def dump_yaml(content: object) -> str:
    """Return a YAML text that `parse_yaml` reads as `content` again."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=200)


def _refuse_bombs(root: yaml.Node) -> None:
    sizes: dict[int, int | None] = {}

    def size(node: yaml.Node) -> int:
        if id(node) in sizes:
            known = sizes[id(node)]
            if known is None:
                raise UnreadableConfig("has an anchor that contains itself")
            return known
        sizes[id(node)] = None
        total = 1
        if isinstance(node, yaml.SequenceNode):
            total += sum(size(child) for child in node.value)
        elif isinstance(node, yaml.MappingNode):
            total += sum(size(key) + size(value) for key, value in node.value)
        if total > _MOST_NODES:
            raise UnreadableConfig(f"holds more than {_MOST_NODES} values; this is no config file")
        sizes[id(node)] = total
        return total

    size(root)
