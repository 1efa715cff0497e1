# SPDX-License-Identifier: GPL-3.0-only
"""Estimates of memory in a real daemon: what a load teaches, and the next life; damaged files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import trio
from support import tiny_gguf
from support.daemon_process import Q4_0, client, daemon, infer, models_folder

from modeld.domain.model import MIB

pytestmark = pytest.mark.real
PATIENCE_S = 120.0


async def row(http, wanted, model: str = Q4_0) -> dict[str, object]:
    """The model in /models, as soon as its footprint is as wanted."""
    seen = None
    with trio.move_on_after(PATIENCE_S):
        while True:
            models = (await http.get("/models")).json()["models"]
            seen = next(it for it in models if it["id"].startswith(model))
            if wanted(seen["footprint"]):
                return seen
            await trio.sleep(0.1)
    pytest.fail(f"the footprint of {model} never was as wanted; last seen: {seen}")


async def test_a_load_betters_the_estimate_and_is_remembered(tmp_path: Path) -> None:
    """/models, /status and /metrics tell the same; a daemon with the same state_dir begins with it."""
    state = tmp_path / "state"
    flags = ("--llama-ctx", "1024", "--state-dir", str(state))
    with daemon(*flags) as running:
        async with client(running) as http:
            await infer(http)
            learned = await row(http, lambda it: it["measured_mb"] is not None)
            ratio = learned["footprint"]["learned_ratio"]
            assert 0.8 < ratio < 1.2
            estimate = learned["footprint"]["estimate_mb"]
            assert learned["est_vram_mb"] == pytest.approx(estimate * ratio, abs=0.01)
            status = (await http.get("/status")).json()
            (instance,) = [it for it in status["instances"] if it["model_id"].startswith(Q4_0)]
            assert (instance["estimate_source"], instance["learned_ratio"]) == ("formula", ratio)
            metrics = (await http.get("/metrics")).text
            assert f'modeld_footprint_ratio{{model="{Q4_0}.gguf"}}' in metrics
            with trio.fail_after(PATIENCE_S):
                while not (state / "footprints.json").exists():  # noqa: ASYNC110  # another process writes it
                    await trio.sleep(0.1)
    with daemon(*flags) as running:
        async with client(running) as http:
            models = (await http.get("/models")).json()["models"]
            first = next(it for it in models if it["id"].startswith(Q4_0))
            assert first["footprint"]["learned_ratio"] == ratio


async def test_the_daemon_asks_llama_cpp_what_a_model_takes(tmp_path: Path) -> None:
    """A dry run of a new file happens by itself; /models says so, and the next load is reserved by it."""
    tiny_gguf.write_model(tmp_path / "tiny.gguf")
    with daemon("--dry-runs=true", "--llama-ctx", "256", models_dir=tmp_path) as running:
        async with client(running) as http:
            found = await row(http, lambda it: it["source"] == "probe", "tiny")
            assert "problem" not in found["footprint"]
            assert found["est_vram_mb"] == pytest.approx(found["footprint"]["estimate_mb"], abs=0.01)
            await infer(http, model="tiny")
            status = (await http.get("/status")).json()
            (instance,) = status["instances"]
            assert instance["estimate_source"] == "probe"
            assert instance["estimate_mb"] == pytest.approx(found["footprint"]["estimate_mb"], abs=0.01)


async def test_damaged_files_beside_a_sound_one_harm_nobody(tmp_path: Path) -> None:
    """Each is told with its error, a request for it is refused, and the sound one answers."""
    sound = tmp_path / f"{Q4_0}.gguf"
    shutil.copyfile(models_folder() / f"{Q4_0}.gguf", sound)
    whole = sound.read_bytes()
    damage = {
        "cut": whole[: 40 * MIB],
        "short": whole[:1000],
        "flipped": whole[:8] + b"\xff" * 8 + whole[16:4096],
        "empty": b"",
    }
    for name, content in damage.items():
        (tmp_path / f"{name}.gguf").write_bytes(content)
    with daemon("--llama-ctx", "512", models_dir=tmp_path) as running:
        async with client(running) as http:
            models = {it["id"]: it for it in (await http.get("/models")).json()["models"]}
            for name in damage:
                assert models[f"{name}.gguf"]["error"]
                refused = await http.post("/infer", json={"model": name, "prompt": "x"})
                assert refused.status_code == 503, refused.text
            assert (await infer(http))[-1]["done"] is True
            assert (await http.get("/healthz")).status_code == 200
