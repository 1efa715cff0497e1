# SPDX-License-Identifier: GPL-3.0-only
"""`modeld inspect` for people and for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support import tiny_gguf
from support.lora_gguf import write_lora

from modeld.cli.main import modeld
from modeld.config.settings import LOAD_SETTINGS, SETTINGS


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A model of some hundred KiB."""
    return tiny_gguf.write_model(tmp_path_factory.mktemp("inspect") / "tiny.gguf")


def invoke(*args: object) -> Result:
    return CliRunner().invoke(modeld, ["inspect", *map(str, args)], prog_name="modeld")


@pytest.mark.process
def test_the_table_tells_what_the_model_takes(tiny: Path) -> None:
    """The dry run alongside the formula, by cause, with the options that were asked for."""
    result = invoke(tiny, "--ctx", 512, "--slots", 2)
    assert result.exit_code == 0, result.output
    assert "with 512 KV cells of f16, 2 slots" in result.stdout
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line.strip()}
    assert set(rows) >= {"weights", "kv", "compute", "overhead", "total"}
    assert float(rows["total"][0]) == pytest.approx(
        sum(float(rows[part][0]) for part in list(rows)[-5:-1]), abs=0.3
    )


def test_json_is_for_programs(tiny: Path) -> None:
    """One object, with what was asked for and what was found."""
    told = json.loads(invoke(tiny, "--json", "--formula", "--kv-type", "q8_0", "--ctx", 512).stdout)
    assert told["source"] == "formula"
    assert told["facts"]["architecture"] == "llama"
    assert (told["options"]["ctx"], told["options"]["kv_type"]) == (512, "q8_0")
    sizes = told["footprint_mb"]
    assert sizes["total"] == pytest.approx(sum(sizes.values()) - sizes["total"], abs=0.05)


def test_every_option_of_a_models_load_can_be_typed(tiny: Path) -> None:
    """By its name and without the prefix; what is asked for is what is told."""
    asked = {
        "--ctx": "512", "--slots": "2", "--threads": "1", "--ngl": "3", "--main-gpu": "1", "--mmap": "off",
        "--flash-attn": "on", "--kv-type": "q8_0", "--ubatch": "64", "--kv-unified": "off",
        "--context-shift": "on", "--prefix-cells": "64", "--isolation": "thread",
    }  # fmt: skip
    assert {SETTINGS[name].flag.replace("--llama-", "--") for name in LOAD_SETTINGS} == {
        *asked,
        "--tensor-split",
    }
    words = [word for pair in asked.items() for word in pair]
    told = json.loads(invoke(tiny, "--formula", "--json", *words).stdout)
    assert told["options"] == {
        "ctx": 512, "slots": 2, "threads": 1, "gpu_layers": 3, "main_gpu": 1, "tensor_split": [],
        "flash_attn": True, "kv_type": "q8_0", "ubatch": 64, "mmap": False, "kv_unified": False,
        "context_shift": True, "prefix_cells": 64, "isolation": "thread", "lora": [],
    }  # fmt: skip
    split = invoke(tiny, "--formula", "--llama-tensor-split", "3,1", "--context-shift=on")
    assert "with context shift, split 3,1 over GPUs" in split.stdout


def test_options_that_contradict_each_other_are_told(tiny: Path) -> None:
    """What cannot be used exits with 2 and names the option as it is typed here; the rest is a warning."""
    both = invoke(tiny, "--formula", "--main-gpu", 0, "--tensor-split", "1,1")
    assert both.exit_code == 2
    assert "--main-gpu: one GPU for all layers" in both.stderr
    idle = invoke(tiny, "--formula", "--main-gpu", 0, "--ngl", 0)
    assert idle.exit_code == 0
    assert idle.stderr == (
        "modeld: warning: --main-gpu: llama_main_gpu has no effect with llama_ngl: 0, no layer on a GPU\n"
    )


def test_adapters_have_a_scale(tiny: Path, tmp_path: Path) -> None:
    """`FILE:SCALE`, and `FILE` where the name of a file ends like that."""
    adapter = write_lora(tmp_path / "a.gguf")
    odd = adapter.with_name("b.gguf:2")
    odd.write_bytes(adapter.read_bytes())
    args = ["--lora", f"{adapter}:0.5", "--lora", odd, "--lora", f"{odd}:-1"]
    told = json.loads(invoke(tiny, "--formula", "--json", *args).stdout)
    assert [(Path(each["path"]).name, each["scale"]) for each in told["options"]["lora"]] == [
        ("a.gguf", 0.5),
        ("b.gguf:2", 1.0),
        ("b.gguf:2", -1.0),
    ]


@pytest.mark.parametrize(
    ("content", "word"), [(None, "No such file"), (b"GGUF\3\0", "cut"), (b"x" * 64, "GGUF")]
)
def test_a_file_that_cannot_be_read_exits_with_1(tmp_path: Path, content: bytes | None, word: str) -> None:
    """One line that names the file and says why."""
    path = tmp_path / "broken.gguf"
    if content is not None:
        path.write_bytes(content)
    result = invoke(path)
    assert result.exit_code == 1
    assert "broken.gguf" in result.stderr
    assert word.lower() in result.stderr.lower()


@pytest.mark.parametrize(
    "options", [("--ctx", "x"), ("--ctx", "auto"), ("--slots", "0"), ("--kv-type", "q9")]
)
def test_options_that_cannot_be_used_exit_with_2(tiny: Path, options: tuple[str, str]) -> None:
    """The option is named; nothing is probed."""
    result = invoke(tiny, *options)
    assert result.exit_code == 2
    assert options[0] in result.stderr


def test_an_adapter_for_another_model_exits_with_1(tiny: Path) -> None:
    """A model is no adapter."""
    result = invoke(tiny, "--lora", tiny)
    assert result.exit_code == 1
    assert "modeld:" in result.stderr
