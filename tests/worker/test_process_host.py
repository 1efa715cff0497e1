# SPDX-License-Identifier: GPL-3.0-only
"""The process host alone: what kills a worker, what is told of it, and that nothing is left behind."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio
from support.child_processes import children_of, descriptors_of, ignores, is_gone, poll
from support.tiny_llama import write_tiny
from support.worker_listener import PATIENCE_S, WorkerListener, load_spec, request

from modeld.domain.model import LoadOptions
from modeld.engine.protocol import LoadSpec, RequestDone, RequestFailed, TokenOutput
from modeld.worker import process_host as process_module
from modeld.worker.child import LOST
from modeld.worker.messages import (
    Close,
    FromWorker,
    Progress,
    SubmitRequest,
    WorkerDied,
    WorkerLoadFailed,
    WorkerReady,
    WorkerStopped,
)
from modeld.worker.process_host import ProcessWorker
from modeld.worker.process_stats import held_bytes, pulse_of
from modeld.worker.sandbox import OOM_SCORE_ADJ
from modeld.worker.spawn import Spawned, child_environment, spawn

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(sys.platform != "linux", reason="what is asserted is read from /proc"),
]
Test = Callable[[ProcessWorker, WorkerListener], Awaitable[None]]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """After each test: no child more than before, not even a zombie, and no descriptor.

    Engines that other tests share may have children of their own.
    """
    children, before = set(children_of()), descriptors_of()
    yield
    assert set(children_of()) <= children
    assert len(descriptors_of()) <= len(before) + 1, descriptors_of()


async def live(load: LoadSpec, scene: Test) -> list[FromWorker]:
    listener = WorkerListener()
    worker = ProcessWorker(load, listener)
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.run)
            await scene(worker, listener)
    return listener.heard


async def decoding(worker: ProcessWorker, listener: WorkerListener) -> None:
    """Bring it to the middle of an endless answer."""
    await listener.ready()
    worker.send(SubmitRequest(1, request(max_tokens=8000)))
    await listener.until(lambda: any(isinstance(output, TokenOutput) for output in listener.outputs(1)))


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGBUS]
)
@pytest.mark.parametrize("phase", ["loading", "idle", "prefill", "decode"])
async def test_a_signal_is_told_by_its_name(number: signal.Signals, phase: str) -> None:
    """Died is the last word in every phase, and says which signal it was and what it did."""
    script = {"loading": "load_s=30", "prefill": "prefill_s=1 chunk=1"}.get(phase, "step_s=0.001")

    async def scene(worker: ProcessWorker, listener: WorkerListener) -> None:
        if phase == "loading":
            await listener.until(lambda: any(isinstance(message, Progress) for message in listener.heard))
        elif phase == "decode":
            await decoding(worker, listener)
        else:
            await listener.ready()
            if phase == "prefill":
                worker.send(SubmitRequest(1, request("w " * 100)))
                await listener.until(lambda: len(listener.outputs(1)) == 1)
        assert worker.pid
        os.kill(worker.pid, number)

    heard = await live(load_spec(script), scene)
    died = heard[-1]
    assert isinstance(died, WorkerDied)
    assert number.name in died.problem.message
    assert ("loaded" if phase == "loading" else "served") in died.problem.message


@pytest.mark.parametrize("script", ["abort_at=2", "abort_load=1"])
async def test_an_abort_tells_its_assertion(script: str) -> None:
    """What llama.cpp wrote before it aborted is in the report, the traceback of the crash is not."""

    async def scene(worker: ProcessWorker, listener: WorkerListener) -> None:
        if "load" not in script:
            await listener.ready()
            worker.send(SubmitRequest(1, request()))

    heard = await live(load_spec(script), scene)
    died = heard[-1]
    assert isinstance(died, WorkerDied)
    assert "SIGABRT" in died.problem.message
    assert "fake.c:1: GGML_ASSERT(false)" in died.problem.message
    assert "Fatal Python error" not in died.problem.message


async def test_a_death_while_it_closes_is_a_stop(caplog: pytest.LogCaptureFixture) -> None:
    """It was to go, and it is gone; the log tells how."""

    async def scene(worker: ProcessWorker, listener: WorkerListener) -> None:
        await listener.ready()
        assert worker.pid
        os.kill(worker.pid, signal.SIGSTOP)
        worker.stop()
        os.kill(worker.pid, signal.SIGKILL)

    heard = await live(load_spec(), scene)
    assert heard[-1] == WorkerStopped()
    assert "a worker died while it stopped" in caplog.text


async def test_a_worker_that_does_not_stop_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped process cannot hear Close: after the deadline it is killed, and that is a stop."""
    monkeypatch.setattr(process_module, "CLOSE_S", 0.1)

    async def scene(worker: ProcessWorker, listener: WorkerListener) -> None:
        await listener.ready()
        assert worker.pid
        os.kill(worker.pid, signal.SIGSTOP)
        worker.stop()

    assert (await live(load_spec(), scene))[-1] == WorkerStopped()


