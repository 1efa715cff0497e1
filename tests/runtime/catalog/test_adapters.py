# SPDX-License-Identifier: GPL-3.0-only
"""LoRA adapters in a look at the models folder: where they are, what they weigh, what is wrong with them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from support import tiny_gguf
from support.lora_gguf import write_lora

from modeld.config.model_settings import LoraSettings, ModelSettings
from modeld.config.settings import Settings
from modeld.domain.model import Adapter, EngineKind, ModelSpec
from modeld.runtime.catalog.adapters import adapter_problems
from modeld.runtime.catalog.scan import Scanner, ScanResult

PAIR_BYTES = 2 * 8 * 64 * 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one model."""
    tiny_gguf.write_model(tmp_path / "m.gguf")
    return tmp_path


def settings(folder: Path, *adapters: str, **more: object) -> Settings:
    """Settings by which the model has these adapters."""
    lora = tuple(LoraSettings(path=Path(adapter), scale=0.5) for adapter in adapters)
    return Settings(models_dir=folder, models={"m": ModelSettings(lora=lora)}, **more)


def only(scan: ScanResult) -> ModelSpec:
    """The one model there is."""
    (spec,) = scan.catalog.models.values()
    return spec


def test_adapters_become_options_of_their_model(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A relative path is one in the models folder; their bytes are in the estimate; none is a model."""
    elsewhere = write_lora(tmp_path_factory.mktemp("elsewhere") / "other.gguf")
    inside = write_lora(folder / "in.gguf")
    scan = Scanner(settings(folder, "in.gguf", str(elsewhere))).scan()
    spec = only(scan)
    assert spec.error is None
    assert spec.options.lora == tuple(
        Adapter(path=str(path), scale=0.5, bytes=PAIR_BYTES, modified_ns=path.stat().st_mtime_ns)
        for path in (inside, elsewhere)
    )
    plain = only(Scanner(Settings(models_dir=folder)).scan())
    assert plain.options.lora == ()
    assert spec.footprint.weights == plain.footprint.weights + 2 * PAIR_BYTES
    assert scan.ignored == {"in.gguf": "adapter"}


def test_an_adapter_that_changes_makes_its_model_another(folder: Path) -> None:
    """A look costs nothing while it stays, and finds new contents, also outside of the folder's own files."""
    adapter = write_lora(folder / "in.lora")
    scanner = Scanner(settings(folder, "in.lora"))
    first = scanner.scan()
    assert scanner.scan() is first
    os.utime(adapter, ns=(1, 1))
    second = scanner.scan()
    assert only(second).options != only(first).options


def test_a_model_whose_adapter_cannot_be_used_says_so(folder: Path) -> None:
    """It is not there, damaged, or for another architecture; and all is well once that is mended."""
    scanner = Scanner(settings(folder, "in.gguf"))
    assert (
        only(scanner.scan()).error
        == f"its LoRA adapter {folder}/in.gguf cannot be read: no such file or directory"
    )
    (folder / "in.gguf").write_bytes(b"GGUF")
    scan = scanner.scan()
    assert "its LoRA adapter in.gguf cannot be used: in.gguf is cut short" in str(only(scan).error)
    assert scan.ignored == {"in.gguf": "adapter"}
    write_lora(folder / "in.gguf", architecture="qwen2")
    assert "made for models of the architecture 'qwen2'" in str(only(scanner.scan()).error)
    shutil.copy(folder / "m.gguf", folder / "other.bin")
    named = only(Scanner(settings(folder, "other.bin")).scan())
    assert "it is no adapter: its general.type is not `adapter`" in str(named.error)
    write_lora(folder / "in.gguf")
    assert only(scanner.scan()).error is None


def test_the_fake_engine_asks_for_no_adapters(folder: Path) -> None:
    """It serves a model whatever its adapters are."""
    assert only(Scanner(settings(folder, "in.gguf", engine=EngineKind.FAKE)).scan()).error is None


def test_each_problem_is_a_sentence_with_the_name_of_its_model(folder: Path) -> None:
    """For the checks before the start."""
    write_lora(folder / "good.gguf")
    (folder / "bad.gguf").write_bytes(b"")
    problems = adapter_problems(settings(folder, "good.gguf", "bad.gguf", "none.gguf"))
    assert problems == [
        "models.m: its LoRA adapter bad.gguf cannot be used: bad.gguf is empty",
        f"models.m: its LoRA adapter {folder}/none.gguf cannot be read: no such file or directory",
    ]
