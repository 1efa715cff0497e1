# SPDX-License-Identifier: GPL-3.0-only
"""Sizes that are `auto`, from the files in a folder to what is loaded, told and refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from support import tiny_gguf
from support.engine_driver import EngineDriver, generate_request
from support.fake_devices import gpu, machine
from support.scheduler_driver import limits

from modeld.config.model_settings import ModelSettings
from modeld.config.settings import AUTO, Settings
from modeld.dialects.native import models_body
from modeld.domain.model import MIB, Isolation, ModelSpec
from modeld.engine.llama.engine import load
from modeld.engine.protocol import LoadSpec
from modeld.memory.devices import Device
from modeld.memory.layer_placement import model_parts, place
from modeld.memory.space import Capacity
from modeld.runtime.catalog.scan import Scanner, ScanResult
from modeld.runtime.memory.machine import sizing_capacity
from modeld.scheduler.capacity import never_fits
from modeld.scheduler.state import Fleet

CHOSEN = ModelSettings(llama_ctx=AUTO, llama_slots=AUTO)


def look(folder: Path, room_mb: float | None = None, *gpus: Device, **models: ModelSettings) -> ScanResult:
    """Scan with a budget and these GPUs, besides a machine of 100 GiB."""
    space = sizing_capacity(limits(room_mb), (machine(0, 102_400), *gpus))
    if room_mb is None:
        space = Capacity(total=None, device_spaces=space.device_spaces)
    settings = Settings(models_dir=folder, models=models, isolation=Isolation.THREAD)
    return Scanner(settings, space).scan()


def size(spec: ModelSpec) -> tuple[int, int]:
    return spec.options.ctx, spec.options.slots


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three models that are alike, trained for 64 Ki tokens."""
    for name in "abc":
        tiny_gguf.write_model(tmp_path / f"{name}.gguf", extra={"llama.context_length": 65536})
    return tmp_path


def test_a_size_follows_from_the_budget(folder):
    """The same files with more room are larger; without `auto` they are as the config says."""
    sizes = [size(look(folder, room, a=CHOSEN).catalog.models["a.gguf"]) for room in (30, 60, 120, 4000)]
    assert sizes == sorted(sizes)
    assert sizes[0] < (8192, 4) < sizes[-1]
    assert size(look(folder, 30).catalog.models["a.gguf"]) == (8192, 4)


def test_what_is_chosen_fits_and_says_why(folder):
    """Estimate, reason and figures are in the catalogue, and in the list that clients see."""
    scan = look(folder, 40, a=CHOSEN)
    spec = scan.catalog.models["a.gguf"]
    assert spec.footprint.total <= 40 * MIB
    shown, other, _ = models_body(scan.catalog, {}).models
    assert (shown.kv_cells, shown.slots) == size(spec)
    assert shown.sizing == spec.sizing != ""
    assert shown.est_vram_mb == spec.footprint.total / MIB
    assert other.sizing is msgspec.UNSET


def test_pinned_models_come_first_and_share_evenly(folder):
    """The others are sized for what is left alongside them, whether or not they are loaded."""
    pinned = ModelSettings(pinned=True, llama_ctx=AUTO, llama_slots=AUTO)
    specs = look(folder, 90, a=pinned, b=pinned, c=CHOSEN).catalog.models
    one, two, other = (specs[f"{name}.gguf"] for name in "abc")
    assert size(one) == size(two)
    assert one.footprint.total <= 30 * MIB
    assert sum(spec.footprint.total for spec in (one, two, other)) <= 90 * MIB
    assert size(look(folder, 90, c=CHOSEN).catalog.models["c.gguf"]) > size(other)


def test_a_size_that_the_config_names_is_refused_with_the_one_that_fits(folder):
    """Nothing is made smaller unasked; the refusal has the numbers, and they are right."""
    spec = look(folder, 30).catalog.models["a.gguf"]
    scan = look(folder, 30, a=ModelSettings(llama_ctx=spec.fitting_ctx))
    fleet = Fleet(limits=limits(30), catalog=scan.catalog)
    refusal = never_fits(fleet, spec)
    assert refusal.details["fitting_ctx"] == spec.fitting_ctx
    assert f"lower llama_ctx from 8192 to {spec.fitting_ctx} or less (or set it to auto)" in refusal.message
    assert never_fits(fleet, scan.catalog.models["a.gguf"]) is None


def test_what_cannot_be_made_small_enough_is_refused(folder):
    """With `auto` too, and the refusal tells that even the least was too much."""
    scan = look(folder, 1, a=CHOSEN)
    refusal = never_fits(Fleet(limits=limits(1), catalog=scan.catalog), scan.catalog.models["a.gguf"])
    assert "auto chose 256 cells and 1 slot for it, the least there is" in refusal.message


