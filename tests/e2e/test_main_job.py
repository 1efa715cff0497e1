# SPDX-License-Identifier: GPL-3.0-only
"""The main job: the daemon as a process streams text from real models."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import trio
from support.daemon_process import Q4_0, Q8_0, Daemon, client, daemon, infer, models_folder, status, until

pytestmark = [pytest.mark.e2e, pytest.mark.real]

LONG_PROMPT = "The quick brown fox jumps over the lazy dog near the old stone bridge. " * 130


@pytest.fixture(scope="module")
def running() -> Iterator[Daemon]:
    with daemon() as here:
        yield here


async def test_a_stream_arrives_token_by_token(running: Daemon) -> None:
    """Each token is a line, the last line repeats the text, counts and durations are real."""
    async with client(running) as http:
        lines = await infer(http, max_tokens=24)
    tokens = lines[:-1]
    last = lines[-1]
    assert len(tokens) >= 20
    assert all(line["done"] is False for line in tokens)
    assert last["done"] is True
    assert last["content"] == "".join(str(line["token"]) for line in tokens)
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + 24
    assert last["stats"]["ttft_ms"] > 0
    assert last["stats"]["tokens_per_second"] > 0
    assert last["model"] == f"{Q4_0}.gguf"


async def test_lines_are_on_the_wire_as_soon_as_they_exist(running: Daemon) -> None:
    """The first line comes long before the last one."""
    async with client(running) as http:
        await infer(http, max_tokens=1)
        began = time.perf_counter()
        async with http.stream("POST", "/infer", json={"prompt": "Tell me", "max_tokens": 60}) as response:
            arrivals = [time.perf_counter() - began async for _ in response.aiter_lines()]
    assert arrivals[0] < arrivals[-1] / 3


async def test_the_same_request_gives_the_same_text(running: Daemon) -> None:
    """Greedy, and sampled with a seed: twice the same, streamed or not."""
    async with client(running) as http:
        for terms in ({"temperature": 0}, {"temperature": 1.0, "seed": 42}):
            first = (await infer(http, **terms))[-1]
            second = (await infer(http, **terms))[-1]
            plain = {"model": Q4_0, "prompt": "Once upon a time", "max_tokens": 16, "stream": False}
            answer = await http.post("/infer", json=plain | terms)
            assert first["content"] == second["content"] == answer.json()["content"]


async def test_four_clients_stream_at_once_from_one_model(running: Daemon) -> None:
    """All four hold slots together, and each gets its own whole answer."""
    answers: dict[int, dict[str, object]] = {}
    busiest = 0

    async def ask(number: int) -> None:
        answers[number] = (await infer(http, prompt=f"Count from {number}:", max_tokens=60))[-1]

    async with client(running) as http:
        await infer(http, max_tokens=1)
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(ask, number)
            while len(answers) < 4:
                busiest = max(busiest, (await status(http))["inflight"])
                await trio.sleep(0.02)
    assert busiest == 4
    assert len({answer["content"] for answer in answers.values()}) > 1
    assert all(answer["usage"]["completion_tokens"] > 0 for answer in answers.values())


async def test_two_models_stream_at_once(running: Daemon) -> None:
    """Both are loaded, and for a while both have a request in a slot."""
    both = False
    ends: list[dict[str, object]] = []

    async def ask(model: str) -> None:
        ends.append((await infer(http, model=model, max_tokens=80, ignore_eos=True))[-1])

    async with client(running) as http, trio.open_nursery() as nursery:
        nursery.start_soon(ask, Q4_0)
        nursery.start_soon(ask, Q8_0)
        while len(ends) < 2:
            states = [await status(http, model) for model in (Q4_0, Q8_0)]
            both = both or all(state["inflight"] == 1 for state in states)
            await trio.sleep(0.02)
    assert both
    assert {end["finish_reason"] for end in ends} == {"length"}


@pytest.mark.parametrize("phase", ["decode", "prefill", "queued"])
async def test_leaving_frees_the_slot(running: Daemon, phase: str) -> None:
    """The client closes its connection; the slot is free within a second, and so is its queue place."""
    async with client(running) as http:
        await infer(http, max_tokens=1)
        prompt = LONG_PROMPT if phase == "prefill" else "Once upon a time"
        count = 5 if phase == "queued" else 1
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(_stream_for_ever, running, prompt)
            await until(http, inflight=min(count, 4), queue_len=max(0, count - 4))
            nursery.cancel_scope.cancel()
        await until(http, inflight=0, queue_len=0, patience=2.0)
        began = time.perf_counter()
        await infer(http, prompt="Hi", max_tokens=1)
        assert time.perf_counter() - began < 20  # a whole context takes longer


async def _stream_for_ever(running: Daemon, prompt: str) -> None:
    async with (
        client(running) as http,
        http.stream(
            "POST",
            "/infer",
            json={"model": Q4_0, "prompt": prompt, "max_tokens": 1500, "ignore_eos": True},
        ) as response,
    ):
        async for _ in response.aiter_lines():
            pass


async def test_events_tell_of_loading(tmp_path: Path) -> None:
    """With events:true the stream starts before the model is loaded, and tells how far it is."""
    with daemon() as fresh:
        async with client(fresh) as http:
            lines = await infer(http, events=True)
    loading = [line["progress"] for line in lines if line.get("event") == "loading"]
    assert loading
    assert loading == sorted(loading)
    assert lines[-1]["stats"]["load_ms"] > 0


async def test_a_new_file_is_served_and_a_removed_one_is_gone_without_a_restart(tmp_path: Path) -> None:
    """A model that is copied in while the daemon runs answers; a damaged one is listed with its error."""
    (tmp_path / "models").mkdir()
    with daemon(models_dir=tmp_path / "models") as fresh:
        async with client(fresh) as http:
            assert (await http.get("/models")).json() == {"models": []}
            nobody = await http.post("/infer", json={"prompt": "Hi"})
            assert nobody.status_code == 404
            shutil.copy(models_folder() / f"{Q4_0}.gguf", tmp_path / "models" / "new.gguf")
            (tmp_path / "models" / "bad.gguf").write_bytes(b"GGUF but not really")
            with trio.fail_after(10):
                while len((await http.get("/models")).json()["models"]) < 2:
                    await trio.sleep(0.1)
            models = {model["id"]: model for model in (await http.get("/models")).json()["models"]}
            assert models["bad.gguf"]["error"]
            assert models["new.gguf"]["quant"] == "Q4_0"
            refused = await http.post("/infer", json={"model": "bad", "prompt": "Hi"})
            assert refused.status_code == 503
            assert refused.headers["Retry-After"]
            assert (await infer(http, model="new"))[-1]["done"] is True
            (tmp_path / "models" / "new.gguf").unlink()
            with trio.fail_after(10):
                while len((await http.get("/models")).json()["models"]) > 1:
                    await trio.sleep(0.1)
            gone = await http.post("/infer", json={"model": "new", "prompt": "Hi"})
            assert gone.status_code == 404
            await until(http, "new", state="stopped")


async def test_the_budget_refuses_and_evicts(tmp_path: Path) -> None:
    """With room for one model: the other one's request evicts it; with room for none: 507 and numbers."""
    budget = int(await _estimate_mb() * 1.5)
    with daemon("--vram-budget-mb", str(budget)) as fresh:
        async with client(fresh) as http:
            await infer(http, model=Q4_0)
            await infer(http, model=Q8_0)
            assert (await status(http, Q4_0))["state"] == "stopped"
            everything = (await http.get("/status")).json()
            assert everything["evictions_total"] == 1
            assert everything["used_est_mb"] <= everything["budget_mb"]
            assert any(decision["action"] == "evict" for decision in everything["decisions"])
    with daemon("--vram-budget-mb", "50") as tiny:
        async with client(tiny) as http:
            refused = await http.post("/infer", json={"model": Q4_0, "prompt": "Hi"})
            assert refused.status_code == 507
            assert refused.json()["details"]["budget_mb"] == 50


