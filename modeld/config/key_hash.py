# SPDX-License-Identifier: GPL-3.0-only
"""Keys and what is kept of them: making one, hashing its secret, and checking one against a hash.

A key has a public id, by which its entry is found, and 256 random bits. Of the bits a scrypt hash is kept
(RFC 7914; n 2^14, r 8, p 1: 16 MiB and some 50 ms). For a secret that nobody can guess a fast hash would do;
the slow one costs little, because who uses this keeps what it has checked (`runtime.keyring`), and
holds where an entry was made by other means from a secret that somebody chose. scrypt, and not argon2, as
it is in Python's own library (OpenSSL's code), runs without the interpreter's lock, and needs no package.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from base64 import b64decode, b64encode

import msgspec

from modeld.core.client import KEY

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
