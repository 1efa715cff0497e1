# SPDX-License-Identifier: GPL-3.0-only
"""Dry run and learned footprint against what real processes take; the whole table is in docs/footprint.md."""

from __future__ import annotations

import pytest
from support.real import Q4_0, models_folder
from support.scales import sure, weighed

from modeld.core.learned import Learned, scaled, when_ready
from modeld.core.models import Isolation, LoadOptions, ModelSpec

pytestmark = pytest.mark.real


def test_estimates_are_what_a_full_process_holds() -> None:
    """With its context filled by whole ubatches, the dry run and the learned estimate are within 5 %."""
    path = models_folder() / f"{Q4_0}.gguf"
    chosen = LoadOptions(threads=2, isolation=Isolation.PROCESS, ctx=1024, slots=1)
    run, told = sure(path, chosen), weighed(path, chosen)
    measured = told["full"]["rss"]
    assert run.peak.total == pytest.approx(measured, rel=0.05)
    spec = scaled(ModelSpec(id="m", path=str(path), options=chosen), run, None)
    learned = scaled(spec, run, when_ready(Learned(), spec.scale, told["ready"]["rss"]))
    assert learned.footprint.total == pytest.approx(measured, rel=0.05)
