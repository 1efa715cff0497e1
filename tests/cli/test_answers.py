# SPDX-License-Identifier: GPL-3.0-only
"""The daemon's structs read answers of other versions; what is no answer of a daemon is refused."""

from __future__ import annotations

import msgspec
import pytest

from modeld.cli.answers import read
from modeld.cli.client import Refused
from modeld.cli.run import parse_line
from modeld.dialects.native.control import OperationsBody
from modeld.dialects.native.listing import ModelBody, ModelsBody
from modeld.dialects.native.wire import FinalLine
from modeld.domain.daemon_events import FleetEvent
from modeld.domain.operation import OperationStatus
from modeld.domain.status import DaemonStatus, InstanceStatus
from modeld.scheduler.plan import LoadPlan, PlanFootprint

KINDS = {
    DaemonStatus: b'{"state":"ready"}', ModelsBody: b'{"models":[{}]}', ModelBody: b'{"id":"a"}',
    OperationsBody: b'{"operations":[{}]}', OperationStatus: b'{"id":"1"}', FleetEvent: b'{"seq":1}',
    LoadPlan: b'{"model":"a"}', FinalLine: b"{}",
}  # fmt: skip


@pytest.mark.parametrize(("kind", "data"), KINDS.items())
def test_an_answer_needs_its_first_key_alone(kind: type[msgspec.Struct], data: bytes) -> None:
    """All else has a value, so that what is shown of it can be made."""
    found = read(data, kind)
    assert isinstance(found, kind)
    assert msgspec.json.encode(found)


def test_what_is_missing_is_zero_or_empty() -> None:
    """Or what the daemon itself takes for it."""
    status = read(b'{"state":"ready","instances":[{"model_id":"a.gguf"}]}', DaemonStatus)
    (instance,) = status.instances
    assert isinstance(instance, InstanceStatus)
    assert (instance.state, instance.queue_len, instance.est_vram_mb, instance.pid) == ("", 0, 0.0, None)
    assert instance.estimate_source == "formula"
    assert (status.version, status.decisions, status.shortage) == ("", (), None)
    plan = read(b'{"model":"a.gguf"}', LoadPlan)
    assert (plan.fits, plan.free_mb, plan.drains) == (False, None, ())
    assert isinstance(plan.footprint, PlanFootprint)
    assert plan.footprint.kv_mb == 0.0


def test_a_newer_daemon_can_be_read() -> None:
    """Keys and words that are not known yet are no reason to show nothing."""
    event = read(b'{"seq":1,"run":"r","kind":"teleported","mood":"good"}', FleetEvent)
    assert event.kind == "teleported"
    assert read(b'{"id":"a","state":"frozen"}', ModelBody).state == "frozen"
    assert parse_line(b'{"event":"teleporting","speed":3}') is None


@pytest.mark.parametrize("data", [b"{}", b"[]", b'{"state":7}', b'{"state":"rea', b"\xff", b""])
def test_what_is_no_answer_is_refused(data: bytes) -> None:
    """Also JSON of somebody else."""
    with pytest.raises(Refused, match="cannot be read; it may be of another version"):
        read(data, DaemonStatus)
