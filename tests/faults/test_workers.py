# SPDX-License-Identifier: GPL-3.0-only
"""What happens to a real worker happens to nobody else: signals, hangs, in every phase of its life."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import httpx2
import pytest
import trio
from support.child_processes import children_of, descriptors_of, is_gone, poll
from support.daemon_process import (
    Q4_0,
    Q8_0,
    Daemon,
    body,
    client,
    daemon,
    infer,
    models_folder,
    status,
    until,
)

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.real,
    pytest.mark.skipif(sys.platform != "linux", reason="what is asserted is read from /proc"),
]
SLOTS = ("--llama-slots", "1")
LONG = {"max_tokens": 4000, "ignore_eos": True}
PROMPT = "The quick brown fox jumps over the lazy dog near the old stone bridge. " * 130
OTHER = {"model": Q8_0, "max_tokens": 60, "ignore_eos": True, "prompt": "Once there was"}


async def worker_of(http: httpx2.AsyncClient, model: str = Q4_0) -> int:
    """The process id of a model's worker."""
    pid = (await status(http, model))["pid"]
    assert isinstance(pid, int)
    return pid


async def ask(
    http: httpx2.AsyncClient, answers: dict[str, list[dict[str, object]]], name: str, **more: object
):
    """Keep the lines of an answer under a name."""
    answers[name] = await infer(http, **more)


async def until_tokens(http: httpx2.AsyncClient, model: str = Q4_0) -> None:
    """Wait until the model has a stream that brings tokens."""
    with trio.fail_after(60):
        while not ((await status(http, model)).get("tokens_per_second")):
            await trio.sleep(0.02)


async def idle_problems(running: Daemon, http: httpx2.AsyncClient, before: dict[int, str]) -> None:
    """Nothing is in a slot or a queue, as many children as models are loaded, no descriptor is lost."""
    with trio.fail_after(20):
        while True:
            everything = (await http.get("/status")).json()
            loaded = [it for it in everything["instances"] if it["state"] == "ready"]
            if everything["inflight_total"] == everything["queued_total"] == 0 and len(
                children_of(running.process.pid)
            ) == len(loaded):
                break
            await trio.sleep(0.05)
    held = sum(it["est_vram_mb"] for it in loaded)
    assert everything["used_est_mb"] == pytest.approx(held)
    assert (await http.get("/healthz")).status_code == 200
    # Besides its connections a loaded model has a socket, a pipe, and its process to wait for.
    assert len(descriptors_of(running.process.pid)) <= len(before) + 3 * len(loaded) + 4


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGILL, signal.SIGSTOP])
async def test_a_death_in_decode_is_told_and_nobody_else_notices(number: signal.Signals) -> None:
    """The stream ends with the reason, its queue is served, another model's text is what it always is."""
    answers: dict[str, list[dict[str, object]]] = {}
    with daemon(*SLOTS, "--stall-timeout", "3s") as running:
        async with client(running) as http:
            before = descriptors_of(running.process.pid)
            await ask(http, answers, "undisturbed", **OTHER)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: ask(http, answers, "hit", **LONG))
                await until_tokens(http)
                nursery.start_soon(lambda: ask(http, answers, "queued", max_tokens=4))
                nursery.start_soon(lambda: ask(http, answers, "other", **OTHER))
                await until(http, queue_len=1)
                await until(http, Q8_0, inflight=1)
                os.kill(await worker_of(http), number)
            await idle_problems(running, http, before)
            shown = await status(http)
            metrics = (await http.get("/metrics")).text
    told = "hangs" if number is signal.SIGSTOP else number.name
    assert told in str(answers["hit"][-1]["error"])
    assert answers["hit"][-1]["done"] is True
    assert answers["hit"][-1]["code"] == 500
    assert answers["queued"][-1]["usage"]["completion_tokens"] == 4
    assert answers["other"][-1]["content"] == answers["undisturbed"][-1]["content"]
    assert shown["restarts"] == 1
    assert told in str(shown["last_error"])
    assert f'modeld_restarts_total{{model="{Q4_0}.gguf"}} 1.0' in metrics
    assert told in running.log


