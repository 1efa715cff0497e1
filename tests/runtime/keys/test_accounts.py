# SPDX-License-Identifier: GPL-3.0-only
"""Usage of keys: counted in memory, kept in a file behind that, and taken up again by the next start."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import trio

from modeld.domain.request_events import Usage
from modeld.errors import QuotaExceeded, RateLimited
from modeld.quotas.client import EVERYBODY, Client
from modeld.quotas.usage import Counts, Row
from modeld.runtime.keys import accounts as module
from modeld.runtime.keys.accounts import KeyAccounts
from modeld.runtime.keys.usage_store import CannotStore, UsageStore
from modeld.telemetry.metrics import Metrics

ALICE = Client(id="a00000000001", name="alice", tokens_per_day=100, requests_per_minute=3)
NOON = 1_795_348_800.0 + 43_200
USED = Usage(prompt_tokens=10, completion_tokens=30, cached_tokens=4)


def visit(accounts: KeyAccounts, client: Client = ALICE, usage: Usage = USED) -> None:
    """One request, from its admission to its end."""
    accounts.check(client)
    accounts.begin(client, 50, "m.gguf").end(usage)


async def test_usage_and_quotas_survive_a_restart(tmp_path: Path) -> None:
    """The next daemon goes on with the counts of today, and with what is left of the quota."""
    path = tmp_path / "new" / "usage.sqlite3"
    before = KeyAccounts(Metrics(), UsageStore(path), wall=lambda: NOON)
    await before.open()
    visit(before)
    visit(before, EVERYBODY)
    visit(before)
    await before.flush()

    after = KeyAccounts(Metrics(), UsageStore(path), wall=lambda: NOON)
    await after.open()
    report = after.report([ALICE], everybody=True)
    assert report.kept
    by_id = {it.id: it for it in report.keys}
    twice = Counts(requests=2, prompt_tokens=20, completion_tokens=60, cached_tokens=8)
    assert by_id[ALICE.id].today == by_id[ALICE.id].total == by_id[ALICE.id].models["m.gguf"] == twice
    assert by_id["-"].total.requests == 1
    visit(after)
    with pytest.raises(QuotaExceeded, match="120 are used"):
        after.check(ALICE)

    tomorrow = KeyAccounts(Metrics(), UsageStore(path), wall=lambda: NOON + 86_400)
    await tomorrow.open()
    tomorrow.check(ALICE)
    [its] = tomorrow.report([ALICE], everybody=False).keys
    assert (its.today, its.total) == (Counts(), twice)


async def test_what_came_is_written_while_it_runs_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every few seconds, and once more when the daemon stops."""
    monkeypatch.setattr(module, "FLUSH_S", 0.01)
    monkeypatch.setattr(module, "_LAST_FLUSH_S", 60.0)
    path = tmp_path / "usage.sqlite3"
    accounts = KeyAccounts(Metrics(), UsageStore(path), wall=lambda: NOON)
    await accounts.open()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accounts.run)
        visit(accounts)
        with trio.fail_after(60):
            while not requests_in(path):
                await trio.sleep(0.01)
        visit(accounts)
        nursery.cancel_scope.cancel()
    assert requests_in(path) == 2


def requests_in(path: Path) -> int:
    db = sqlite3.connect(path)
    try:
        [(number,)] = db.execute("SELECT coalesce(sum(requests), 0) FROM usage")
    finally:
        db.close()
    return int(number)


async def test_a_file_that_cannot_be_written_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests are served and counted, and the answer says that nothing is kept."""
    (tmp_path / "file").touch()
    accounts = KeyAccounts(Metrics(), UsageStore(tmp_path / "file" / "usage.sqlite3"), wall=lambda: NOON)
    await accounts.open()
    assert "usage is not kept over a restart" in caplog.text
    visit(accounts)
    report = accounts.report([ALICE], everybody=False)
    assert not report.kept
    assert report.keys[0].today.requests == 1


async def test_counts_wait_for_a_file_that_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What could not be written is written later, once, and the warning is given once."""
    path = tmp_path / "usage.sqlite3"
    store = UsageStore(path)
    accounts = KeyAccounts(Metrics(), store, wall=lambda: NOON)
    await accounts.open()
    with sqlite3.connect(path) as other:
        other.execute("ALTER TABLE usage RENAME TO away")
    for _ in range(2):
        visit(accounts)
        await accounts.flush()
    assert caplog.text.count("usage cannot be written") == 1
    assert not accounts.report([ALICE], everybody=False).kept
    with other:
        other.execute("ALTER TABLE away RENAME TO usage")
    other.close()
    await accounts.flush()
    assert accounts.report([ALICE], everybody=False).kept
    store.close()
    totals, _ = UsageStore(path).open("2026-11-22")
    assert totals[ALICE.id].requests == 2


