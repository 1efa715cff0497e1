# SPDX-License-Identifier: GPL-3.0-only
"""The soak's own judgement: what counts as growth, what fails a run, and how it is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soak as soak_program
import trio
from soaking import report, resources, results, run
from soaking.http_client import Response
from soaking.resources import Sample, growth
from soaking.results import FaultResult
from soaking.run import Plan, Result

PLAN = Plan(minutes=1, seed=1)
ROWS = [
    FaultResult("SIGKILL", "decode", "a last line", "the rest of 1 stream", 1.0),
    FaultResult("SIGKILL", "decode", "a last line", "the rest of 1 stream", 3.0),
    FaultResult("SIGKILL", "decode", "a whole answer", "nothing", 9.0, hit=False),
    FaultResult("file deleted", "on disk", "404 with the reason", "1 request", None),
]


def samples(*resident_mb: float, descriptors: int = 10) -> list[Sample]:
    """Looks at rest, one a second, of a daemon of these sizes."""
    return [
        Sample(float(second), size, size, 0.0, size, 1, descriptors, 4, idle=True)
        for second, size in enumerate(resident_mb)
    ]


def result(*, reasons: list[str]) -> Result:
    return Result(ROWS, samples(60.0, 61.0), {"a whole answer": 5}, reasons, 60.0, {"state": "ready"})


def call(status: int, body: bytes, *, whole: bool = True, kind: str = "application/x-ndjson") -> Response:
    """An answer that came."""
    made = Response(trio.SocketStream.__new__(trio.SocketStream))
    made.status, made.data, made.whole, made.headers = status, body, whole, {"content-type": kind}
    return made


def test_what_grows_steadily_is_found() -> None:
    """The first fifth does not count, nor does what stays within 5 % and 4 MiB."""
    assert growth(samples(*(60 + number for number in range(40))))
    assert not growth(samples(*([40] * 8 + [60 + number / 20 for number in range(40)])))
    assert not growth(samples(60, 61, 62))


def test_a_single_peak_is_no_growth() -> None:
    """Medians are compared."""
    assert not growth(samples(*([60] * 39 + [500])))


def test_the_table_has_a_line_for_each_fault_at_each_moment() -> None:
    """What missed its moment is not in it; times are medians and worst ones."""
    told = report.faults_table(ROWS).splitlines()
    assert told[2:] == [
        "| SIGKILL | decode | 2 | a last line | the rest of 1 stream | 2.0 s, 3.0 s |",
        "| file deleted | on disk | 1 | 404 with the reason | 1 request |  |",
    ]


@pytest.mark.parametrize(("reasons", "code"), [([], 0), (["it grew"], 1)])
def test_a_reason_fails_the_run(
    reasons: list[str],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The exit code is 1, the reason is printed, and the JSON has it with every row and sample."""

    async def soak(*_: object) -> Result:
        await trio.lowlevel.checkpoint()
        return result(reasons=reasons)

    monkeypatch.setattr(soak_program, "soak", soak)
    path = tmp_path / "soak.json"
    assert soak_program.main(["--minutes", "1", "--seed", "1", "--json", str(path)]) == code
    assert ("WRONG: it grew" in capsys.readouterr().out) is bool(reasons)
    written = json.loads(path.read_text())
    assert written["reasons"] == reasons
    assert len(written["faults"]) == len(ROWS)
    assert written["samples"][1]["daemon_rss_mb"] == 61.0


def test_every_fault_has_a_name() -> None:
    """Signals and files at each moment, aborts, limits and storms can be chosen by it."""
    names = set(run.faults_of_one_daemon(PLAN))
    assert {"SIGKILL load", "SIGSTOP unload", "file replaced decode", "abort prefill", "disk full"} <= names
    assert set(run.faults_of_one_daemon(PLAN._replace(only="^abort"))) == {"abort load", "abort prefill"}


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        (call(200, b'{"token":"a","done":false}\n{"done":true,"content":"a"}\n'), False),
        (call(200, b'{"token":"a","done":false}\n{"done":true,"content":"b"}\n'), True),
        (call(200, b'{"token":"a","done":false}\n'), True),
        (call(200, b'{"done":true}\n{"done":true}\n'), True),
        (call(200, b'{"done":true,"content":""}\n', whole=False), True),
        (call(503, b'{"error":"why","code":503}', kind="application/json"), False),
        (call(503, b'{"code":503}', kind="application/json"), True),
        (call(500, b"oops", kind="text/plain"), True),
    ],
)
def test_an_answer_that_is_not_legal_is_found(answer: Response, wrong: bool) -> None:
    """Exactly one last line, which is the sum of its tokens; a reason with each refusal."""
    assert bool(results.protocol_errors(answer)) is wrong


REST = {
    "instances": [{"model_id": "a", "state": "ready", "est_vram_mb": 100.0, "pid": 7}],
    "inflight_total": 0,
    "queued_total": 0,
    "used_est_mb": 100.0,
    "reserved_mb": 0.0,
    "unaccounted_mb": 0.0,
    "budget_mb": 900.0,
}


LEAVING = {"model_id": "a", "state": "draining", "est_vram_mb": 0.0}


@pytest.mark.parametrize(
    ("change", "children", "told"),
    [
        ({}, [7], ""),
        ({"inflight_total": 1}, [7], "1 requests are inside"),
        ({"used_est_mb": 101.0}, [7], "the ledger holds 101 MiB, the loaded models 100"),
        ({"unaccounted_mb": 5.0}, [7], "loads that are over"),
        ({"budget_mb": 90.0}, [7], "100 MiB are held of a budget of 90"),
        ({}, [7, 8], "2 processes for 1 models"),
        ({}, [8], "1 processes for 1 models"),
        ({"instances": [LEAVING]}, [], "neither ready nor stopped: a"),
    ],
)
def test_what_goes_on_is_told(change: dict[str, object], children: list[int], told: str) -> None:
    """Requests, moves, a ledger that does not agree with what is loaded, processes of nobody."""
    found = resources.still_active({**REST, **change}, children)
    assert (told in "; ".join(found)) if told else not found


def test_what_is_not_given_back_is_told() -> None:
    """A loaded model may have three descriptors; more of them, and threads by the dozen, are a leak."""
    before = resources.Resources(descriptors=10, threads=4, loaded=1)
    assert not resources.not_released(before, resources.Resources(13, 5, 2))
    assert resources.not_released(before, resources.Resources(13, 5, 1)) == [
        "13 descriptors are open, 10 were"
    ]
    assert resources.not_released(before, resources.Resources(10, 30, 1)) == ["30 threads run, 4 did"]