@pytest.mark.parametrize("phase", ["load", "prefill"])
async def test_a_death_before_the_first_token_costs_only_time(phase: str) -> None:
    """Nothing of the answer was seen: it is served by the next worker, two seconds and a load later."""
    answers: dict[str, list[dict[str, object]]] = {}
    with daemon(*SLOTS) as running:
        async with client(running) as http:
            before = descriptors_of(running.process.pid)
            if phase == "prefill":
                await infer(http, max_tokens=1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: ask(http, answers, "hit", prompt=PROMPT, max_tokens=4))
                if phase == "prefill":
                    await until(http, inflight=1)
                else:
                    await until(http, state="loading")
                    with trio.fail_after(10):
                        while (await status(http)).get("pid") is None:
                            await trio.sleep(0.01)
                began = time.perf_counter()
                os.kill(await worker_of(http), signal.SIGKILL)
                await until(http, restarts=1)
                await until(http, state="ready")
                took = time.perf_counter() - began
            await idle_problems(running, http, before)
            load_s = (await status(http))["load_ms"] / 1000
    assert "error" not in answers["hit"][-1]
    assert answers["hit"][-1]["usage"]["completion_tokens"] == 4
    assert took < 2.0 + load_s


async def test_a_worker_that_does_not_unload_is_killed_and_its_memory_given_on() -> None:
    """It is stopped and cannot hear; the model that needs its room is loaded once it is gone."""
    with daemon() as fresh:
        async with client(fresh) as http:
            await infer(http, model=Q8_0, max_tokens=1)
            size = float((await status(http, Q8_0))["est_vram_mb"])
    with daemon("--vram-budget-mb", str(int(size * 1.5))) as running:
        async with client(running) as http:
            await infer(http, max_tokens=1)
            pid = await worker_of(http)
            os.kill(pid, signal.SIGSTOP)
            answer = await infer(http, model=Q8_0, max_tokens=2)
            assert is_gone(pid)
            assert answer[-1]["usage"]["completion_tokens"] == 2
            assert (await status(http))["state"] == "stopped"
            assert len(children_of(running.process.pid)) == 1


async def test_a_file_that_is_cut_while_it_is_mapped_ends_its_own_model_only(tmp_path: Path) -> None:
    """SIGBUS, or a refusal because the file is damaged by then; the daemon and the other model go on."""
    for name in (Q4_0, Q8_0):
        shutil.copy(models_folder() / f"{name}.gguf", tmp_path / f"{name}.gguf")
    with daemon(models_dir=tmp_path) as running:
        async with client(running) as http:
            undisturbed = await infer(http, **OTHER)
            await infer(http, max_tokens=1)
            os.truncate(tmp_path / f"{Q4_0}.gguf", 4096)
            refused = await http.post("/infer", json=body(prompt="Tell me of the sea " * 20, stream=False))
            assert refused.status_code in {500, 503}
            assert refused.json()["error"]
            assert (await infer(http, **OTHER))[-1]["content"] == undisturbed[-1]["content"]
            assert (await http.get("/healthz")).status_code == 200


async def test_a_daemon_that_is_killed_takes_its_workers_along() -> None:
    """SIGKILL to it while one worker decodes and another one is stopped: both are gone at once."""
    with daemon(*SLOTS) as running:
        async with client(running) as http:
            await infer(http, model=Q8_0, max_tokens=1)
            workers = [await worker_of(http, Q8_0)]
            async with trio.open_nursery() as nursery:

                async def stream() -> None:
                    with pytest.raises(httpx2.TransportError):
                        await infer(http, **LONG)

                nursery.start_soon(stream)
                await until_tokens(http)
                workers.append(await worker_of(http))
                os.kill(workers[0], signal.SIGSTOP)
                running.process.kill()
        running.wait(10)
        for pid in workers:
            poll(lambda pid=pid: is_gone(pid), 5.0)
        running.process.returncode = 0  # It was meant to die: `daemon` need not complain.
