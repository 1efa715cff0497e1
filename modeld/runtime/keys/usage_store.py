# SPDX-License-Identifier: GPL-3.0-only
"""Store usage in SQLite, one row per day, key and model. Synchronous; runs in a thread.

Python's own `sqlite3` is the binding: an ORM or a query builder would be larger than these four statements.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path

from modeld.quotas.usage import Counts, Row

KEPT_DAYS = 400
_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS usage (
    day TEXT NOT NULL, key TEXT NOT NULL, model TEXT NOT NULL,
    requests INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL, refused INTEGER NOT NULL,
    PRIMARY KEY (day, key, model)
) WITHOUT ROWID
"""
_ADD = """
INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (day, key, model) DO UPDATE SET
    requests = requests + excluded.requests,
    prompt_tokens = prompt_tokens + excluded.prompt_tokens,
    completion_tokens = completion_tokens + excluded.completion_tokens,
    cached_tokens = cached_tokens + excluded.cached_tokens,
    refused = refused + excluded.refused
"""
_TOTALS = """
SELECT key, sum(requests), sum(prompt_tokens), sum(completion_tokens), sum(cached_tokens), sum(refused)
FROM usage GROUP BY key
"""
_OF_DAY = """
SELECT key, model, sum(requests), sum(prompt_tokens), sum(completion_tokens), sum(cached_tokens), sum(refused)
FROM usage WHERE day = ? GROUP BY key, model
"""
_BUSY_S = 1.0
"""How long to wait for another process that reads the file."""


class CannotStore(Exception):
    """Usage cannot be kept; the message says why."""


class _ForeignRow(Exception):
    """A row that modeld has not written: SQLite keeps any type in any column."""


class UsageStore:
    """The file. Each call may come from another thread, but never two at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None

    def open(self, today: str) -> tuple[Mapping[str, Counts], Mapping[Row, Counts]]:
        """Open the file, and return the totals by key, and the rows of today. Rows older than a year go.

        Raises: CannotStore.
        """
        try:
            self._path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            db = sqlite3.connect(self._path, timeout=_BUSY_S, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise CannotStore(f"{self._path}: {error}") from None
        try:
            self._make_ready(db, today)
            totals = {_text(key): _counts(*numbers) for key, *numbers in db.execute(_TOTALS)}
            rows = {
                Row(today, _text(key), _text(model)): _counts(*numbers)
                for key, model, *numbers in db.execute(_OF_DAY, (today,))
            }
        except (sqlite3.Error, _ForeignRow) as error:
            db.close()
            raise CannotStore(f"{self._path}: {error}") from None
        except BaseException:  # whatever it is: the file is closed, and it goes on
            db.close()
            raise
        self._db = db
        return totals, rows

    def _make_ready(self, db: sqlite3.Connection, today: str) -> None:
        """Make the table if it is not there, and drop what is too old. Raises: CannotStore, sqlite3.Error."""
        [(version,)] = db.execute("PRAGMA user_version")
        if version not in {0, _VERSION}:
            raise CannotStore(f"{self._path} was written by a newer modeld (version {version})")
        with db:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute(_SCHEMA)
            db.execute(f"PRAGMA user_version = {_VERSION}")
            db.execute("DELETE FROM usage WHERE day < date(?, ?)", (today, f"-{KEPT_DAYS} days"))

    def add(self, rows: Mapping[Row, Counts]) -> None:
        """Add these counts, all or none. Raises: CannotStore."""
        if self._db is None:
            raise CannotStore(f"{self._path} is not open")
        values = [
            (
                *(row.day, row.key, row.model),
                *(it.requests, it.prompt_tokens, it.completion_tokens, it.cached_tokens, it.refused),
            )
            for row, it in rows.items()
        ]
        try:
            with self._db:
                self._db.executemany(_ADD, values)
        except sqlite3.Error as error:
            raise CannotStore(f"{self._path}: {error}") from None

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._db is not None:
            self._db.close()
            self._db = None


def _text(value: object) -> str:
    """Return the text of a column. Raises: _ForeignRow."""
    if not isinstance(value, str):
        raise _ForeignRow(f"it has {value!r:.40} where a name belongs; move the file away")
    return value


def _count(value: object) -> int:
    """Return the number of a column. Raises: _ForeignRow."""
    if not isinstance(value, int) or value < 0:
        raise _ForeignRow(f"it has {value!r:.40} where a count belongs; move the file away")
    return value


def _counts(requests: object, prompt: object, completion: object, cached: object, refused: object) -> Counts:
    """Return the counts of a row. Raises: _ForeignRow."""
    return Counts(
        requests=_count(requests),
        prompt_tokens=_count(prompt),
        completion_tokens=_count(completion),
        cached_tokens=_count(cached),
        refused=_count(refused),
    )
