# SPDX-License-Identifier: GPL-3.0-only
"""Config files: three formats, told by ending or content, and held to the same rules."""

import codecs
import json
from pathlib import Path

import pytest

from modeld.config.files import UnreadableConfig, guess_format, parse_yaml, read_config
from modeld.config.key_file import read_keys


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.yaml", "addr: ':1'"),
        ("a.YML", "addr: ':1'"),
        ("a.json", '{"addr": ":1"}'),
        ("a.toml", "addr = ':1'"),
        ("a.conf", "# note\naddr: ':1'"),
        ("config", '{"addr": ":1"}'),
        ("a.txt", "# note\n\naddr = ':1'"),
        ("bom.json", b'\xef\xbb\xbf{"addr": ":1"}'),
    ],
)
def test_formats_are_told_apart(tmp_path: Path, name: str, content: str | bytes) -> None:
    """The ending decides, else the first meaningful line."""
    assert read_config(write(tmp_path, name, content)) == {"addr": ":1"}


@pytest.mark.parametrize(
    ("name", "content"), [("a.yaml", "a: 1"), ("a.json", '{"a": 1}'), ("a.toml", "a = 1")]
)
def test_a_byte_order_mark_is_passed_over(tmp_path: Path, name: str, content: str) -> None:
    """In each format, also where it is guessed from the content, and in a file of keys."""
    for place in (name, "a.conf"):
        assert read_config(write(tmp_path, place, content.encode("utf-8-sig"))) == {"a": 1}
    keys = {"keys": {}}
    assert read_keys(write(tmp_path, "keys.yaml", json.dumps(keys).encode("utf-8-sig"))) == {}


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    """Nothing, blanks and comments alone are an empty config."""
    assert read_config(write(tmp_path, "a.json", " \n")) == {}
    assert read_config(write(tmp_path, "a.yaml", "# only a note\n")) == {}
    assert guess_format("# only a note") == "YAML"


def test_yaml_scalars_are_those_of_version_1_2() -> None:
    """`off` is text, a leading zero is no octal, `1:30` is no number in base 60, a date is text."""
    assert parse_yaml("[off, yes, 010, 08, 1:30, 2026-01-02, 1e3, true, ~]") == [
        *("off", "yes", "010", "08", "1:30", "2026-01-02", 1000.0, True, None)
    ]


def test_yaml_anchors_and_merges_work() -> None:
    """An anchor may be used several times, and merged into a mapping."""
    found = parse_yaml("models:\n  a: &base {pinned: true}\n  b: {<<: *base, preload: true}")
    assert found == {"models": {"a": {"pinned": True}, "b": {"pinned": True, "preload": True}}}


BOMB = "a0: &a0 [x, x]\n" + "\n".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.yaml", "a: 1\na: 2", "twice, again in line 2"),
        ("a.json", '{"a": 1, "a": 2}', "twice"),
        ("a.toml", "a = 1\na = 2", "no TOML"),
        ("a.yaml", "a: [1", "line 1"),
        ("a.yaml", "a: !!python/object:os.system {}", "no YAML"),
        ("a.yaml", "a: 1\n---\nb: 2", "no YAML"),
        ("a.yaml", "a: \x00", "no YAML"),
        ("a.yaml", "a: &x [*x]", "contains itself"),
        ("a.yaml", BOMB, "more than"),
        ("a.yaml", "[" * 20_000, "too deeply"),
        ("a.json", "[" * 200_000, "too deeply"),
        ("a.toml", "a = " + "[" * 20_000, "TOML"),
        ("a.json", '{"a": NaN}', "NaN"),
        ("a.json", '{"a": -Infinity}', "Infinity"),
        ("a.json", "{'a': 1}", "line 1, column 2"),
        ("a.json", '{"a": 1' + "0" * 5000 + "}", "digits"),
        ("a.yaml", "a: 1" + "0" * 5000, "digits"),
        ("a.toml", "a = 1" + "0" * 5000, "TOML"),
        ("a.json", "[]", "one mapping"),
        ("a.yaml", "just text", "one mapping"),
        ("a.yaml", "5: x", "no text: 5"),
        ("a.yaml", b"a: \xff", "byte 3 is 0xff"),
        ("a.yaml", "a: 1".encode("utf-16"), "is UTF-16, as PowerShell writes; save it as UTF-8"),
        ("a.json", codecs.BOM_UTF16_BE + '{"a": 1}'.encode("utf-16-be"), "is UTF-16"),
        ("a.yaml", "#" * 1_100_000, "1 MiB"),
    ],
)
def test_a_bad_file_says_what_is_wrong(tmp_path: Path, name: str, content: str | bytes, reason: str) -> None:
    """Malformed, repeated, endless and foreign content is refused with its place."""
    with pytest.raises(UnreadableConfig, match=reason):
        read_config(write(tmp_path, name, content))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    """A path that cannot be read says so."""
    with pytest.raises(UnreadableConfig, match="no such file"):
        read_config(tmp_path / "none.yaml")
    with pytest.raises(UnreadableConfig, match="is a directory"):
        read_config(tmp_path)
