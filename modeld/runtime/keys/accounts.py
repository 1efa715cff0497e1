# SPDX-License-Identifier: GPL-3.0-only
"""Check each key's limits per request, count its usage, and store that on disk.

Everything a request needs is in memory and takes no time. The file is written every few seconds, in a
thread; when it cannot be, that is a warning, and the counts wait.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial

import trio

from modeld.domain.request_events import Usage
from modeld.quotas.client import Client
from modeld.quotas.meter import (
    LimitStatus,
    Meter,
    Today,
    limit_statuses,
    refusal,
    request_begun,
    request_ended,
)
from modeld.quotas.usage import NOBODY, Counts, KeyUsage, LimitBody, Row, UsageReport
from modeld.runtime.keys.usage_store import CannotStore, UsageStore
from modeld.telemetry.log import get_logger
from modeld.telemetry.metrics import Metrics

FLUSH_S = 5.0
_LAST_FLUSH_S = 0.3
"""At the end; the stop waits for it."""
_DAY_S = 86_400
_log = get_logger("modeld.keys")


class RequestAccount:
    """One request of a key, from its admission to its end."""

    def __init__(self, accounts: KeyAccounts, client: Client, cost: int, model: str) -> None:
        self._accounts = accounts
        self._client = client
        self._cost = cost
        self._model = model

    def end(self, usage: Usage) -> None:
        """Count what it used. Call it once."""
        self._accounts.left(self._client, self._cost, self._model, usage)


class KeyAccounts:
    """The use of all keys since the file began, or without a file since the start.

    Args:
      metrics: gets the counts of each key.
      store: where usage is kept; None: nowhere.
      wall: tells seconds since the epoch. The days of quotas are counted by it, minutes are not.
    """

    def __init__(
        self, metrics: Metrics, store: UsageStore | None = None, *, wall: Callable[[], float] = time.time
    ) -> None:
        self._metrics = metrics
        self._store = store
        self._wall = wall
        self._meters: dict[str, Meter] = {}
        self._totals: dict[str, Counts] = {}
        self._today: dict[Row, Counts] = {}
        self._unwritten: dict[Row, Counts] = {}
        self._limiter = trio.CapacityLimiter(1)
        self._complained = False
        self._day_number = math.nan
        self._day_name = ""

    # --- what a request asks ----------------------------------------------------------------------

    def check(self, client: Client) -> None:
        """Let another request of this key pass. Raises: RateLimited, QuotaExceeded."""
        problem = refusal(client, self._meter(client.id), trio.current_time(), self._day())
        if problem is not None:
            self._count(client.id, "", Counts(refused=1))
            self._metrics.keys.count_refusal(client.name, str(problem.details["policy"]))
            raise problem.as_error()

    def begin(self, client: Client, cost: int, model: str) -> RequestAccount:
        """Note that it was taken, and is estimated to cost so many tokens."""
        self._meters[client.id or NOBODY] = request_begun(self._meter(client.id), cost, trio.current_time())
        return RequestAccount(self, client, cost, model)

    def left(self, client: Client, cost: int, model: str, usage: Usage) -> None:
        """See `RequestAccount.end`."""
        tokens = usage.prompt_tokens + usage.completion_tokens
        now, today = trio.current_time(), self._day()
        self._meters[client.id or NOBODY] = request_ended(self._meter(client.id), cost, tokens, now, today)
        self._metrics.keys.count(client.name or NOBODY, usage)
        counts = Counts(
            requests=1,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=usage.cached_tokens,
        )
        self._count(client.id, model, counts)

    def limit_statuses(self, client: Client) -> tuple[LimitStatus, ...]:
        """Return what is left of this key's limits."""
        return tuple(limit_statuses(client, self._meter(client.id), trio.current_time(), self._day()))

    def report(self, clients: Iterable[Client], *, everybody: bool) -> UsageReport:
        """Return the use of these keys; with `everybody` also that of keys which are gone, and of no key."""
        day = self._day()
        shown = {client.id or NOBODY: client for client in clients}
        if everybody:
            shown |= {key: Client(id=key) for key in self._totals if key not in shown}
        return UsageReport(
            day=day.name,
            kept=self._store is not None and not self._complained,
            keys=tuple(self._usage(key, client, day) for key, client in shown.items()),
        )

    # --- the file ---------------------------------------------------------------------------------

    async def open(self) -> None:
        """Take in what was used before this start, today's above all: quotas go on."""
        await trio.lowlevel.checkpoint()
        if self._store is None:
            return
        day = self._day().name
        try:
            totals, rows = await trio.to_thread.run_sync(self._store.open, day, limiter=self._limiter)
        except CannotStore as error:
            _log.warning("usage is not kept over a restart", reason=str(error))
            self._store = None
            return
        self._totals = dict(totals)
        self._today = dict(rows)
        for row, counts in rows.items():
            meter = self._meter(row.key)
            self._meters[row.key] = Meter(day=day, day_tokens=meter.day_tokens + counts.tokens)

    async def run(self) -> None:
        """Write what came every few seconds, until cancelled; then once more."""
        try:
            while True:
                await trio.sleep(FLUSH_S)
                await self.flush()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _LAST_FLUSH_S) as last:
                await self.flush()
            if self._store is not None and not last.cancelled_caught:
                self._store.close()

    async def flush(self) -> None:
        """Write what came since the last time. What cannot be written waits for the next time."""
        await trio.lowlevel.checkpoint()
        rows, self._unwritten = self._unwritten, {}
        if self._store is None or not rows:
            return
        write = partial(self._store.add, rows)
        try:
            await trio.to_thread.run_sync(write, limiter=self._limiter, abandon_on_cancel=True)
        except CannotStore as error:
            for row, counts in rows.items():
                self._unwritten[row] = self._unwritten.get(row, Counts()) + counts
            if not self._complained:
                _log.warning("usage cannot be written; it is tried again", reason=str(error))
            self._complained = True
        else:
            self._complained = False

    # ----------------------------------------------------------------------------------------------

    def _meter(self, key: str) -> Meter:
        return self._meters.get(key or NOBODY) or Meter()

    def _day(self) -> Today:
        number, gone_s = divmod(self._wall(), _DAY_S)
        if number != self._day_number:
            self._day_number = number
            self._day_name = datetime.fromtimestamp(number * _DAY_S, UTC).date().isoformat()
        return Today(self._day_name, _DAY_S - gone_s)

    def _count(self, key: str, model: str, counts: Counts) -> None:
        key = key or NOBODY
        row = Row(self._day().name, key, model)
        if self._today and next(iter(self._today)).day != row.day:
            self._today.clear()
        self._today[row] = self._today.get(row, Counts()) + counts
        self._totals[key] = self._totals.get(key, Counts()) + counts
        if self._store is not None:
            self._unwritten[row] = self._unwritten.get(row, Counts()) + counts

    def _usage(self, key: str, client: Client, day: Today) -> KeyUsage:
        rows = {row.model: it for row, it in self._today.items() if (row.day, row.key) == (day.name, key)}
        return KeyUsage(
            id=key,
            name=client.name,
            inside=self._meter(client.id).running,
            today=sum(rows.values(), Counts()),
            models={model: counts for model, counts in rows.items() if model},
            total=self._totals.get(key, Counts()),
            limits=tuple(
                LimitBody(policy=it.policy, unit=it.unit, quota=it.quota, left=it.left, reset_s=it.reset_s)
                for it in self.limit_statuses(client)
            ),
        )
