# SPDX-License-Identifier: GPL-3.0-only
"""Keys for tests: made in no time, because their hashes are the cheapest that scrypt has."""

from __future__ import annotations

import hashlib
import secrets
from base64 import b64encode
from pathlib import Path

import msgspec

from modeld.config.key_file import KeyEntry
from modeld.runtime.keys.keyring import Keyring


def cheap_key(name: str, **terms: object) -> tuple[str, str, KeyEntry]:
    """Return the id, the text and the entry of a key."""
    key_id, secret = f"a{secrets.token_hex(6)[1:]}", secrets.token_hex(32)
    salt = secrets.token_bytes(16)
    digest = hashlib.scrypt(secret.encode(), salt=salt, n=2, r=1, p=1)
    kept = f"scrypt$n=2,r=1,p=1${b64encode(salt).decode()}${b64encode(digest).decode()}"
    entry = msgspec.convert({"name": name, "hash": kept, **terms}, KeyEntry)
    return key_id, f"modeld_{key_id}_{secret}", entry


def ring(path: Path = Path("/nowhere"), /, **terms: dict[str, object]) -> tuple[Keyring, dict[str, str]]:
    """Return a keyring with a key for each name, and their texts by name."""
    made = {name: cheap_key(name, **its) for name, its in terms.items()}
    keyring = Keyring(path, {key_id: entry for key_id, _, entry in made.values()})
    return keyring, {name: text for name, (_, text, _) in made.items()}


def bearer(text: str) -> dict[str, str]:
    """The header that carries a key."""
    return {"Authorization": f"Bearer {text}"}
