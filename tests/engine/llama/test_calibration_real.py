# SPDX-License-Identifier: GPL-3.0-only
"""Dry run and learned footprint against what real processes take; the whole table is in docs/footprint.md."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import tiny_gguf
from support.daemon_process import Q4_0, models_folder
from support.lora_gguf import pair_of, write_lora
from support.memory_measurement import certain_bytes, measured_bytes, without_huge_pages

from modeld.domain.model import MIB, Adapter, Isolation, LoadOptions, ModelSpec
from modeld.memory.calibration import Calibration, after_load, calibrated

pytestmark = pytest.mark.real
WIDTH, LAYERS, RANK = 576, 30, 128


@pytest.fixture(autouse=True)
def _small_pages() -> None:
    """Where the kernel gives out huge pages by itself, memory is resident that nobody has touched."""
    without_huge_pages()


def held_against(path: Path, chosen: LoadOptions) -> tuple[float, float]:
    """How far dry run and learned estimate are from what a process holds at its deepest, as parts of that."""
    run, told = certain_bytes(path, chosen), measured_bytes(path, chosen)
    measured = told["full"]["rss"]
    spec = calibrated(ModelSpec(id="m", path=str(path), options=chosen), run, None)
    learned = calibrated(spec, run, after_load(Calibration(), spec.scale, told["ready"]["rss"]))
    return run.peak.total / measured - 1, learned.footprint.total / measured - 1


def test_estimates_are_what_a_full_process_holds() -> None:
    """With its context filled by whole ubatches the dry run is within 5 %, what a load taught within 2 %."""
    path = models_folder() / f"{Q4_0}.gguf"
    dry, learned = held_against(path, LoadOptions(threads=2, isolation=Isolation.PROCESS, ctx=1024, slots=4))
    assert abs(dry) <= 0.05
    assert abs(learned) <= 0.02


def test_an_adapter_is_in_the_estimates(tmp_path: Path) -> None:
    """So are 17 MiB of adapter, which are read alongside the weights."""
    names = [f"blk.{layer}.attn_q.weight" for layer in range(LAYERS)]
    tensors = {key: half for name in names for key, half in pair_of(name, WIDTH, WIDTH, rank=RANK).items()}
    adapter = write_lora(tmp_path / "lora.gguf", tensors)
    size = sum(half.nbytes for half in tensors.values())
    chosen = LoadOptions(
        threads=2,
        isolation=Isolation.PROCESS,
        ctx=512,
        slots=1,
        lora=(Adapter(path=str(adapter), bytes=size),),
    )
    assert size > 16 * MIB
    dry, learned = held_against(models_folder() / f"{Q4_0}.gguf", chosen)
    assert abs(dry) <= 0.05
    assert abs(learned) <= 0.05


def test_the_rows_of_an_embedding_model_are_in_the_estimates(tmp_path: Path) -> None:
    """llama.cpp makes room for the logits of each token of a batch: 59 MiB, most of this model."""
    path = tiny_gguf.write_bert(tmp_path / "bert.gguf", more_words=30_000)
    chosen = LoadOptions(threads=2, isolation=Isolation.PROCESS, ctx=512, slots=1)
    dry, learned = held_against(path, chosen)
    assert abs(dry) <= 0.05
    assert abs(learned) <= 0.05
