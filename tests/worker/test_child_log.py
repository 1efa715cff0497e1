# SPDX-License-Identifier: GPL-3.0-only
"""What a worker process writes to standard error: levels, floods, last words."""

from __future__ import annotations

import io
import logging

import pytest

from modeld.telemetry.log import logging_to_stderr
from modeld.worker.child_log import BURST_LINES, LINE_BYTES, LINES_PER_S, ChildLog
from modeld.worker.messages import mark, split_mark


def logged(*pieces: bytes, level: str = "info", at: float = 0.0) -> tuple[ChildLog, list[str]]:
    stream = io.StringIO()
    with logging_to_stderr(level, stream=stream):
        log = ChildLog("m.gguf", 7)
        for piece in pieces:
            log.feed(piece, at)
        log.end(at)
    return log, stream.getvalue().splitlines()


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR])
def test_a_mark_says_its_level(level: int) -> None:
    """What `mark` writes, `split_mark` reads; a line without one is left as it is."""
    assert split_mark(f"{mark(level)}text".encode()) == (level, b"text")
    assert split_mark(b"<9>text") == (None, b"<9>text")


def test_lines_are_logged_with_their_level_model_and_process() -> None:
    """Marked lines keep their level, C's own are warnings, debug lines stay out; pieces are joined."""
    _, shown = logged(b"<6>load", b"ed\n<7>secret\nraw wo", b"rds\n<3>bad\nend")
    assert [line.split()[2:4] for line in shown] == [
        ["info", "loaded"],
        ["warn", "raw"],
        ["error", "bad"],
        ["warn", "end"],
    ]
    assert all("model=m.gguf" in line and "pid=7" in line for line in shown)


def test_the_last_words_are_warnings_and_what_c_wrote() -> None:
    """Neither chat nor the traceback of a crash hides the assertion; old words do not count."""
    crash = b'Fatal Python error: Aborted\n\nThread 0x1 (most recent call first):\n  File "x", line 1\n'
    log, _ = logged(b"<6>chat\n<4>odd\nggml.c:1: GGML_ASSERT(a) failed\n<6>chat\n" + crash, at=100.0)
    assert log.last_words(101.0) == "odd; ggml.c:1: GGML_ASSERT(a) failed"
    assert log.last_words(200.0) == ""


def test_a_flood_is_counted_and_its_end_is_kept() -> None:
    """Beyond the burst, lines are dropped, one line tells how many, and the last words are the last."""
    many = 200_000
    log, shown = logged(b"".join(b"spam %d\n" % number for number in range(many)))
    assert log.dropped >= many - BURST_LINES
    assert len(shown) <= BURST_LINES + 1
    assert f"lines={log.dropped}" in shown[-1]
    assert log.last_words(0.0).endswith(f"spam {many - 1}")


def test_a_flood_that_ends_is_forgiven() -> None:
    """After a quiet second as many lines may come as a second allows."""
    stream = io.StringIO()
    with logging_to_stderr("info", stream=stream):
        log = ChildLog("m", 7)
        log.feed(b"x\n" * 5000, 0.0)
        dropped = log.dropped
        log.feed(b"y\n" * int(LINES_PER_S - 1), 1.0)
    assert log.dropped == dropped > 0
    assert stream.getvalue().count(" y ") == LINES_PER_S - 1


def test_a_line_without_an_end_is_cut() -> None:
    """A hundred MiB without a newline take no memory."""
    log = ChildLog("m", 7)
    for _ in range(1600):
        log.feed(b"x" * 65536, 0.0)
    assert len(log._rest) <= LINE_BYTES
