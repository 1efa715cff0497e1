# SPDX-License-Identifier: GPL-3.0-only
"""A cache of its own for each test of testctl that needs one."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that no other test and no other run uses."""
    monkeypatch.setenv("MODELD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
