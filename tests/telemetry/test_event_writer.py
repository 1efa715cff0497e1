# SPDX-License-Identifier: GPL-3.0-only
"""Events on their way into files and pipes: never torn, never waited for, and what is lost is counted."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from modeld.domain.daemon_events import EventKind, FleetEvent
from modeld.telemetry.event_file import CannotWrite, EventFile, EventTarget, StandardOutput
from modeld.telemetry.event_writer import EventWriter

PATIENCE_S = 60.0


def event(seq: int, reason: str = "") -> FleetEvent:
    return FleetEvent(seq=seq, run="r", at_unix=1.0, uptime_ms=1.0, kind=EventKind.ARRIVED, reason=reason)


def until(done: Callable[[], bool], what: str) -> None:
    """Poll until it is so, with much patience: other threads do it."""
    give_up = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < give_up, what
        time.sleep(0.005)  # another thread does it, and tells nobody


@contextmanager
def writing(target: EventTarget, **options: float) -> Iterator[EventWriter]:
    """A writer that runs; at the end it stops, and its thread with it."""
    writer = EventWriter(target, **options)
    writer.start()
    try:
        yield writer
    finally:
        writer.stop()
        until(lambda: not writer._thread.is_alive(), "the thread ends")


def lines(path: Path) -> list[dict[str, object]]:
    text = path.read_bytes()
    assert not text or text.endswith(b"\n")
    return [json.loads(line) for line in text.splitlines()]


def numbers(path: Path) -> list[int]:
    return [line["seq"] for line in lines(path)]


def test_all_events_are_in_the_file_in_their_order(tmp_path: Path) -> None:
    """Also those that were put a moment before the end; the file belongs to its owner and group."""
    path = tmp_path / "events.ndjson"
    with writing(EventFile(path)) as writer:
        for number in range(1, 1001):
            writer.put(event(number))
    assert numbers(path) == list(range(1, 1001))
    assert stat.S_IMODE(path.stat().st_mode) & ~0o640 == 0
    status = writer.status()
    assert (status.target, status.written, status.dropped, status.problem) == (str(path), 1000, 0, None)


@pytest.mark.slow
def test_a_line_is_written_whatever_the_thread_does(tmp_path: Path) -> None:
    """While it sleeps, writes or gathers: each comes although no other follows it."""
    path = tmp_path / "events.ndjson"
    with writing(EventFile(path)) as writer:
        for number in range(1, 21):
            writer.put(event(number))
            until(lambda number=number: writer.status().written == number, "it is written")
    assert numbers(path) == list(range(1, 21))


def test_the_size_and_the_number_of_files_are_bounded(tmp_path: Path) -> None:
    """Older files move up one by one; every line is whole, in order, and only the oldest are gone."""
    path = tmp_path / "events.ndjson"
    with writing(EventFile(path, max_bytes=2000, keep=3)) as writer:
        for number in range(1, 501):
            writer.put(event(number))
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["events.ndjson", "events.ndjson.1", "events.ndjson.2", "events.ndjson.3"]
    assert all(file.stat().st_size <= 2000 for file in tmp_path.iterdir())
    kept = [number for name in (*reversed(names[1:]), names[0]) for number in numbers(tmp_path / name)]
    assert kept == list(range(501 - len(kept), 501))
    assert len(kept) > 60
    assert writer.status().dropped == 0


def test_a_line_larger_than_a_file_has_one_for_itself(tmp_path: Path) -> None:
    """The bound gives way to a whole line."""
    target = EventFile(tmp_path / "e", max_bytes=10, keep=2)
    assert target.write(b"a long first line\nsecond\n", lambda: True) == 18
    assert target.write(b"second\n", lambda: True) == 7
    target.close()
    assert (tmp_path / "e.1").read_bytes() == b"a long first line\n"
    assert (tmp_path / "e").read_bytes() == b"second\n"


def test_a_linked_file_is_rotated_where_it_is(tmp_path: Path) -> None:
    """The link stays, its target moves."""
    (tmp_path / "there").mkdir()
    link = tmp_path / "e"
    link.symlink_to(tmp_path / "there" / "real")
    target = EventFile(link, max_bytes=5, keep=1)
    for line in (b"one\n", b"two\n"):
        target.write(line, lambda: True)
    target.close()
    assert link.is_symlink()
    assert sorted(file.name for file in (tmp_path / "there").iterdir()) == ["real", "real.1"]
    assert link.read_bytes() == b"two\n"


def test_a_file_that_was_moved_away_is_opened_anew(tmp_path: Path) -> None:
    """As logrotate does it: what comes after `reopen` is in a new file, and nothing is lost or twice."""
    path, moved = tmp_path / "events.ndjson", tmp_path / "moved"
    with writing(EventFile(path)) as writer:
        for number in range(1, 101):
            writer.put(event(number))
            if number == 50:
                until(lambda: writer.status().written == 50, "they are written")
                path.rename(moved)
                writer.reopen()
                until(path.exists, "there is a new file, although nothing was to be written")
    assert numbers(moved) == list(range(1, 51))
    assert numbers(path) == list(range(51, 101))


def test_a_file_that_was_emptied_goes_on_from_its_beginning(tmp_path: Path) -> None:
    """As `copytruncate` does it: no hole, and the size counts again."""
    path = tmp_path / "e"
    target = EventFile(path, max_bytes=8, keep=1)
    target.write(b"one\n", lambda: True)
    os.truncate(path, 0)
    target.write(b"two\nnew\n", lambda: True)
    target.close()
    assert path.read_bytes() == b"two\nnew\n"


def test_a_torn_line_of_before_spoils_no_other(tmp_path: Path) -> None:
    """What a crash of the machine left is ended; whole lines are left alone."""
    path = tmp_path / "e"
    path.write_bytes(b'{"seq":1}\n{"se')
    target = EventFile(path)
    target.write(b'{"seq":2}\n', lambda: True)
    target.reopen()
    target.write(b'{"seq":3}\n', lambda: True)
    target.close()
    assert path.read_bytes() == b'{"seq":1}\n{"se\n{"seq":2}\n{"seq":3}\n'


def test_one_file_has_one_writer(tmp_path: Path) -> None:
    """Two daemons would rotate each other's events away: the second one is told, and may follow later."""
    path = tmp_path / "e"
    first, second = EventFile(path), EventFile(path)
    first.write(b"first\n", lambda: True)
    with pytest.raises(CannotWrite, match="another process writes events into it"):
        second.write(b"second\n", lambda: True)
    first.close()
    second.write(b"second\n", lambda: True)
    second.close()
    assert path.read_bytes() == b"first\nsecond\n"


