# SPDX-License-Identifier: GPL-3.0-only
"""LoRA adapters through the whole daemon, with an engine in a thread and in a process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support import tiny_gguf
from support.daemon_process import client, daemon
from support.lora_gguf import QUERY, pair_of, write_lora

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("isolation", ["thread", "process"])
async def test_a_model_is_served_with_its_adapters(isolation: str, tmp_path: Path) -> None:
    """Scale 0 gives the text of the model alone, scale 1 another; a misfit is told, and harms nobody."""
    tiny_gguf.write_model(tmp_path / "plain.gguf")
    for name in ("zero", "full", "wrong"):
        shutil.copy(tmp_path / "plain.gguf", tmp_path / f"{name}.gguf")
    write_lora(tmp_path / "fits.gguf")
    write_lora(tmp_path / "misfit.gguf", pair_of(QUERY, 32, 64))
    models = {
        "zero": {"lora": [{"path": "fits.gguf", "scale": 0}]},
        "full": {"lora": [{"path": "fits.gguf"}]},
        "wrong": {"lora": [{"path": "misfit.gguf"}]},
    }
    environ = {"MODELD_MODELS": json.dumps(models), "MODELD_ISOLATION": isolation}
    with daemon("--llama-ctx", "256", "--llama-threads", "1", models_dir=tmp_path, env=environ) as running:
        async with client(running) as http:

            async def ask(model: str):
                body = {
                    "model": model,
                    "prompt": "the cat",
                    "temperature": 0,
                    "max_tokens": 16,
                    "stream": False,
                }
                return await http.post("/infer", json=body)

            answers = {name: await ask(name) for name in ("plain", "zero", "full")}
            texts = {name: answer.json()["content"] for name, answer in answers.items()}
            assert texts["plain"] == texts["zero"] != texts["full"]
            wrong = await ask("wrong")
            assert wrong.status_code >= 500
            assert "its LoRA adapter misfit.gguf cannot be used" in wrong.text
            assert "do not fit the weight's, [64, 64]" in wrong.text
            assert (await ask("full")).json()["content"] == texts["full"]
            listed = {model["id"]: model for model in (await http.get("/models")).json()["models"]}
            assert set(listed) == {"plain.gguf", "zero.gguf", "full.gguf", "wrong.gguf"}
            assert listed["full.gguf"]["lora"] == [{"path": f"{tmp_path}/fits.gguf", "scale": 1.0}]
            assert "lora" not in listed["plain.gguf"]