async def test_cancellation_kills_what_cannot_hear() -> None:
    """A stopped child does not delay the end of its host, at whatever moment that is cancelled."""
    others = set(children_of())
    for moment in ("at once", "started", "ready"):
        listener = WorkerListener()
        worker = ProcessWorker(load_spec("load_s=0.1"), listener)
        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(worker.run)
                if moment == "started":
                    await listener.until(lambda listener=listener: len(listener.heard) > 0)
                elif moment == "ready":
                    await listener.ready()
                    assert worker.pid
                    os.kill(worker.pid, signal.SIGSTOP)
                nursery.cancel_scope.cancel()
        assert set(children_of()) <= others


@pytest.mark.parametrize("noise", [b"\xff" * 64, b"\0\0\0\3abc", b"\0\0\0\0"])
async def test_a_worker_that_sends_noise_is_killed(noise: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its death says that it sent no message; a process that would live on is gone."""

    def spawn_babbler(_model_id: str) -> Spawned:
        ours, theirs = socket.socketpair()
        reader, writer = os.pipe()
        code = f"import socket, time; socket.socket(fileno={theirs.fileno()}).send({noise!r}); time.sleep(60)"
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", code], stderr=writer, pass_fds=(theirs.fileno(),)
        )
        theirs.close()
        os.close(writer)
        ours.setblocking(False)
        os.set_blocking(reader, False)
        return Spawned(process, ours, reader)

    monkeypatch.setattr(process_module, "spawn", spawn_babbler)

    async def scene(_worker: ProcessWorker, _ear: WorkerListener) -> None:
        await trio.lowlevel.checkpoint()

    died = (await live(load_spec(), scene))[-1]
    assert isinstance(died, WorkerDied)
    assert "no message" in died.problem.message or "a message of" in died.problem.message


async def test_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is a failed load with a sentence, not a defect."""

    def refuse(_model_id: str) -> Spawned:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(process_module, "spawn", refuse)

    async def scene(_worker: ProcessWorker, _ear: WorkerListener) -> None:
        await trio.lowlevel.checkpoint()

    failed = (await live(load_spec(), scene))[-1]
    assert isinstance(failed, WorkerLoadFailed)
    assert "Resource temporarily unavailable" in failed.problem.message


async def test_a_large_message_goes_in_pieces() -> None:
    """Eight MiB do not fit into a socket at once; what is sent behind them arrives after them."""

    async def scene(worker: ProcessWorker, listener: WorkerListener) -> None:
        worker.send(SubmitRequest(1, request("x " * (4 << 20))))  # Before the process is there.
        await listener.ready()
        worker.send(SubmitRequest(2, request("y " * (4 << 20))))
        worker.send(SubmitRequest(3, request()))
        await listener.until(lambda: any(isinstance(output, RequestDone) for output in listener.outputs(3)))
        for number in (1, 2):
            (refused,) = listener.outputs(number)
            assert isinstance(refused, RequestFailed)
            assert "4194304 tokens" in refused.problem.message
        worker.send(Close())

    assert (await live(load_spec(), scene))[-1] == WorkerStopped()


async def test_a_flood_on_standard_error_costs_no_token(caplog: pytest.LogCaptureFixture) -> None:
    """A thousand lines a step: all tokens arrive, and the log has a bounded part of the lines."""

    async def scene(worker: ProcessWorker, listener: WorkerListener) -> None:
        await listener.ready()
        worker.send(SubmitRequest(1, request(max_tokens=200)))
        await listener.until(lambda: any(isinstance(output, RequestDone) for output in listener.outputs(1)))
        assert sum(output.count for output in listener.outputs(1) if isinstance(output, TokenOutput)) == 200
        worker.send(Close())

    assert (await live(load_spec("spam=1000"), scene))[-1] == WorkerStopped()
    assert caplog.text.count("spam") < 5000
    assert "log lines of a model dropped" in caplog.text


async def test_a_child_has_what_it_needs_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """One socket, one pipe, /dev/null; a session of its own; first in line for the kernel's OOM killer."""
    monkeypatch.setenv("MODELD_SECRET_KEY", "x")
    monkeypatch.setenv("HF_TOKEN", "x")
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", "/nowhere")

    async def scene(worker: ProcessWorker, listener: WorkerListener) -> None:
        await listener.ready()
        assert worker.pid
        proc = Path(f"/proc/{worker.pid}")
        kinds = sorted(target.partition(":")[0] for target in descriptors_of(worker.pid).values())
        assert kinds == ["/dev/null", "pipe", "pipe", "socket"]
        names = {line.partition(b"=")[0] for line in (proc / "environ").read_bytes().split(b"\0")}
        assert not names & {b"MODELD_SECRET_KEY", b"HF_TOKEN", b"NOTIFY_SOCKET"}
        assert {b"LLAMA_CPP_LIB_PATH", b"GGML_NO_BACKTRACE", b"PATH"} <= names
        assert os.getsid(worker.pid) == os.getpgid(worker.pid) == worker.pid
        assert int((proc / "oom_score_adj").read_text()) >= OOM_SCORE_ADJ
        soft, hard = resource.prlimit(worker.pid, resource.RLIMIT_CORE)
        assert soft == (0 if hard == 0 else 1)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(worker.pid, number)
        worker.send(SubmitRequest(1, request()))
        await listener.until(lambda: any(isinstance(output, RequestDone) for output in listener.outputs(1)))
        worker.send(Close())

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.set_inheritable(True)
        assert (await live(load_spec(), scene))[-1] == WorkerStopped()


def test_secrets_do_not_pass_under_an_allowed_name() -> None:
    """What looks like a secret stays here, whatever it begins with."""
    environ = {"LLAMA_API_KEY": "x", "CUDA_VISIBLE_DEVICES": "0", "OMP_NUM_THREADS": "2", "PYTHONHOME": "/x"}
    passed = child_environment(environ)
    assert set(passed) == {
        "CUDA_VISIBLE_DEVICES",
        "OMP_NUM_THREADS",
        "GGML_NO_BACKTRACE",
        "MALLOC_MMAP_THRESHOLD_",
        "MALLOC_TRIM_THRESHOLD_",
        "OPENBLAS_NUM_THREADS",
        "PYTHONPATH",
    }


async def test_the_thread_that_started_a_child_may_end() -> None:
    """A child started by another thread than the main one lives on, and ends with its socket."""
    born: list[Spawned] = []
    thread = threading.Thread(target=lambda: born.append(spawn("m")))
    thread.start()
    thread.join()
    child = born[0]
    with trio.move_on_after(1.0):
        await trio.lowlevel.wait_readable(child.log_fd)
    assert child.process.poll() is None
    child.close()
    assert await trio.to_thread.run_sync(child.process.wait, PATIENCE_S) == LOST


@pytest.mark.parametrize("stopped", [False, True])
def test_children_die_with_the_process_that_started_them(stopped: bool) -> None:
    """SIGKILL to the parent ends the child, even one that is stopped and cannot read its socket."""
    code = (
        "from modeld.worker.spawn import spawn; import time\n"
        "child = spawn('m'); print(child.process.pid, flush=True); time.sleep(60)"
    )
    environ = {**os.environ, "PYTHONPATH": child_environment({})["PYTHONPATH"]}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        if stopped:
            poll(lambda: ignores(pid, signal.SIGTERM))  # Then it is tied to its parent.
            os.kill(pid, signal.SIGSTOP)
        parent.kill()
    poll(lambda: is_gone(pid))


async def test_llama_cpp_serves_in_a_process(tmp_path: Path) -> None:
    """The tiny model answers; its memory is measured, and its pulse changes while it works."""
    load = LoadSpec(model_id="m", path=str(write_tiny(tmp_path)), options=LoadOptions(slots=2, ctx=512))

    async def scene(worker: ProcessWorker, listener: WorkerListener) -> None:
        await listener.ready()
        assert worker.pid
        before = worker.pulse()
        assert before is not None
        worker.send(SubmitRequest(1, request("x x x", max_tokens=20)))
        await listener.until(lambda: any(isinstance(output, RequestDone) for output in listener.outputs(1)))
        with trio.fail_after(PATIENCE_S):
            while worker.pulse() == before or worker.measured is None:
                await trio.sleep(0.01)
        assert 10 << 20 < worker.measured < 500 << 20
        worker.send(Close())

    heard = await live(load, scene)
    assert any(isinstance(message, WorkerReady) for message in heard)
    assert heard[-1] == WorkerStopped()


async def test_a_file_that_is_none_is_a_failed_load(tmp_path: Path) -> None:
    """The engine's own sentence arrives, also for a path that is not UTF-8."""
    path = os.fsdecode(bytes(tmp_path) + b"/\xff.gguf")

    async def scene(_worker: ProcessWorker, _ear: WorkerListener) -> None:
        await trio.lowlevel.checkpoint()

    failed = (await live(LoadSpec(model_id="m", path=path), scene))[-1]
    assert isinstance(failed, WorkerLoadFailed)
    assert "there is no file" in failed.problem.message


def test_a_process_that_is_gone_has_no_vitals() -> None:
    """None, instead of an exception."""
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    assert pulse_of(ended.pid) is None
    assert held_bytes(ended.pid) is None
