# SPDX-License-Identifier: GPL-3.0-only
"""Logs: levels, formats, and a reader that does not read."""

import errno
import io
import json
import logging
import os
import threading
import time

import pytest

from modeld.telemetry.line_writer import LogWriter
from modeld.telemetry.log import configure, get_logger, logging_to_stderr, request_level, request_logger


def lines_of(out: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_json_is_one_object_a_line() -> None:
    """A line has its time in UTC, level, event, logger and fields, and no line break."""
    out = io.StringIO()
    with logging_to_stderr("info", "json", stream=out):
        get_logger("modeld.x").info("loaded\nnow", model="a b", seconds=1.5, level="mine", odd={1, 2})
    (line,) = lines_of(out)
    assert str(line.pop("timestamp")).endswith("Z")
    assert line == {
        "level": "info",
        "event": "loaded\nnow",
        "logger": "modeld.x",
        "model": "a b",
        "seconds": 1.5,
        "level_": "mine",
        "odd": [1, 2],
    }


def test_text_is_one_line_whatever_a_client_sends() -> None:
    """Control characters are shown, never sent to the terminal; blanks and quotes are quoted."""
    out = io.StringIO()
    with logging_to_stderr("info", "text", stream=out):
        get_logger("modeld.x").warning(
            "hello\n\x1b[31m", path="/a b", user='"x"\r\n', plain="yes", share=1 / 3
        )
    (line,) = out.getvalue().splitlines()
    assert line.split(" ", 2)[2] == (
        r'warn  hello\n\x1b[31m path="/a b" user="\"x\"\r\n" plain=yes share=0.333333 [modeld.x]'
    )


def test_the_standard_library_logs_through_the_same_pipe() -> None:
    """Loggers of Hypercorn and others appear with their own names and the same levels."""
    out = io.StringIO()
    with logging_to_stderr("info", "json", stream=out):
        logging.getLogger("hypercorn.error").info("Running on %s", "x")
        logging.getLogger("modeld.llama").debug("hidden")
    assert [(line["logger"], line["event"]) for line in lines_of(out)] == [
        ("hypercorn.error", "Running on x")
    ]


@pytest.mark.parametrize(
    ("level", "seen"),
    [("off", 0), ("error", 1), ("warn", 2), ("info", 3), ("debug", 4)],
)
def test_levels_let_through_what_they_name(level: str, seen: int) -> None:
    """Each level shows itself and what is more severe; off shows nothing."""
    out = io.StringIO()
    with logging_to_stderr(level, "json", stream=out):
        for log in (get_logger("modeld.x"), logging.getLogger("other")):
            log.error("e")
            log.warning("w")
            log.info("i")
            log.debug("d")
        if level == "off":
            get_logger("modeld.x").critical("c")
    assert len(lines_of(out)) == 2 * seen


@pytest.mark.parametrize(
    ("general", "own", "seen"),
    [
        ("error", "debug", "eid"),
        ("error", "1", "eid"),
        ("debug", "off", ""),
        ("debug", "error", "e"),
        ("info", None, "ei"),
        ("info", "nonsense", "ei"),
        ("off", "info", "ei"),
    ],
)
def test_a_request_may_have_its_own_level(general: str, own: str | None, seen: str) -> None:
    """The level of one request overrides the general one for its lines, and only for them."""
    out = io.StringIO()
    with logging_to_stderr(general, "json", stream=out):
        log = request_logger(own, id="r1")
        log.error("e")
        log.info("i")
        log.debug("d")
        get_logger("modeld.x").debug("not mine")
    found = [line for line in lines_of(out) if line["logger"] == "modeld.request"]
    assert "".join(str(line["event"]) for line in found) == seen
    assert all(line["id"] == "r1" for line in found)
    assert len(lines_of(out)) == len(found) + (general == "debug")


def test_words_for_the_level_of_a_request() -> None:
    """`1` is debug; case and blanks do not matter; other words name nothing."""
    assert [request_level(word) for word in ("1", " INFO ", "off", "2", "", None)] == [
        *("debug", "info", "off", None, None, None)
    ]


def test_an_exception_is_told_with_its_traceback() -> None:
    """Both formats carry the traceback; as text each of its lines is indented."""
    for form in ("json", "text"):
        out = io.StringIO()
        with logging_to_stderr("info", form, stream=out):
            try:
                int("broken")
            except ValueError:
                get_logger("modeld.x").exception("it failed")
            logging.getLogger("x").error("given", exc_info=ValueError("other"))
        assert "invalid literal" in out.getvalue()
        assert "ValueError: other" in out.getvalue()
        if form == "text":
            assert all(line.startswith(("2", "    ")) for line in out.getvalue().splitlines())


def test_what_cannot_be_shown_does_not_break_the_log() -> None:
    """Recursive, unencodable and raising values leave a line all the same, and the next one comes."""

    class Rude:
        def __str__(self) -> str:
            raise RuntimeError("no")

        __repr__ = __str__

    loop: list[object] = []
    loop.append(loop)
    for form in ("json", "text"):
        out = io.StringIO()
        with logging_to_stderr("info", form, stream=out):
            log = get_logger("modeld.x")
            log.info("a", loop=loop)
            log.info("b", half="\ud800", big=10**60)
            log.info("c", rude=Rude())
            log.info("last")
        assert len(out.getvalue().splitlines()) == 4
        assert "last" in out.getvalue()


@pytest.mark.slow
def test_a_full_pipe_never_blocks_the_logger() -> None:
    """When nobody reads, lines are counted as lost, stopping takes about a second, no thread stays."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        with logging_to_stderr("info", "text", stream=stream, capacity=100) as pipe:
            log = get_logger("modeld.x")
            began = time.monotonic()
            for _ in range(3000):
                log.info("x" * 200)
            assert time.monotonic() - began < 30
            assert pipe.dropped > 1000
        assert "modeld-log" not in [thread.name for thread in threading.enumerate()]
    os.close(reader)


def test_lost_lines_are_told_when_the_reader_comes_back() -> None:
    """After a pause in reading a line says how many were lost."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="utf-8") as stream, os.fdopen(reader, "rb") as source:
        with logging_to_stderr("info", "json", stream=stream, capacity=5) as pipe:
            log = get_logger("modeld.x")
            while not pipe.dropped:
                log.info("x" * 1000)
            log.info("one more that is lost")
            found: list[dict[str, object]] = []
            while not found:
                line = json.loads(source.readline())
                found += [line] if line["event"] == "log lines lost" else []
        assert found[0]["lines"]


@pytest.mark.slow
def test_a_record_is_written_whatever_the_thread_does() -> None:
    """While it sleeps, writes or gathers: each line comes although no other follows it."""
    reader, writer = os.pipe()
    with (
        os.fdopen(writer, "w", encoding="utf-8") as stream,
        os.fdopen(reader, "rb") as source,
        logging_to_stderr("info", "json", stream=stream),
    ):
        log = get_logger("modeld.x")
        for number in range(100):
            log.info("line", number=number)
            assert json.loads(source.readline())["number"] == number


def test_records_that_wait_share_a_write() -> None:
    """All of them come, in their order, in fewer writes than there are records."""
    writes: list[str] = []

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            writes.append(text)
            return len(text)

    pipe = LogWriter(Stream(), lambda record: record.getMessage())
    for number in range(50):
        pipe.put(logging.LogRecord("modeld.x", logging.INFO, "", 0, f"line {number}", (), None))
    pipe.start()
    pipe.stop()
    assert "".join(writes).splitlines() == [f"line {number}" for number in range(50)]
    assert len(writes) == 1


def test_many_threads_lose_nothing() -> None:
    """All that was put before the stop is written, once."""
    out = io.StringIO()
    with logging_to_stderr("info", "json", stream=out):
        log = get_logger("modeld.x")

        def talk(name: str) -> None:
            for number in range(500):
                log.info("line", by=name, number=number)

        threads = [threading.Thread(target=talk, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    said = sorted((line["by"], line["number"]) for line in lines_of(out))
    assert said == [(name, number) for name in "abcd" for number in range(500)]


class SometimesFull(io.StringIO):
    """A stream that takes nothing while the disk behind it is full."""

    def __init__(self) -> None:
        super().__init__()
        self.full = threading.Event()
        self.refused = threading.Event()

    def write(self, text: str) -> int:
        if self.full.is_set():
            self.refused.set()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(text)


def test_lines_that_a_full_disk_did_not_take_are_told_when_it_takes_some() -> None:
    """The log goes on, says how many lines it lacks and why, and says so once."""
    out = SometimesFull()
    with logging_to_stderr("info", "json", stream=out):
        log = get_logger("modeld.x")
        out.full.set()
        log.info("lost")
        assert out.refused.wait(30)
        out.full.clear()
        log.info("kept")
    kept, *told = lines_of(out)
    assert kept["event"] == "kept"
    assert [(line["event"], line["lines"], line["why"]) for line in told] == [
        ("log lines lost", 1, "they could not be written: No space left on device")
    ]


def test_a_reader_that_left_stops_nothing() -> None:
    """Standard error that is a broken pipe loses lines, and nothing else happens."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        with logging_to_stderr("info", "text", stream=stream) as pipe:
            get_logger("modeld.x").info("to nobody")
        assert pipe.dropped == 1


def test_configure_changes_loggers_that_exist() -> None:
    """A logger made before follows the new level."""
    out = io.StringIO()
    log = get_logger("modeld.x")
    with logging_to_stderr("error", "json", stream=out):
        log.info("hidden")
        configure("info")
        log.info("shown")
    assert [line["event"] for line in lines_of(out)] == ["shown"]