@pytest.mark.process
def test_a_full_disk_tears_no_line_and_is_waited_for(tmp_path: Path) -> None:
    """A limit of the file's size stands for it: part of a line fits, and is taken back."""
    program = """if True:
        import resource, signal, sys, time
        from pathlib import Path
        from modeld.telemetry.event_file import EventFile, CannotWrite
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
        path = Path(sys.argv[1])
        target = EventFile(path)
        target.write(b"one\\n", lambda: True)
        try:
            target.write(b"a long line\\n", lambda: True)
            raise SystemExit("it was written")
        except CannotWrite as error:
            print(error)
        assert path.read_bytes() == b"one\\n", path.read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        target.write(b"a long line\\n", lambda: True)
        assert path.read_bytes() == b"one\\na long line\\n", path.read_bytes()
    """
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "e")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "cannot be written: file too large" in done.stdout


def test_what_finds_no_room_is_counted_and_told_in_its_place() -> None:
    """A disk that is full for a while: the oldest events are kept, `missed` stands for the rest."""

    class Disk:
        name = "the disk"
        full = True
        tries = 0
        data = b""

        def write(self, lines: bytes, _late: Callable[[], bool]) -> int:
            self.tries += 1
            if self.full:
                raise CannotWrite("the disk is full")
            self.data += lines
            return len(lines)

        def reopen(self) -> None:
            pass

        def close(self) -> None:
            pass

    disk = Disk()
    with writing(disk, capacity=10, retry_s=0.01) as writer:
        for number in range(1, 31):
            writer.put(event(number))
        until(lambda: disk.tries > 1, "it is tried again")
        status = writer.status()
        assert (status.written, status.dropped, status.problem) == (0, 20, "the disk is full")
        disk.full = False
        until(lambda: writer.status().written == 10, "what was kept is written")
        assert writer.status().problem == "events come faster than the disk takes them"
        writer.put(replace(event(31), model="m", ticket=7, request="r", key="alice"))
        until(lambda: writer.status().written == 11, "and what comes then")
        assert writer.status().problem is None
    found = [json.loads(line) for line in disk.data.splitlines()]
    assert [line["seq"] for line in found] == [*range(1, 11), 30, 31]
    assert found[10]["kind"] == "missed"
    assert found[10]["numbers"] == {"events": 20}
    assert found[10].keys() == {"seq", "run", "at_unix", "uptime_ms", "kind", "reason", "numbers"}, "nobody's"


def test_a_device_that_is_always_full_only_costs_the_events() -> None:
    """`/dev/full`: putting never waits, the reason is told, and the end comes at once."""
    with writing(EventFile(Path("/dev/full")), capacity=100, retry_s=0.01) as writer:
        for number in range(1, 1001):
            writer.put(event(number))
        full = "/dev/full cannot be written: the disk is full"
        until(lambda: writer.status().problem == full, "it is told")
        assert writer.status().dropped >= 800
        assert writer.status().written == 0


