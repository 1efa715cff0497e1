# SPDX-License-Identifier: GPL-3.0-only
"""`modeld keys`: add, list and revoke keys in the key file; open that file for `serve`."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from modeld.cli.options import load_or_exit
from modeld.config.key_file import BadKeys, KeyEntry, changing, new_key, read_keys
from modeld.config.settings import Settings
from modeld.domain.request import Priority
from modeld.quotas.client import Scope
from modeld.runtime.keys.keyring import Keyring

_RELOAD = "a daemon that runs reads the file again at SIGHUP (systemctl reload modeld)"


def keyring_or_exit(settings: Settings) -> Keyring | None:
    """Return the keys to ask for, None for none; print what is wrong with them and exit with 2."""
    try:
        return _keyring(settings)
    except BadKeys as error:
        click.echo(f"modeld: {error}", err=True)
        raise SystemExit(2) from None


def _keyring(settings: Settings) -> Keyring | None:
    if settings.keys_file is None:
        if settings.require_keys:
            raise BadKeys("require_keys: there are no keys; set keys_file, and add one with modeld keys add")
        return None
    if not settings.keys_file.exists():
        raise BadKeys(
            f"keys_file: there is no {settings.keys_file}; modeld keys add NAME makes it with a first key"
        )
    keyring = Keyring.open(settings.keys_file)
    if settings.require_keys and not keyring.clients:
        raise BadKeys(f"require_keys: {settings.keys_file} has no key; add one with modeld keys add")
    return keyring


@contextmanager
def _telling() -> Generator[None]:
    try:
        yield
    except BadKeys as error:
        raise click.ClickException(str(error)) from None


@click.group()
def keys() -> None:
    """Add, list and revoke the keys that clients send.

    The file is --keys-file, else what MODELD_KEYS_FILE or the config file says.
    """


_FILE = (
    click.option("--keys-file", metavar="PATH", help="The file of keys."),
    click.option("--config", metavar="PATH", help="A config file that names it (keys_file)."),
)


def _path(keys_file: str | None, config: str | None) -> Path:
    if keys_file is not None:
        return Path(keys_file)
    path = load_or_exit({"config": config}).settings.keys_file
    if path is None:
        raise click.UsageError("say which file: --keys-file PATH, or keys_file in the config")
    return path


_LIMIT = click.IntRange(min=1)


@keys.command()
@click.argument("name")
@_FILE[0]
@_FILE[1]
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice([str(scope) for scope in Scope]),
    help="What it opens; may be given several times. [default: infer]",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="PATTERN",
    help="A model it may use, such as 'llama-*'; may be given several times. [default: all]",
)
@click.option("--requests-per-minute", type=_LIMIT, metavar="N")
@click.option("--tokens-per-minute", type=_LIMIT, metavar="N")
@click.option("--concurrent-requests", type=_LIMIT, metavar="N")
@click.option("--tokens-per-day", type=_LIMIT, metavar="N")
@click.option(
    "--priority",
    type=click.Choice([str(priority) for priority in Priority]),
    help="The highest class its requests may have.",
)
@click.option("--weight", type=click.FloatRange(0.01, 100), help="Its share of a queue. [default: 1]")
def add(name: str, keys_file: str | None, config: str | None, **terms: object) -> None:
    """Make a key called NAME, and print it. This is the only time it is shown."""
    path = _path(keys_file, config)
    key = new_key()
    created = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    given = {key: value for key, value in terms.items() if value not in {None, ()}}
    try:
        entry = msgspec.convert({"name": name, "hash": key.hash, "created": created, **given}, KeyEntry)
    except msgspec.ValidationError:
        raise click.UsageError(
            f'"{name[:80]}" cannot be a name: use 1 to 64 letters, digits, blanks and any of . _ @ + -'
        ) from None
    with _telling(), changing(path) as entries:
        if any(other.name == name for other in entries.values()):
            raise click.ClickException(
                f'there is a key called "{name}" already; revoke it first, or choose another name'
            )
        entries[key.id] = entry
    click.echo(key.text)
    click.echo(f'the key of "{name}" (id {key.id}): it is shown this once; {_RELOAD}', err=True)


@keys.command(name="list")
@_FILE[0]
@_FILE[1]
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_keys(keys_file: str | None, config: str | None, *, as_json: bool) -> None:
    """List the keys and their terms; no secret is in it."""
    path = _path(keys_file, config)
    with _telling():
        entries = read_keys(path)
    if as_json:
        shown = {key_id: msgspec.to_builtins(entry) for key_id, entry in entries.items()}
        for terms in shown.values():
            del terms["hash"]
        click.echo(msgspec.json.encode(shown).decode())
        return
    for key_id, entry in entries.items():
        click.echo("  ".join((key_id, entry.name, *_terms(entry))))


def _terms(entry: KeyEntry) -> Iterator[str]:
    yield ",".join(entry.scopes)
    if entry.models:
        yield f"models: {','.join(entry.models)}"
    for name in ("requests_per_minute", "tokens_per_minute", "concurrent_requests", "tokens_per_day"):
        if (limit := getattr(entry, name)) is not None:
            yield f"{name.replace('_', ' ')}: {limit}"
    if entry.priority is not None:
        yield f"priority: {entry.priority}"
    if entry.weight != 1:
        yield f"weight: {entry.weight:g}"


@keys.command()
@click.argument("key")
@_FILE[0]
@_FILE[1]
def revoke(key: str, keys_file: str | None, config: str | None) -> None:
    """Remove the key whose id or name is KEY."""
    path = _path(keys_file, config)
    if not path.exists():
        raise click.ClickException(f"there is no {path}")
    with _telling(), changing(path) as entries:
        found = [key_id for key_id, entry in entries.items() if key in {key_id, entry.name}]
        if not found:
            raise click.ClickException(
                f'no key has the id or the name "{key[:80]}"; modeld keys list shows them'
            )
        name = entries.pop(found[0]).name
    click.echo(f'revoked the key of "{name}" (id {found[0]}); {_RELOAD}', err=True)