@pytest.mark.llama
def test_the_engine_has_the_size_that_was_chosen(folder):
    """What llama.cpp allocates is what the catalogue says, and it generates."""
    spec = look(folder, 40, a=CHOSEN).catalog.models["a.gguf"]
    engine = load(LoadSpec(model_id=spec.id, path=spec.path, options=spec.options), lambda _fraction: True)
    assert (engine.info.cells, engine.info.slots) == size(spec)
    bench = EngineDriver(engine)
    assert bench.tokens(bench.run(generate_request("hello", max_tokens=3, ignore_eos=True))[0]) == 3
    engine.close()


def test_the_room_is_the_budget_less_the_margin_or_the_machine():
    """A margin stays free; without a budget the memory of the machine counts, not what is free of it."""
    assert sizing_capacity(limits(100, margin=30 * MIB), ()) == Capacity(total=70 * MIB)
    assert sizing_capacity(limits(100, margin=200 * MIB), ()) == Capacity(total=0)
    unlimited = sizing_capacity(limits(None), (machine(50),))
    assert unlimited == sizing_capacity(limits(None), (machine(500),))
    assert unlimited.total > MIB
    assert unlimited.device_spaces == (), "without GPUs the total is all there is"


def test_the_memory_of_each_device_counts_as_a_whole():
    """What is free at the moment changes nothing; a tenth and the margin stay free."""
    space = sizing_capacity(
        limits(5000, margin=24 * MIB), (machine(0, 4000), gpu(0, 10, 1000), gpu(1, 0, 2000))
    )
    assert space.total == 4976 * MIB
    assert [spot.free // MIB for spot in space.device_spaces] == [3576, 876, 1776]
    unlimited = sizing_capacity(limits(None), (machine(0, 4000), gpu(0, 10, 1000)))
    assert unlimited.total - sizing_capacity(limits(None), ()).total == pytest.approx(900 * MIB, abs=2)


def test_a_size_follows_from_the_memory_of_the_gpus(folder):
    """With all layers on them, as `llama_ngl` is by default, the cells have to be there, too."""
    sizes = [
        size(look(folder, 4000, gpu(0, 0, mb), a=CHOSEN).catalog.models["a.gguf"])
        for mb in (40, 60, 90, 4000)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[1] < sizes[2] <= sizes[3]
    roomy = size(look(folder, 4000, a=CHOSEN).catalog.models["a.gguf"])
    assert sizes[0] < roomy == sizes[3]
    spec = look(folder, 4000, gpu(0, 0, 40), a=CHOSEN).catalog.models["a.gguf"]
    assert spec.sizing.endswith("the memory of the GPUs to others") or spec.sizing.endswith(
        "the memory of the GPUs"
    )
    space = sizing_capacity(limits(4000), (machine(0, 102_400), gpu(0, 0, 40)))
    placed = place(model_parts(spec), space.device_spaces, spec.options, None, partly=False)
    assert placed is not None
    assert placed.gpu_layers > 0


@pytest.mark.parametrize(
    "options", [{"llama_ngl": 0}, {"llama_main_gpu": 1}, {"llama_tensor_split": (0.0, 1.0)}]
)
def test_only_the_gpus_that_get_layers_count(folder, options):
    """A small GPU makes no model smaller that has no layers there."""
    cards = (gpu(0, 0, 20), gpu(1, 0, 50_000))
    chosen = ModelSettings(llama_ctx=AUTO, llama_slots=AUTO, **options)
    assert size(look(folder, 4000, *cards, a=chosen).catalog.models["a.gguf"]) == size(
        look(folder, 4000, a=chosen).catalog.models["a.gguf"]
    )


def test_a_model_that_gpus_cannot_hold_has_the_size_of_all_memory(folder):
    """Its layers are divided between them and the machine, so the least that would fit there is no bound."""
    tiny = gpu(0, 0, 1)
    assert size(look(folder, 4000, tiny, a=CHOSEN).catalog.models["a.gguf"]) == size(
        look(folder, 4000, a=CHOSEN).catalog.models["a.gguf"]
    )


def test_pinned_models_leave_less_of_the_gpus(folder):
    """As they do of the budget."""
    pinned = ModelSettings(pinned=True, llama_ctx=AUTO, llama_slots=AUTO)
    alone = look(folder, 4000, gpu(0, 0, 90), c=CHOSEN).catalog.models["c.gguf"]
    both = look(folder, 4000, gpu(0, 0, 90), a=pinned, c=CHOSEN).catalog.models
    assert size(both["c.gguf"]) < size(alone)
    space = sizing_capacity(limits(4000), (machine(0, 102_400), gpu(0, 0, 90)))
    left = space.less([both["a.gguf"], both["c.gguf"]])
    assert left.device_spaces[1].free > 0
    assert left.total == 4000 * MIB - both["a.gguf"].footprint.total - both["c.gguf"].footprint.total
