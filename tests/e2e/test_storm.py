# SPDX-License-Identifier: GPL-3.0-only
"""The promise, over real models: more of them than memory, and the budget holds at every instant."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from benchmark import storm
from benchmark.daemon import modeld
from benchmark.storm_requests import MODELS, waves
from support.daemon_process import models_folder

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(sys.platform != "linux", reason="what is asserted is read from /proc"),
]
WAVES = (10, 10, 10)
"""Requests that come at once. A wave waits for the one before, so nothing depends on the machine's pace."""
TOKENS = 4
MARGIN_MB = 64


def test_a_storm_over_four_models_stays_within_a_budget_for_two(tmp_path: Path) -> None:
    """Neither ledger nor processes hold more than is allowed, all is answered, and loads are few."""
    models = MODELS[:4]
    storm.put_models(models, models_folder(), tmp_path / "models")
    flags = [*storm.flags_of(models, tmp_path), "--max-wait", "10m", "--dry-runs=false"]
    sizes = storm.estimates(models, tmp_path / "models", flags, "formula")
    room = storm.room_for_two(list(sizes.values()), MARGIN_MB)
    (tmp_path / "events.ndjson").unlink()
    flags += ["--vram-budget-mb", f"{room.budget_mb:.0f}", "--vram-margin-mb", f"{MARGIN_MB}"]
    asks = [[ask._replace(max_tokens=TOKENS) for ask in wave] for wave in waves(models, WAVES, seed=3)]
    with modeld(*flags, models_dir=tmp_path / "models") as server:
        played = storm.play(server, asks, tmp_path / "events.ndjson", every_s=0.05)
    found = storm.judge(played, room)
    assert found.reasons == []
    assert len(played.answers) == sum(WAVES)
    assert found.record.ledger.most_mb <= room.room_mb
    assert 0 < found.most_rss_mb <= room.budget_mb
    assert found.record.loads.total <= storm.MOST_LOADS * found.record.loads.belady
    assert set(found.record.sizes) == {model.id for model in models}
