# SPDX-License-Identifier: GPL-3.0-only
"""The fairness run: what it reads off a stream, and a small one over the fake engine."""

from __future__ import annotations

import json
from pathlib import Path

import bench
import pytest
from benchmark import fairness
from benchmark.clients import StreamingRequest
from support.tiny_gguf import write_model

STREAM = b'{"event":"queued","position":7,"eta_ms":1800}\n{"event":"queued","position":6}\n{"token":"a"}\n'


@pytest.mark.parametrize(
    ("data", "told"),
    [(STREAM, (7, 1.8)), (b'{"event":"queued","position":2}\n', (2, None)), (b'{"token":"a"}\n', (0, None))],
)
def test_the_first_place_that_is_told_counts(data: bytes, told: tuple) -> None:
    """With the estimate where there is one; who never waited has the place 0."""
    asker, first = (StreamingRequest.__new__(StreamingRequest) for _ in range(2))
    for request in (asker, first):
        request.tokens, request.queued, request.queued_at = [], None, None
        request.sent, request._tail = 1.0, b""
    asker.feed(data, 2.0)
    found = fairness.judge(asker, [first], 0.0, keys=True)
    assert (found.position, found.eta_s) == told


@pytest.mark.e2e
def test_a_key_passes_the_crowd_of_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The single request is served before most of the crowd; without keys after all that came before it."""
    model = write_model(tmp_path / "tiny.gguf")
    out = tmp_path / "found.json"
    words = ["fairness", "--requests", "60", "--max-tokens", "4", "--share-tokens", "64"]
    more = ["--model", str(model), "--fake", "step_s=0.05", "--json", str(out)]
    assert bench.main([*words, *more, "--modeld", "--isolation thread"]) == 0
    fair, plain = json.loads(out.read_text())["results"]
    assert (fair["keys"], plain["keys"]) == (True, False)
    assert fair["position"] < plain["position"]
    assert fair["before"] < plain["before"]
    assert "without keys" in capsys.readouterr().out
