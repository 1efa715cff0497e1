# SPDX-License-Identifier: GPL-3.0-only
"""The file of keys: what is written is what is read, and a bad one is told by its place."""

from __future__ import annotations

import hmac
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.keys import cheap_key

from modeld.config.files import dump_yaml, parse_yaml
from modeld.config.key_file import (
    BadKeys,
    KeyEntry,
    changing,
    hash_problem,
    hashed,
    matches,
    new_key,
    parts,
    read_keys,
    readable_by_others,
)
from modeld.domain.model import ModelSpec, catalog_of
from modeld.domain.request import Priority
from modeld.quotas.client import Client, Scope, redacted, visible_models


def test_a_secret_matches_its_own_hash_and_no_other() -> None:
    """The hash is scrypt at its full cost, salted again each time, and holds nothing of the secret."""
    key = new_key()
    found = parts(key.text)
    assert found is not None
    assert found[0] == key.id
    assert key.hash.startswith("scrypt$n=16384,r=8,p=1$")
    assert found[1] not in key.hash
    assert matches(key.hash, found[1])
    assert not matches(key.hash, found[1][:-1] + ("0" if found[1][-1] != "0" else "1"))
    assert hashed(found[1]) != key.hash


def test_a_secret_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole digests, by `hmac.compare_digest`, whose time does not tell where they differ."""
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return False

    monkeypatch.setattr(hmac, "compare_digest", compare)
    key = new_key()
    found = parts(key.text)
    assert found is not None
    assert not matches(key.hash, found[1]), "nothing else decides"
    assert [len(each) for pair in compared for each in pair] == [64, 64]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("plain-secret", "no scrypt hash"),
        ("scrypt$n=16384,r=8,p=1$AAAAAAAAAAAAAAAAAAAAAA==$", "no scrypt hash"),
        (
            "scrypt$n=1000,r=8,p=1$AAAAAAAAAAAAAAAAAAAAAA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
            "power of 2",
        ),
        (
            "scrypt$n=1048576,r=8,p=1$AAAAAAAAAAAAAAAAAAAAAA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
            "more than 64 MiB",
        ),
        (
            "scrypt$n=2,r=1,p=1$AAA=AAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
            "no base64",
        ),
    ],
)
def test_what_cannot_be_checked_against_is_told(text: str, why: str) -> None:
    """Nothing else than a scrypt hash of bearable cost is taken."""
    assert why in (hash_problem(text) or "")


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    """Entries come back as they were, in a file that only its owner may read."""
    path = tmp_path / "keys.yaml"
    key_id, _, alice = cheap_key(
        "alice", scopes=["infer", "metrics"], models=["tiny*"], tokens_per_day=5, weight=0.5
    )
    other_id, _, number = cheap_key("1e5", priority="low")
    with changing(path) as entries:
        entries[key_id] = alice
        entries[other_id] = number
    assert read_keys(path) == {key_id: alice, other_id: number}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not readable_by_others(path)
    path.chmod(0o640)
    assert readable_by_others(path)
    assert list(tmp_path.iterdir()) == [path], "no file is left alongside it"


def test_a_change_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """Nothing is written, and nothing is left alongside it."""
    path = tmp_path / "keys.yaml"
    key_id, _, alice = cheap_key("alice")
    with changing(path) as entries:
        entries[key_id] = alice
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError), changing(path) as entries:
        entries[key_id] = 1 // 0
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_leaves_the_file_to_who_owns_it(tmp_path: Path) -> None:
    """A service's folder gets a file that the service can read; it stays its own."""
    os.chown(tmp_path, 65534, 65534)
    path = tmp_path / "keys.yaml"
    for name in ("alice", "bob"):
        key_id, _, entry = cheap_key(name)
        with changing(path) as entries:
            entries[key_id] = entry
        assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65534)


