# SPDX-License-Identifier: GPL-3.0-only
"""The dry run in a process of its own: what llama.cpp says a model takes, and files that end it."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from support import tiny_gguf
from support.bad_gguf import Parts, corpus, damaged
from support.child_processes import children_of
from support.daemon_process import Q4_0, Q8_0, models_folder
from support.lora_gguf import write_lora
from support.memory_measurement import PATIENCE_S, certain_bytes, dry_run_of

from modeld.domain.model import MIB, Adapter, DryRun, Isolation, LoadOptions
from modeld.engine.llama.footprint import estimate
from modeld.engine.llama.gguf.facts import read_facts
from modeld.engine.protocol import LoadSpec
from modeld.errors import Problem
from modeld.worker.oneshot import run_dry_run
from modeld.worker.spawn import child_environment

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A model of some hundred KiB."""
    return tiny_gguf.write_model(tmp_path_factory.mktemp("probe") / "tiny.gguf")


@pytest.fixture
def strangers() -> set[int]:
    """Processes of tests before, which may end at any moment."""
    return set(children_of())


def test_a_dry_run_tells_weights_and_cells_to_the_byte(tiny: Path, strangers: set[int]) -> None:
    """Weights are those of the file, cells those of the formula; nothing is left of the process."""
    options = LoadOptions(ctx=256, slots=1, isolation=Isolation.PROCESS)
    found, outline = certain_bytes(tiny, options), estimate(read_facts(tiny), options)
    assert found.peak.weights == outline.weights
    assert found.peak.kv == outline.kv
    assert found.peak.overhead > 10 * MIB
    assert [use.device for use in found.devices] == ["CPU"]
    assert set(children_of()) <= strangers


@pytest.mark.real
def test_the_dry_run_and_the_formula_agree_on_a_real_model() -> None:
    """For a split cache that may be unified the peak is the unified one, which the formula is for."""
    path = models_folder() / f"{Q4_0}.gguf"
    options = LoadOptions(ctx=4096, slots=4, isolation=Isolation.PROCESS)
    found, outline = certain_bytes(path, options), estimate(read_facts(path), options)
    assert (found.peak.weights, found.peak.kv) == (outline.weights, outline.kv)
    assert found.peak.compute == pytest.approx(outline.compute, rel=0.1)
    assert found.peak.total == pytest.approx(outline.total, rel=0.15)
    assert found.before_use.compute < found.peak.compute / 2
    assert (found.before_use.weights, found.before_use.kv) == (found.peak.weights, found.peak.kv)


@pytest.mark.real
@pytest.mark.parametrize(
    ("change", "part", "more"),
    [
        ({"ctx": 2048}, "kv", True),
        ({"kv_type": "q8_0"}, "kv", False),
        ({"ubatch": 64}, "compute", False),
        ({"flash_attn": True}, "compute", False),
        ({"mmap": False}, "weights", False),
        ({"isolation": Isolation.THREAD}, "overhead", False),
    ],
    ids=str,
)
def test_each_option_moves_its_part(change: dict[str, object], part: str, more: bool) -> None:
    """In the direction and by about the amount that the formula says."""
    path = models_folder() / f"{Q4_0}.gguf"
    usual = {"ctx": 1024, "slots": 1, "isolation": Isolation.PROCESS}
    options = [LoadOptions(**usual), LoadOptions(**{**usual, **change})]
    before, after = (getattr(certain_bytes(path, each).peak, part) for each in options)
    assert (after > before) is more
    assert after != before
    if part in {"weights", "kv"}:
        said = [getattr(estimate(read_facts(path), each), part) for each in options]
        assert (before, after) == tuple(said)


def test_an_adapter_counts_with_its_tensors(tiny: Path, tmp_path: Path) -> None:
    """They are read into memory alongside the weights."""
    adapter = write_lora(tmp_path / "lora.gguf")
    size = 123_456
    plain = certain_bytes(tiny, LoadOptions(ctx=256, slots=1))
    with_it = certain_bytes(
        tiny, LoadOptions(ctx=256, slots=1, lora=(Adapter(path=str(adapter), bytes=size),))
    )
    assert with_it.peak.weights - plain.peak.weights == size


def test_a_dry_run_holds_what_a_worker_holds() -> None:
    """Its process is taken for a worker's, so it has no module that a worker has not, but its own."""
    shown = "import importlib, sys; [importlib.import_module(name) for name in {!r}]; print(*sys.modules)"
    engine, found = "modeld.engine.llama.engine", list[set[str]]()
    for own in (["modeld.worker.dry_run_child", "modeld.worker.dry_run_answer"], []):
        program = shown.format(["modeld.worker.child", engine, *own])
        command = [sys.executable, "-P", "-S", "-c", program]
        env = child_environment(os.environ)
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, env=env, timeout=PATIENCE_S
        )
        found.append(set(done.stdout.split()))
    more = {
        name
        for name in found[0] - found[1]
        if not name.startswith(("modeld.worker.dry_run", "modeld.worker.oneshot_child", "modeld.engine"))
    }
    assert more == set()


@pytest.mark.real
def test_rows_of_logits_are_there_from_the_beginning() -> None:
    """llama.cpp clears one for each sequence, so they count with what a ready worker holds."""
    path = models_folder() / f"{Q4_0}.gguf"
    kept, alone = (
        certain_bytes(
            path, LoadOptions(ctx=512, slots=1, prefix_cells=cells, isolation=Isolation.PROCESS)
        ).before_use
        for cells in (None, 0)
    )
    rows = 32 * read_facts(path).vocabulary * 4
    assert kept.overhead - alone.overhead == pytest.approx(rows, abs=rows / 2)


