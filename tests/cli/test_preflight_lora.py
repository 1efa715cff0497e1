# SPDX-License-Identifier: GPL-3.0-only
"""LoRA adapters that cannot be used are told before anything starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.lora_gguf import write_lora

from modeld.cli.main import modeld
from modeld.cli.preflight import NotOk, Ok, check_adapters
from modeld.config.model_settings import LoraSettings, ModelSettings
from modeld.config.settings import Settings


@pytest.mark.parametrize("there", [True, False])
def test_check_config_and_preflight_name_an_adapter_that_is_missing(there: bool, tmp_path: Path) -> None:
    """Exit code 2 and NOT OK, with its model and path; nothing of the kind once it is there."""
    if there:
        write_lora(tmp_path / "x.gguf")
    models = json.dumps({"m": {"lora": [{"path": "x.gguf"}]}})
    result = CliRunner().invoke(modeld, ["check-config", "--models-dir", str(tmp_path), "--models", models])
    settings = Settings(
        models_dir=tmp_path, models={"m": ModelSettings(lora=(LoraSettings(path=Path("x.gguf")),))}
    )
    says = f"models.m: its LoRA adapter {tmp_path}/x.gguf cannot be read: no such file or directory"
    assert result.exit_code == (0 if there else 2)
    assert (says in result.stderr) is not there
    assert check_adapters(settings) == (Ok() if there else NotOk(says))