KEPT = cheap_key("x")[2].hash


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("keys: 3", "keys: it must hold an entry"),
        ("key: {}", "unknown key key; did you mean keys?"),
        ('keys: {xyz: {name: a, hash: "%s"}}', '"xyz" is no id of a key'),
        ("keys: {a00000000001: {name: a, hash: plain}}", "keys.a00000000001.hash: it is no scrypt hash"),
        ('keys: {a00000000001: {name: "", hash: "%s"}}', "name: expected `str` matching regex"),
        (
            'keys: {a00000000001: {name: a, hash: "%s", scope: [infer]}}',
            "unknown key scope; did you mean scopes?",
        ),
        ('keys: {a00000000001: {name: a, hash: "%s", scopes: [root]}}', "invalid enum value 'root'"),
        ('keys: {a00000000001: {name: a, hash: "%s", requests_per_minute: 0}}', "expected `int` >= 1"),
        (
            'keys: {a00000000001: {name: a, hash: "%s"}, a00000000002: {name: a, hash: "%s"}}',
            'a00000000001 and a00000000002 are both called "a"',
        ),
        ("keys: [", "is no YAML"),
    ],
)
def test_a_bad_file_is_told_by_its_place(tmp_path: Path, text: str, why: str) -> None:
    """The sentence names the file, the key and what is wrong."""
    path = tmp_path / "keys.yaml"
    path.write_text(text.replace("%s", KEPT))
    with pytest.raises(BadKeys) as raised:
        read_keys(path)
    assert str(path) in str(raised.value)
    assert why in str(raised.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    """So is one that cannot be read."""
    with pytest.raises(BadKeys, match="no such file"):
        read_keys(tmp_path / "none.yaml")


@given(
    st.dictionaries(st.text(st.characters(codec="ascii", min_codepoint=32), max_size=8), st.text(max_size=8))
)
def test_yaml_is_read_as_it_was_written(content: dict[str, str]) -> None:
    """Text stays text, also where it looks like a number in one version of YAML and not in another."""
    printable = {key: value for key, value in content.items() if value.isprintable()}
    assert parse_yaml(dump_yaml(printable)) == printable


def test_keys_are_taken_out_of_what_is_logged() -> None:
    """The id stays, so that one can tell whose it was."""
    key = new_key()
    assert redacted(f"x {key.text} {key.text} y") == f"x modeld_{key.id}_*** modeld_{key.id}_*** y"
    assert redacted("modeld serves") == "modeld serves"


CATALOG = catalog_of(
    [
        ModelSpec(id="a-1.gguf", path="/a", aliases=("a-1", "fast")),
        ModelSpec(id="b-1.gguf", path="/b", aliases=("b-1",)),
        ModelSpec(id="b-2.gguf", path="/c", aliases=("b-2",), error="damaged"),
    ]
)


@pytest.mark.parametrize(
    ("patterns", "ids", "default"),
    [
        ((), ["a-1.gguf", "b-1.gguf", "b-2.gguf"], "a-1.gguf"),
        (("b-*",), ["b-1.gguf", "b-2.gguf"], "b-1.gguf"),
        (("fast",), ["a-1.gguf"], "a-1.gguf"),
        (("b-2",), ["b-2.gguf"], None),
        (("none",), [], None),
    ],
)
def test_a_client_sees_its_models_only(
    patterns: tuple[str, ...], ids: list[str], default: str | None
) -> None:
    """By id, stem or alias; the default is the first healthy one that it sees."""
    seen = visible_models(CATALOG, Client(models=patterns))
    assert list(seen.models) == ids
    assert seen.default == default
    assert set(seen.names.values()) == set(ids)


def test_a_ceiling_lowers_what_is_above_it() -> None:
    """And raises nothing."""
    client = Client(priority=Priority.NORMAL)
    asked = [client.capped(priority) for priority in (Priority.HIGH, Priority.NORMAL, Priority.LOW)]
    assert asked == [Priority.NORMAL, Priority.NORMAL, Priority.LOW]
    assert Client().capped(Priority.HIGH) is Priority.HIGH


@pytest.mark.parametrize(
    ("number", "told"), [("60.0", None), ("60.5", "expected `int | null`"), ("-1.0", ">= 1")]
)
def test_a_limit_may_be_a_whole_float(tmp_path: Path, number: str, told: str | None) -> None:
    """As in settings and in bodies; a fraction is refused."""
    path = tmp_path / "keys.yaml"
    path.write_text(f"keys: {{a00000000001: {{name: a, hash: '{KEPT}', requests_per_minute: {number}}}}}")
    if told is None:
        assert read_keys(path)["a00000000001"].requests_per_minute == 60
    else:
        with pytest.raises(BadKeys, match=told):
            read_keys(path)


def test_the_terms_of_an_entry_are_those_of_its_holder() -> None:
    """Every limit that the file has reaches the client."""
    entry = KeyEntry(
        name="a", hash=KEPT, scopes=(Scope.ADMIN,), models=("m",), requests_per_minute=1, tokens_per_minute=2
    )
    assert entry.client("a1") == Client(
        id="a1",
        name="a",
        scopes=frozenset({Scope.ADMIN}),
        models=("m",),
        requests_per_minute=1,
        tokens_per_minute=2,
    )
