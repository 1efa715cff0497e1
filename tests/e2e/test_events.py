# SPDX-License-Identifier: GPL-3.0-only
"""Events of a daemon as operators start it: files, pipes, signals, full disks, and readers of all kinds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
import trio
from support.daemon_process import Daemon, client, daemon
from support.event_client import event_client

pytestmark = pytest.mark.e2e
PATIENCE_S = 120.0


@contextmanager
def started(folder: Path, *flags: str, **options: object) -> Iterator[Daemon]:
    """A daemon with the fake engine in a thread, and two models, of which one fits at a time."""
    models = folder / "models"
    models.mkdir(exist_ok=True)
    for name in ("a.gguf", "b.gguf"):
        (models / name).write_bytes(b"x" * 1024 * 1024)
    fake = ("--engine", "fake", "--isolation", "thread", "--llama-slots", "1")
    with daemon(*fake, *flags, models_dir=models, **options) as running:
        yield running


async def ask(http: httpx2.AsyncClient, model: str = "a", **more: object) -> None:
    answer = await http.post("/infer", json={"model": model, "prompt": "one two", "stream": False, **more})
    assert answer.status_code == 200, answer.text


async def events_status(http: httpx2.AsyncClient) -> dict[str, object]:
    return (await http.get("/status")).json()["events"]


async def until(http: httpx2.AsyncClient, **wanted: object) -> dict[str, object]:
    """Poll /status until `events` shows these values."""
    seen: dict[str, object] = {}
    with trio.move_on_after(PATIENCE_S):
        while True:
            seen = await events_status(http)
            if all(seen.get(key) == value for key, value in wanted.items()):
                return seen
            await trio.sleep(0.02)
    pytest.fail(f"the events never showed {wanted}; last seen: {seen}")


def events_in(path: Path) -> list[dict[str, object]]:
    data = path.read_bytes()
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


async def test_a_file_has_the_whole_life_of_the_daemon_and_replays(tmp_path: Path) -> None:
    """From start to stop without a gap; what was recorded is a trace for the simulator."""
    path = tmp_path / "events.ndjson"
    with started(tmp_path, "--events-enable", "--events-file", str(path)) as running:
        async with client(running) as http:
            for model in ("a", "b", "a"):
                await ask(http, model)
            recorded = sum((await events_status(http))["recorded"].values())
    found = events_in(path)
    assert [event["seq"] for event in found] == list(range(1, len(found) + 1))
    assert len(found) >= recorded
    assert (found[0]["kind"], found[-1]["kind"]) == ("daemon_started", "daemon_stopped")
    assert sum(event["kind"] == "arrived" for event in found) == 3
    assert len({event["run"] for event in found}) == 1
    command = [sys.executable, "-m", "modeld", "simulate", str(path), "--json"]
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [report["served"] for report in json.loads(done.stdout)["reports"]] == [3, 3]


async def test_a_file_that_was_moved_is_opened_anew_at_sighup(tmp_path: Path) -> None:
    """As logrotate does it, while requests are served: both files together have every event once."""
    path, moved = tmp_path / "events.ndjson", tmp_path / "moved"
    with started(tmp_path, "--events-enable", "--events-file", str(path)) as running:
        async with client(running) as http:
            await ask(http)
            path.rename(moved)
            await ask(http)
            running.process.send_signal(signal.SIGHUP)
            with trio.fail_after(PATIENCE_S):
                while not path.exists():
                    await trio.sleep(0.02)
            await ask(http)
    before, after = events_in(moved), events_in(path)
    assert [event["seq"] for event in before + after] == list(range(1, len(before + after) + 1))
    assert after[-1]["kind"] == "daemon_stopped"


async def test_a_full_disk_is_told_and_nothing_waits_for_it(tmp_path: Path) -> None:
    """Requests are served as ever; `/status`, the metrics and the log say what is wrong."""
    with started(tmp_path, "--events-enable", "--events-file", "/dev/full") as running:
        async with client(running) as http:
            await ask(http)
            why = "/dev/full cannot be written: the disk is full"
            seen = await until(http, problem=why, written=0)
            assert seen["target"] == "/dev/full"
            await ask(http)
            assert "modeld_events_blocked 1.0" in (await http.get("/metrics")).text
    assert why in running.log


async def test_a_pipe_without_a_reader_stops_neither_the_start_nor_the_end(tmp_path: Path) -> None:
    """Who opens it later gets the events from the start on."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with started(tmp_path, "--events-enable", "--events-file", str(path)) as running:
        assert "it is a pipe, and nobody reads it yet" in running.log
        async with client(running) as http:
            await until(http, problem=f"{path} cannot be written: it is a pipe, and nobody reads it")
            await ask(http)
            with path.open("rb") as reader:
                first = await trio.to_thread.run_sync(reader.readline)
            assert json.loads(first)["kind"] == "daemon_started"


def test_standard_output_has_events_and_nothing_else(tmp_path: Path) -> None:
    """Without a file they go there, and logs do not."""
    out = tmp_path / "out"
    code = (
        "import os, sys; out = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_CREAT); os.dup2(out, 1); "
        "os.execv(sys.executable, [sys.executable, '-m', 'modeld', *sys.argv[1:]])"
    )
    models = tmp_path / "models"
    models.mkdir()
    (models / "a.gguf").write_bytes(b"x")
    command = [sys.executable, "-c", code, str(out), "serve", "--addr", "127.0.0.1:0", "--engine", "fake"]
    command += ["--models-dir", str(models), "--state-dir", str(tmp_path / "state"), "--events-enable"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    running = Daemon(process)
    try:
        running.wait_until_listening()
        assert running.stop() == 0, running.log
    finally:
        process.kill()
        process.wait()
    kinds = [event["kind"] for event in events_in(out)]
    assert kinds == ["daemon_started", "daemon_draining", "daemon_stopped"]


async def test_live_readers_see_an_unload_and_a_clean_end(tmp_path: Path) -> None:
    """The story of a model that an operator unloads, and with the daemon the end of the stream."""
    with started(tmp_path, "--fake", "load_s=0.2") as running:
        async with client(running) as http, event_client(running.port) as reader:
            await ask(http, "a")
            async with http.stream("POST", "/models/a/unload") as answer:
                assert answer.status_code == 202
            await reader.until("arrived", model="a.gguf")
            assert (await reader.until("ready"))["model"] == "a.gguf"
            assert (await reader.until("ended"))["cause"] == "length"
            started_one = await reader.until("operation_started")
            assert (started_one["model"], started_one["cause"]) == ("a.gguf", "unload")
            assert (await reader.until("unloading"))["cause"] == "operator"
            await reader.until("stopped", model="a.gguf")
            ended = await reader.until("operation_ended", operation=started_one["operation"])
            assert ended["cause"] == "done"
            running.process.send_signal(signal.SIGTERM)
            rest = await reader.rest()
            assert [event["kind"] for event in rest] == ["daemon_draining"]
            assert reader.ended, "with its last chunk"
        code = await trio.to_thread.run_sync(running.wait, 60.0)
        assert code == 0, running.log
