# SPDX-License-Identifier: GPL-3.0-only
"""Read and write the key file: YAML or JSON, one entry per key id, written atomically.

keys:
  3f9a1c0b77de:
    name: alice
    hash: scrypt$n=16384,r=8,p=1$...$...
    scopes: [infer]
    models: ["tiny*"]
    requests_per_minute: 60
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import re
import secrets
import stat
import tempfile
from base64 import b64decode, b64encode
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, cast

import msgspec
from msgspec import Meta

from modeld.config.files import UnreadableConfig, dump_yaml, read_config
from modeld.config.values import did_you_mean
from modeld.domain.request import Priority
from modeld.quotas.client import KEY, KEY_ID, Client, Scope

# ----------------------------------------------------------------------
# Keys and what is kept of them: making one, hashing its secret, and checking one against a hash.
#
# A key has a public id, by which its entry is found, and 256 random bits. Of the bits a scrypt hash is kept
# (RFC 7914; n 2^14, r 8, p 1: 16 MiB and some 50 ms). For a secret that nobody can guess a fast hash would
# do;
# the slow one costs little, because who uses this keeps what it has checked (`runtime.keys.keyring`), and
# holds where an entry was made by other means from a secret that somebody chose. scrypt, and not argon2, as
# it is in Python's own library (OpenSSL's code), runs without the interpreter's lock, and needs no package.

_N, _R, _P = 2**14, 8, 1
_HASH = re.compile(
    r"scrypt\$n=(?P<n>\d{1,7}),r=(?P<r>\d{1,2}),p=(?P<p>\d{1,2})"
    r"\$(?P<salt>[A-Za-z0-9+/=]{16,128})\$(?P<digest>[A-Za-z0-9+/=]{24,128})"
)
_MOST_BYTES = 64 * 1024 * 1024
"""Of memory that one check may take."""


class NewKey(msgspec.Struct, frozen=True):
    """A key that was just made. `text` is what its holder sends, and is kept nowhere."""

    id: str
    text: str
    hash: str


def new_key() -> NewKey:
    """Make a key."""
    key_id = secrets.choice("abcdef") + secrets.token_hex(6)[1:]
    secret = secrets.token_hex(32)
    return NewKey(key_id, f"modeld_{key_id}_{secret}", hashed(secret))


def parts(text: str) -> tuple[str, str] | None:
    """Return a key's id and secret, or None for what is no key."""
    found = KEY.fullmatch(text)
    return None if found is None else (found["id"], found["secret"])


def hashed(secret: str) -> str:
    """Return what is kept of a secret. Takes some 50 ms."""
    salt = secrets.token_bytes(16)
    digest = hashlib.scrypt(secret.encode(), salt=salt, n=_N, r=_R, p=_P)
    return f"scrypt$n={_N},r={_R},p={_P}${b64encode(salt).decode()}${b64encode(digest).decode()}"


def hash_problem(text: str) -> str | None:
    """Return why `text` is no hash that can be checked against, or None."""
    found = _HASH.fullmatch(text)
    if found is None:
        return "it is no scrypt hash as `modeld keys add` writes it"
    n, r, p = int(found["n"]), int(found["r"]), int(found["p"])
    if n < 2 or n & (n - 1) or r < 1 or p < 1:
        return "n must be a power of 2, r and p at least 1"
    if 128 * r * (n + p) > _MOST_BYTES:
        return f"it takes more than {_MOST_BYTES // 2**20} MiB to check"
    try:
        b64decode(found["salt"], validate=True)
        b64decode(found["digest"], validate=True)
    except ValueError:
        return "its salt or its digest is no base64"
    return None


def matches(kept: str, secret: str) -> bool:
    """Whether `secret` is the one that `kept` was made of. Takes some 50 ms, and as long if it is not.

    Raises: ValueError for what is no hash; see `hash_problem`.
    """
    found = _HASH.fullmatch(kept)
    if found is None:
        raise ValueError("no hash of a key")
    wanted = b64decode(found["digest"])
    digest = hashlib.scrypt(
        secret.encode(),
        salt=b64decode(found["salt"]),
        n=int(found["n"]),
        r=int(found["r"]),
        p=int(found["p"]),
        maxmem=2 * _MOST_BYTES,
        dklen=len(wanted),
    )
    return hmac.compare_digest(digest, wanted)


# ----------------------------------------------------------------------

MOST_KEYS = 1000
"""Each has series of its own in /metrics."""
CREDENTIAL = "modeld.keys"
"""The credential of systemd that holds such a file (LoadCredential=modeld.keys:/path)."""