@pytest.mark.parametrize(
    ("name", "why"), [("there", "is a directory"), ("no/such/folder", "no such file or directory")]
)
def test_a_path_that_cannot_be_written_is_told(name: str, why: str, tmp_path: Path) -> None:
    """And looked at again: once it can be written, the events that were kept are."""
    (tmp_path / "there").mkdir()
    path = tmp_path / name
    with writing(EventFile(path), retry_s=0.01) as writer:
        writer.put(event(1))
        until(lambda: writer.status().problem is not None, "it is told")
        assert writer.status().problem == f"{path} cannot be written: {why}"
        if path.is_dir():
            path.rmdir()
        path.parent.mkdir(parents=True, exist_ok=True)
        until(lambda: writer.status().written == 1, "it is written")
        assert writer.status().problem is None
    assert numbers(path) == [1]


def test_a_pipe_without_a_reader_waits_for_one(tmp_path: Path) -> None:
    """Nothing blocks; who opens it later gets what was kept; who leaves may come again."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with writing(EventFile(path), retry_s=0.01) as writer:
        writer.put(event(1))
        until(lambda: writer.status().problem is not None, "it is told")
        assert writer.status().problem == f"{path} cannot be written: it is a pipe, and nobody reads it"
        with path.open("rb") as reader:
            assert json.loads(reader.readline())["seq"] == 1
        until(lambda: writer.status().written == 1, "it is counted")
        writer.put(event(2))
        until(lambda: writer.status().problem is not None, "the reader is gone")
        with path.open("rb") as reader:
            assert json.loads(reader.readline())["seq"] == 2
        until(lambda: writer.status().problem is None, "all is well again")


def test_a_reader_that_does_not_read_costs_only_its_own_events(tmp_path: Path) -> None:
    """The pipe fills up, the queue fills up, the rest is counted; every line that it gets is whole."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 4096)
    with writing(EventFile(path), capacity=50) as writer:
        for number in range(1, 2001):
            writer.put(event(number, "x" * 300))
        assert writer.status().dropped > 1000
    data = b""
    try:
        while chunk := os.read(fd, 65536):
            data += chunk
    finally:
        os.close(fd)
    assert data.endswith(b"\n")
    assert [json.loads(line)["seq"] for line in data.splitlines()] == list(range(1, data.count(b"\n") + 1))


def test_standard_output_is_written_whole_and_left_open() -> None:
    """A pipe gets at most what it takes in one piece; when its reader is gone, that is told."""
    reader, writer_end = os.pipe()
    with writing(StandardOutput(writer_end), retry_s=0.01) as writer:
        for number in range(1, 301):
            writer.put(event(number))
        with os.fdopen(reader, "rb") as source:
            found = [json.loads(source.readline())["seq"] for _ in range(300)]
        assert found == list(range(1, 301))
        writer.put(event(301))
        until(lambda: writer.status().problem is not None, "it is told")
        assert writer.status().problem == "standard output cannot be written: whoever read it is gone"
    os.close(writer_end)


def test_a_process_without_standard_output_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python has none where the descriptor was closed at the start."""
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(CannotWrite, match="name an events_file"):
        StandardOutput().write(b"x\n", lambda: True)


def test_a_disk_that_never_answers_holds_nothing_up(caplog: pytest.LogCaptureFixture) -> None:
    """Putting does not wait for it, stopping waits a moment; the thread is left behind."""
    answers = threading.Event()

    class Hung:
        name = "a dead mount"

        def write(self, lines: bytes, _late: Callable[[], bool]) -> int:
            answers.wait(PATIENCE_S)
            return len(lines)

        def reopen(self) -> None:
            pass

        def close(self) -> None:
            pass

    writer = EventWriter(Hung(), capacity=10)
    writer.start()
    for number in range(1, 101):
        writer.put(event(number))
    writer.stop()
    assert writer._thread.is_alive(), "it hangs, and nobody waits for it"
    assert writer.status().dropped == 90
    answers.set()
    until(lambda: not writer._thread.is_alive(), "it ends when the disk lets it go")


def test_a_file_that_may_not_be_rotated_keeps_its_bound(tmp_path: Path) -> None:
    """A name that stands in the way stands for a folder without rights: told, with what to do."""
    path = tmp_path / "e"
    (tmp_path / "e.1").mkdir()
    (tmp_path / "e.1" / "full").touch()
    target = EventFile(path, max_bytes=5, keep=1)
    target.write(b"one\n", lambda: True)
    with pytest.raises(CannotWrite, match="set events_max_bytes: 0 and rotate it by other means"):
        target.write(b"two\n", lambda: True)
    assert path.read_bytes() == b"one\n"
    target.close()
