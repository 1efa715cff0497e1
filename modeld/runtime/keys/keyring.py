# SPDX-License-Identifier: GPL-3.0-only
"""Verify the keys that clients send, and reload the key file on request.

Hashes are slow on purpose, and requests must not be. So what was checked once is remembered, by its HMAC
under a key that only this process has: a look-up in a table whose keys nobody can foresee takes 3 us and
tells nothing by its time. One text is right for each key, so what is remembered of them is bounded;
refusals are remembered apart, so that a client with an old key costs no 50 ms at each try.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from pathlib import Path

import trio

from modeld.config.key_file import BadKeys, KeyEntry, matches, parts, read_keys, readable_by_others
from modeld.errors import TooManyAttempts
from modeld.quotas.client import Client
from modeld.telemetry.log import get_logger

REFUSALS = 4096
"""So many refusals are remembered, the latest."""
MOST_WAITING = 16
"""Checks that may wait for their turn: one is done at a time, in a thread, at some 20 a second."""

_log = get_logger("modeld.keys")


class Keyring:
    """The keys of one file.

    Attributes:
      clients: the holders, by the ids of their keys.
    """

    def __init__(self, path: Path, entries: Mapping[str, KeyEntry]) -> None:
        self._path = path
        self._pepper = secrets.token_bytes(32)
        self._limiter = trio.CapacityLimiter(1)
        self._reload = trio.Event()
        self._take(entries)

    @classmethod
    def open(cls, path: Path) -> Keyring:
        """Read the file. Raises: BadKeys."""
        return cls(path, read_keys(path))

    def _take(self, entries: Mapping[str, KeyEntry]) -> None:
        self._entries = entries
        self.clients: Mapping[str, Client] = {key: entry.client(key) for key, entry in entries.items()}
        self._known: dict[bytes, Client] = {}
        self._refused: dict[bytes, None] = {}

    def __len__(self) -> int:
        return len(self.clients)

    async def holder(self, text: str) -> Client | None:
        """Return whose key this is, or None: nobody's. Waits only for a key that was not seen before.

        Raises: TooManyAttempts when too many such keys wait to be checked.
        """
        digest = hmac.digest(self._pepper, text.encode(), hashlib.sha256)
        if (client := self._known.get(digest)) is not None:
            return client  # noqa: ASYNC910  # each request comes by here, and yields when it is answered; a checkpoint costs a turn of the loop
        found = parts(text)
        entry = None if found is None else self._entries.get(found[0])
        if found is None or entry is None or digest in self._refused:
            await trio.lowlevel.checkpoint()
            return None
        if self._limiter.statistics().tasks_waiting >= MOST_WAITING:
            raise TooManyAttempts(
                f"{MOST_WAITING} new keys wait to be checked, which is done one by one; try again in a second"
            )
        key_id, secret = found
        right = await trio.to_thread.run_sync(matches, entry.hash, secret, limiter=self._limiter)
        now = self._entries.get(key_id)
        if now is None or now.hash != entry.hash:
            return None  # The file was read again meanwhile, and the key is revoked.
        if right:
            return self._known.setdefault(digest, self.clients[key_id])
        self._refused[digest] = None
        if len(self._refused) > REFUSALS:
            del self._refused[next(iter(self._refused))]
        return None

    def reload(self) -> None:
        """Have the file read again, by `run`. Never waits."""
        self._reload.set()

    async def run(self) -> None:
        """Read the file again whenever asked to; one that cannot be used changes nothing. Until cancelled."""
        while True:
            await self._reload.wait()
            self._reload = trio.Event()
            try:
                entries = await trio.to_thread.run_sync(read_keys, self._path)
            except BadKeys as error:
                _log.error("the keys stay as they were: the file cannot be used", reason=str(error))
                continue
            before = set(self._entries)
            self._take(entries)
            added, gone = len(set(entries) - before), len(before - set(entries))
            _log.info("keys read again", file=str(self._path), keys=len(entries), added=added, revoked=gone)
            if readable_by_others(self._path):
                _log.warning("others may read the file of keys; chmod 600 it", file=str(self._path))