@pytest.mark.parametrize("case", ["no database", "newer"])
def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path, case: str) -> None:
    """It is told, and not written to."""
    path = tmp_path / "usage.sqlite3"
    if case == "newer":
        db = sqlite3.connect(path)
        db.execute("PRAGMA user_version = 99")
        db.close()
    else:
        path.write_text("this is no database, and long enough to tell" * 100)
    before = path.read_bytes()
    with pytest.raises(CannotStore, match=r"usage\.sqlite3"):
        UsageStore(path).open("2026-11-22")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "row",
    [
        ("a00000000001", "m.gguf", None, 1),
        ("a00000000001", "m.gguf", "many", 1),
        ("a00000000001", "m.gguf", 1, b"\xff"),
        ("a00000000001", "m.gguf", 1, -7),
        ("a00000000001", "m.gguf", 1.5, 1),
        ("a00000000001", b"\xff", 1, 1),
        (None, "m.gguf", 1, 1),
        (7, "m.gguf", 1, 1),
    ],
)
async def test_rows_of_other_types_are_told_and_requests_go_on(
    tmp_path: Path, row: tuple[object, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """A table of that name with values nobody counts by is not used: usage is counted, and not kept."""
    path = tmp_path / "usage.sqlite3"
    db = sqlite3.connect(path)
    db.execute(
        "CREATE TABLE usage (day, key, model, requests, prompt_tokens, completion_tokens, cached_tokens,"
        " refused, PRIMARY KEY (day, key, model))"
    )
    db.execute("INSERT INTO usage VALUES ('2026-11-23', ?, ?, ?, ?, 0, 0, 0)", row)
    db.commit()
    db.close()
    with pytest.raises(CannotStore, match="move the file away"):
        UsageStore(path).open("2026-11-23")
    accounts = KeyAccounts(Metrics(), UsageStore(path), wall=lambda: NOON)
    await accounts.open()
    visit(accounts)
    report = accounts.report([ALICE], everybody=True)
    assert "usage is not kept" in caplog.text
    assert not report.kept
    assert [(key.id, key.today.requests) for key in report.keys] == [(ALICE.id, 1)]


def test_old_days_go(tmp_path: Path) -> None:
    """The file does not grow for ever."""
    store = UsageStore(tmp_path / "usage.sqlite3")
    store.open("2020-01-01")
    store.add(
        {Row("2020-01-01", "k", "m"): Counts(requests=1), Row("2026-11-01", "k", "m"): Counts(requests=2)}
    )
    store.close()
    totals, rows = store.open("2026-11-22")
    assert (totals, rows) == ({"k": Counts(requests=2)}, {})
    store.close()


async def test_refusals_are_counted_by_limit() -> None:
    """In the usage and in the metrics, under the key's name."""
    metrics = Metrics()
    accounts = KeyAccounts(metrics, wall=lambda: NOON)
    small = Usage(prompt_tokens=1, completion_tokens=1)
    for _ in range(3):
        visit(accounts, usage=small)
    for _ in range(2):
        with pytest.raises(RateLimited):
            accounts.check(ALICE)
    assert accounts.report([ALICE], everybody=False).keys[0].today == Counts(
        requests=3, prompt_tokens=3, completion_tokens=3, refused=2
    )
    sample = metrics.registry.get_sample_value
    assert sample("modeld_key_refusals_total", {"key": "alice", "limit": "requests"}) == 2
    assert sample("modeld_key_requests_total", {"key": "alice"}) == 3
    assert sample("modeld_key_tokens_total", {"key": "alice", "direction": "out"}) == 3