_HEAD = (
    "# Keys of modeld. `modeld keys` changes it; the daemon reads it again at SIGHUP (systemctl reload).\n"
)
_Count = Annotated[int, Meta(ge=1, le=2**40)]
_Pattern = Annotated[str, Meta(min_length=1, max_length=256)]
_NAME = r"[A-Za-z0-9][A-Za-z0-9 ._@+-]{0,63}"
_PLACE = re.compile(r"(?P<what>.*?)(?: - at `\$\.?(?P<place>[^`]*)`)?", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>.*)`", re.DOTALL)


class BadKeys(Exception):
    """The keys cannot be used; the message says why, and names the file."""


class KeyEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the file has about one key; see `quotas.client.Client` for the terms."""

    name: Annotated[str, Meta(pattern=f"^{_NAME}$")]
    hash: str
    created: str = ""
    scopes: tuple[Scope, ...] = (Scope.INFER,)
    models: tuple[_Pattern, ...] = ()
    requests_per_minute: _Count | None = None
    tokens_per_minute: _Count | None = None
    concurrent_requests: _Count | None = None
    tokens_per_day: _Count | None = None
    priority: Priority | None = None
    weight: Annotated[float, Meta(ge=0.01, le=100)] = 1.0

    def client(self, key_id: str) -> Client:
        """Return the holder of the key, and its terms."""
        return Client(
            id=key_id,
            name=self.name,
            scopes=frozenset(self.scopes),
            models=self.models,
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            concurrent_requests=self.concurrent_requests,
            tokens_per_day=self.tokens_per_day,
            priority=self.priority,
            weight=self.weight,
        )


def read_keys(path: Path) -> Mapping[str, KeyEntry]:
    """Return the entries by id, in the file's order.

    Raises: BadKeys, with the first thing to mend.
    """
    try:
        content = read_config(path)
    except UnreadableConfig as error:
        raise BadKeys(f"{path}: {error}") from None
    for key in content:
        if key != "keys":
            raise BadKeys(f"{path}: unknown key {key[:60]}{did_you_mean(key, ('keys',))}")
    found = content.get("keys")
    if not isinstance(found, dict | None):
        raise BadKeys(f"{path}: keys: it must hold an entry for each key, under its id")
    raw = cast("dict[object, object]", found or {})
    if len(raw) > MOST_KEYS:
        raise BadKeys(f"{path}: there are {len(raw)} keys; the most is {MOST_KEYS}")
    entries: dict[str, KeyEntry] = {}
    names: dict[str, str] = {}
    for key_id, it in raw.items():
        if not isinstance(key_id, str) or not re.fullmatch(KEY_ID, key_id):
            raise BadKeys(f'{path}: keys: "{str(key_id)[:60]}" is no id of a key')
        entry = entries[key_id] = _entry(it, f"{path}: keys.{key_id}")
        if (other := names.setdefault(entry.name, key_id)) != key_id:
            raise BadKeys(f'{path}: keys {other} and {key_id} are both called "{entry.name}"')
    return entries


def _entry(raw: object, label: str) -> KeyEntry:
    try:
        entry = msgspec.convert(_with_whole_numbers(raw), KeyEntry)
    except msgspec.ValidationError as error:
        match = _PLACE.fullmatch(str(error))
        what, place = (match["what"], match["place"] or "") if match else (str(error), "")
        where = f"{label}.{place}" if place else label
        if found := _UNKNOWN.fullmatch(what):
            key = found["key"]
            hint = did_you_mean(key, KeyEntry.__struct_fields__)
            raise BadKeys(f"{where}: unknown key {key[:60]}{hint}") from None
        raise BadKeys(f"{where}: {what[:1].lower()}{what[1:]}") from None
    if (why := hash_problem(entry.hash)) is not None:
        raise BadKeys(f"{label}.hash: {why}")
    return entry


def _with_whole_numbers(raw: object) -> object:
    """Return an entry whose limits may be written as `60.0`, as settings and bodies of requests may."""
    if not isinstance(raw, dict):
        return raw
    entry = cast("dict[object, object]", raw)
    return {
        key: int(value) if isinstance(value, float) and value.is_integer() else value
        for key, value in entry.items()
    }


def readable_by_others(path: Path) -> bool:
    """Whether more than its owner may read the file."""
    try:
        return bool(stat.S_IMODE(path.stat().st_mode) & 0o077)
    except OSError:
        return False


@contextmanager
def changing(path: Path) -> Generator[dict[str, KeyEntry]]:
    """Give the entries to be changed, and write them at the end; nobody else changes them meanwhile.

    A file that is not there yet is begun. If the block raises, nothing is written.
    Raises: BadKeys for a file that cannot be read or written.
    """
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise BadKeys(f"{path.parent}: {(error.strerror or str(error)).lower()}") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        entries = dict(read_keys(path)) if path.exists() else {}
        yield entries
        _write(path, entries)
        os.fsync(folder)
    except OSError as error:
        raise BadKeys(f"{path} cannot be written: {(error.strerror or str(error)).lower()}") from None
    finally:
        os.close(folder)


def _write(path: Path, entries: Mapping[str, KeyEntry]) -> None:
    """Put a new file in place of the old one: mode 0600, and by root given to who owned the old one."""
    content = {"keys": cast("object", msgspec.to_builtins(dict(entries)))}
    text = _HEAD + dump_yaml(content)
    owner = path.stat() if path.exists() else path.parent.stat()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            if os.geteuid() == 0:
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:  # whatever it is, Ctrl-C too: no half-written file stays
        Path(name).unlink(missing_ok=True)
        raise
