# SPDX-License-Identifier: GPL-3.0-only
"""`modeld keys`, and what `serve` says when there are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.keys import cheap_key

from modeld.cli.main import modeld
from modeld.config.key_file import changing, matches, parts, read_keys


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(modeld, [str(word) for word in arguments])


def test_a_key_is_shown_once_and_kept_as_a_hash(tmp_path: Path) -> None:
    """`add` prints it alone on standard output; the file, the list and the other output do not have it."""
    path = tmp_path / "new" / "keys.yaml"
    added = run("keys", "add", "alice", "--keys-file", path, "--model", "tiny*", "--requests-per-minute", 60)
    assert added.exit_code == 0, added.output
    found = parts(added.stdout.strip())
    assert found is not None
    key_id, secret = found
    entry = read_keys(path)[key_id]
    assert matches(entry.hash, secret)
    assert (entry.name, entry.models, entry.requests_per_minute) == ("alice", ("tiny*",), 60)
    assert secret not in path.read_text()
    assert secret not in added.stderr
    listed = run("keys", "list", "--keys-file", path)
    assert listed.stdout == f"{key_id}  alice  infer  models: tiny*  requests per minute: 60\n"
    as_json = json.loads(run("keys", "list", "--json", "--keys-file", path).stdout)
    assert as_json[key_id]["models"] == ["tiny*"]
    assert "hash" not in as_json[key_id]


def test_a_name_is_given_once(tmp_path: Path) -> None:
    """A second key of that name is refused, and so is what cannot be a name; the file stays as it was."""
    path = tmp_path / "keys.yaml"
    key_id, _, alice = cheap_key("alice")
    with changing(path) as entries:
        entries[key_id] = alice
    before = path.read_bytes()
    again = run("keys", "add", "alice", "--keys-file", path)
    assert (again.exit_code, again.stdout) == (1, "")
    assert 'there is a key called "alice" already' in again.stderr
    odd = run("keys", "add", "a\nb", "--keys-file", path)
    assert odd.exit_code == 2
    assert "cannot be a name" in odd.stderr
    assert path.read_bytes() == before


@pytest.mark.parametrize("by", ["name", "id"])
def test_a_key_is_revoked_by_its_name_or_its_id(tmp_path: Path, by: str) -> None:
    """The others stay; one that is not there is an error."""
    path = tmp_path / "keys.yaml"
    made = {name: cheap_key(name) for name in ("alice", "bob")}
    with changing(path) as entries:
        entries.update({key_id: entry for key_id, _, entry in made.values()})
    revoked = run("keys", "revoke", "alice" if by == "name" else made["alice"][0], "--keys-file", path)
    assert revoked.exit_code == 0
    assert "SIGHUP" in revoked.stderr
    assert list(read_keys(path)) == [made["bob"][0]]
    assert run("keys", "revoke", "alice", "--keys-file", path).exit_code == 1
    assert run("keys", "revoke", "alice", "--keys-file", tmp_path / "none").exit_code == 1


def test_the_config_names_the_file(tmp_path: Path) -> None:
    """`--config` is read for it; without any file there is nothing to change."""
    path, config = tmp_path / "keys.yaml", tmp_path / "modeld.yaml"
    config.write_text(f"keys_file: {path}\n")
    assert run("keys", "add", "alice", "--config", config).exit_code == 0
    assert len(read_keys(path)) == 1
    config.write_text("log_level: info\n")
    nothing = run("keys", "list", "--config", config)
    assert nothing.exit_code == 2
    assert "say which file" in nothing.stderr


@pytest.mark.parametrize(
    ("flags", "text", "why"),
    [
        (["--require-keys"], None, "require_keys: there are no keys; set keys_file"),
        (["--keys-file", "{path}"], None, "keys_file: there is no {path}; modeld keys add"),
        (["--keys-file", "{path}", "--require-keys"], "keys: {}", "require_keys: {path} has no key"),
        (["--keys-file", "{path}"], "keys: {alice: {}}", '{path}: keys: "alice" is no id of a key'),
    ],
)
@pytest.mark.parametrize("command", ["serve", "check-config"])
def test_without_usable_keys_the_daemon_does_not_start(
    tmp_path: Path, command: str, flags: list[str], text: str | None, why: str
) -> None:
    """Exit code 2 and a sentence, as for every other setting that is wrong; check-config says the same."""
    path = tmp_path / "keys.yaml"
    if text is not None:
        path.write_text(text)
    done = run(command, "--models-dir", tmp_path, *(flag.format(path=path) for flag in flags))
    assert done.exit_code == 2
    assert f"modeld: {why.format(path=path)}" in done.stderr
    assert "preflight" not in done.stderr