async def _estimate_mb() -> float:
    """What the daemon thinks the Q8_0 model takes."""
    with daemon() as fresh:
        async with client(fresh) as http:
            await infer(http, model=Q8_0, max_tokens=1)
            return float((await status(http, Q8_0))["est_vram_mb"])


async def test_metrics_tell_what_happened(running: Daemon) -> None:
    """Tokens, first tokens and loads are counted by model, and a scrape loads nothing."""
    async with client(running) as http:
        await infer(http, max_tokens=3)
        text = (await http.get("/metrics")).text
    label = f'model="{Q4_0}.gguf"'
    assert f"modeld_tokens_out_total{{{label}}}" in text
    assert f"modeld_time_to_first_token_seconds_count{{{label}}}" in text
    assert 'modeld_http_requests_total{method="POST",path="/infer",status="200"}' in text


async def test_a_daemon_is_ready_before_its_first_request(tmp_path: Path) -> None:
    """A load balancer that believes `/readyz` sends the request that loads a model; or there is none yet."""
    for folder in (None, tmp_path):
        with daemon(models_dir=folder) as fresh:
            async with client(fresh) as http:
                answer = await http.get("/readyz")
                assert (answer.status_code, answer.text) == (200, "ready")


async def test_a_preloaded_model_is_ready_without_a_request(tmp_path: Path) -> None:
    """`preload: true` in the config makes the daemon ready by itself."""
    config = tmp_path / "modeld.yaml"
    config.write_text(f"models:\n  {Q4_0}:\n    preload: true\n    aliases: [smol]\n")
    with daemon("--config", str(config)) as fresh:
        async with client(fresh) as http:
            loading = await http.get("/readyz")
            assert (loading.status_code, loading.text) == (503, "loading")
            await until(http, state="ready")
            assert (await http.get("/readyz")).status_code == 200
            assert (await infer(http, model="smol"))[-1]["model"] == f"{Q4_0}.gguf"


async def test_a_second_daemon_on_the_same_port_says_so(running: Daemon) -> None:
    """The preflight names the address, and the exit code is 1."""
    with pytest.raises(pytest.fail.Exception, match="NOT OK"), daemon("--addr", f"127.0.0.1:{running.port}"):
        pass


async def test_httpx_sees_the_documented_headers(running: Daemon) -> None:
    """The nosniff header and a request id on every answer; the client's own id comes back."""
    async with httpx2.AsyncClient(base_url=running.url) as http:
        for path in ("/healthz", "/models", "/nowhere"):
            answer = await http.get(path, headers={"X-Request-ID": "mine-1"})
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["X-Request-ID"] == "mine-1"