def test_an_embedding_model_is_asked_for_its_own_context(tmp_path: Path) -> None:
    """An encoder has no cells; its buffers are those of a decode of whole inputs."""
    path = tiny_gguf.write_bert(tmp_path / "bert.gguf")
    found = certain_bytes(path, LoadOptions(ctx=256, slots=2, ubatch=128))
    assert found.peak.kv == 0
    assert found.peak.compute > 0
    assert found.before_use == found.peak


async def test_a_probe_that_takes_too_long_is_killed_and_gone(tiny: Path, strangers: set[int]) -> None:
    """The answer says so, and no process is left."""
    spec = LoadSpec(model_id="slow", path=str(tiny))
    answer = await run_dry_run(spec, 0.001)
    assert isinstance(answer, Problem)
    assert "slow" in answer.message
    assert "did not end within 0.001 s" in answer.message
    assert set(children_of()) <= strangers


async def test_a_cancelled_probe_leaves_no_process(tiny: Path, strangers: set[int]) -> None:
    """Whoever asked may leave at any moment."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_dry_run, LoadSpec(model_id="left", path=str(tiny)), PATIENCE_S)
        await trio.testing.wait_all_tasks_blocked()
        assert len(set(children_of()) - strangers) == 1
        nursery.cancel_scope.cancel()
    assert set(children_of()) <= strangers


def test_a_file_that_is_gone_is_a_problem(tmp_path: Path) -> None:
    """It may vanish between the look at the folder and the dry run."""
    answer = dry_run_of(tmp_path / "none.gguf")
    assert isinstance(answer, Problem)
    assert "none.gguf" in answer.message


def bad_files(tiny: Path) -> Iterator[tuple[str, bytes | Parts]]:
    """Twenty kinds: cut off, bits flipped, huge counts, and sound containers that say what cannot be."""
    sound = Parts.of(tiny)
    whole = tiny.read_bytes()
    header = len(whole) - sum(len(it.data) + -len(it.data) % 32 for it in sound.tensors)
    dice = random.Random(20)  # noqa: S311  # a seed, for the same files each time
    yield "empty", b""
    yield "no GGUF", b"GGML" + whole[4:]
    yield "cut in the magic", whole[:3]
    yield "cut in the counts", whole[:20]
    for part in (0.3, 0.8):
        yield f"cut at {part} of the header", whole[: int(header * part)]
    yield "cut in the weights", whole[: header + (len(whole) - header) // 2]
    yield "one byte short", whole[:-1]
    for name, at, value in (
        ("version 0", 4, struct.pack("<I", 0)),
        ("version of the other end", 4, struct.pack(">I", 3)),
        ("2^63 tensors", 8, struct.pack("<Q", 2**63)),
        ("2^40 pairs", 16, struct.pack("<Q", 2**40)),
        ("a key of 2^50 bytes", 24, struct.pack("<Q", 2**50)),
    ):
        yield name, whole[:at] + value + whole[at + len(value) :]
    flips = [content for name, content in damaged(whole, header, dice, 12) if "flipped" in name]
    yield "flipped bits", flips[-1] if flips else whole[: header // 2]
    chosen = {
        "llama.embedding_length = 2147483647",
        "llama.block_count = 65536",
        "llama.attention.head_count = 0",
        "general.architecture = b'rwkv'",
        "output_norm.weight missing",
        "token_embd.weight transposed",
    }
    yield from ((name, parts) for name, parts in corpus(sound) if name in chosen)


async def test_twenty_kinds_of_damage_are_errors_and_harm_nobody(
    tiny: Path, tmp_path: Path, strangers: set[int]
) -> None:
    """Each is answered by a problem that names the file; the daemon's own process only sees answers."""
    answers: dict[str, DryRun | Problem] = {}
    limit = trio.CapacityLimiter(2)

    async def ask(number: int, name: str, content: bytes | Parts) -> None:
        path = tmp_path / f"bad{number}.gguf"
        if isinstance(content, Parts):
            content.write(path)
        else:
            path.write_bytes(content)
        async with limit:
            answers[name] = await run_dry_run(LoadSpec(model_id=path.name, path=str(path)), PATIENCE_S)

    async with trio.open_nursery() as nursery:
        for number, (name, content) in enumerate(bad_files(tiny)):
            nursery.start_soon(ask, number, name, content)
    assert len(answers) >= 20
    assert {name for name, answer in answers.items() if not isinstance(answer, Problem)} == set()
    assert [answer.message for answer in answers.values() if "bad" not in answer.message] == []
    assert set(children_of()) <= strangers


@pytest.mark.real
def test_two_quantisations_differ_by_their_weights_only() -> None:
    """Cells and buffers do not depend on the type of the weights."""
    options = LoadOptions(ctx=1024, slots=1)
    small, large = (certain_bytes(models_folder() / f"{quant}.gguf", options) for quant in (Q4_0, Q8_0))
    assert small.peak.kv == large.peak.kv
    assert small.peak.compute == pytest.approx(large.peak.compute, abs=2 * MIB)
    assert small.peak.weights != large.peak.weights
