# SPDX-License-Identifier: GPL-3.0-only
"""Which layers go on which device: by example, and for any devices and models that hypothesis makes up."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from support.scheduler_driver import spec

from modeld.domain.model import (
    MIB,
    DeviceUse,
    Footprint,
    FootprintCorrection,
    FootprintSource,
    LoadOptions,
    ModelFacts,
)
from modeld.memory.devices import DeviceKind
from modeld.memory.layer_placement import (
    CPU,
    DeviceSpace,
    ModelParts,
    Placement,
    fits,
    model_parts,
    place,
    placements,
)

TEN = ModelParts(layers=10, layer=100, output=50, compute=30, host=200, host_layer=150, alone=1900)
"""Ten layers of 100, the output of 50: 1,080 on one GPU, 200 of the machine's memory."""
ANY = LoadOptions()


def spaces(*gpus: int, cpu: int = 10_000, kind: DeviceKind = DeviceKind.GPU) -> list[DeviceSpace]:
    cards = [DeviceSpace(name=f"CUDA{place}", kind=kind, free=free) for place, free in enumerate(gpus)]
    return [DeviceSpace(name=CPU, kind=DeviceKind.CPU, free=cpu), *cards]


def placed(
    *gpus: int, total: int | None = None, parts: ModelParts = TEN, cpu: int = 10_000, **more: object
) -> Placement:
    found = place(parts, spaces(*gpus, cpu=cpu), LoadOptions(**more), total)
    assert found is not None
    return found


def test_one_gpu_that_holds_it_all_comes_first_and_of_several_the_one_with_the_most_free() -> None:
    """So two models decode alongside each other instead of after each other."""
    found = placed(1080, 5000, 3000)
    assert (found.gpu_layers, found.main_gpu, found.split) == (11, 1, ())
    assert found.bytes == {CPU: 200, "CUDA1": 1080}
    assert (found.total, found.reason) == (1280, "the GPU with the most free")
    assert placed(5000, 5000).main_gpu == 0, "of two with as much the first"


def test_a_model_too_large_for_one_is_split_in_proportion_to_what_is_free() -> None:
    """The last GPU that has any layers also has the output."""
    found = placed(430, 830)
    assert (found.gpu_layers, found.main_gpu, found.split) == (11, None, (4, 7))
    assert found.bytes == {CPU: 200, "CUDA0": 430, "CUDA1": 6 * 100 + 50 + 30}
    assert found.total == sum(found.bytes.values())


def test_a_gpu_without_room_for_a_layer_gets_none() -> None:
    """It would get a compute buffer, too."""
    found = placed(129, 630, 630)
    assert found.split == (0, 5, 6)
    assert "CUDA0" not in found.bytes
    assert placed(630, 630, 79).split == (5, 6, 0), "nor the output, where there is no room for that"


def test_what_no_gpus_hold_stays_with_the_cpu_only_where_that_is_allowed() -> None:
    """As many layers as they hold go there; the caller says whether it is time for that."""
    assert place(TEN, spaces(500), ANY, None, partly=False) is None
    found = placed(500)
    assert (found.gpu_layers, found.main_gpu) == (5, 0)
    assert found.bytes == {"CUDA0": 4 * 100 + 50 + 30, CPU: 200 + 6 * 150 + 30}
    assert found.reason.startswith("5 of 11 layers")
    least = placed(10)
    assert (least.gpu_layers, least.bytes) == (0, {CPU: 1900})
    assert place(TEN, spaces(500, cpu=1000), ANY, None) is None, "and the machine has room for the rest"


def test_a_machine_without_gpus_has_one_way() -> None:
    """All of it with the CPU, as one footprint."""
    found = placed()
    assert (found.gpu_layers, found.bytes, found.total) == (0, {CPU: 1900}, 1900)
    assert place(TEN, spaces(cpu=1899), ANY, None) is None


def test_the_budget_counts_besides_the_devices() -> None:
    """A split takes a buffer more; a budget that has no room for it refuses it."""
    assert placed(430, 830, total=1310).total == 1310
    assert place(TEN, spaces(430, 830), ANY, 1309, partly=False) is None


def test_what_the_operator_sets_is_heeded() -> None:
    """A number of layers, a GPU, or shares: and nothing else is tried."""
    assert placed(5000, gpu_layers=0).bytes == {CPU: 1900}
    few = placed(5000, gpu_layers=3)
    assert (few.gpu_layers, few.bytes["CUDA0"]) == (3, 2 * 100 + 50 + 30)
    assert placed(5000, gpu_layers=99).gpu_layers == 11
    assert placed(2000, 5000, main_gpu=0).main_gpu == 0
    assert place(TEN, spaces(1000, 5000), LoadOptions(main_gpu=0, gpu_layers=11), None) is None
    assert place(TEN, spaces(5000), LoadOptions(main_gpu=1), None) is None, "there is no second one"
    assert placed(5000, 5000, tensor_split=(10.0, 1.0)).split == (10, 1)
    assert placed(5000, 5000, tensor_split=(0.0, 2.0)).main_gpu == 1
    assert place(TEN, spaces(300, 5000), LoadOptions(tensor_split=(1.0, 1.0), gpu_layers=11), None) is None


def test_a_gpu_inside_the_cpu_takes_the_machines_memory() -> None:
    """Its bytes count in both places, and once in total."""
    found = place(TEN, spaces(5000, cpu=1500, kind=DeviceKind.IGPU), ANY, None)
    assert found is not None
    assert found.bytes == {CPU: 200 + 1080, "CUDA0": 1080}
    assert found.total == 1280
    assert place(TEN, spaces(5000, cpu=1200, kind=DeviceKind.IGPU), LoadOptions(gpu_layers=11), None) is None


def test_memory_that_the_system_does_not_tell_does_not_refuse() -> None:
    """Without a device for the machine's memory only GPUs count."""
    cards = spaces(5000)[1:]
    assert place(TEN, cards, ANY, None) is not None


FACTS = ModelFacts(architecture="llama", layers=4, weights_bytes=1000, output_bytes=200, vocabulary=10)


def test_parts_by_formula_are_the_files_own_weights_without_the_copy_for_the_cpu() -> None:
    """On a GPU nothing is there twice; the table of the tokens stays with the machine."""
    model = replace(
        spec("a"), facts=FACTS, footprint=Footprint(weights=1800, kv=400, compute=60, overhead=70)
    )
    assert model_parts(model) == ModelParts(
        layers=4, layer=(1000 + 400 - 200) // 4, output=200, compute=60, host=200 + 70,
        host_layer=(1800 - 200 + 400) // 4, alone=2330,
    )  # fmt: skip


def test_parts_by_a_dry_run_on_gpus_are_what_that_has_told_and_what_was_learned() -> None:
    """Buffers of all GPUs are split up again; of those of the graphs the largest counts for each."""
    uses = (
        DeviceUse(device=CPU, weights=100, kv=0, compute=10),
        DeviceUse(device="CUDA0", weights=500, kv=200, compute=50),
        DeviceUse(device="CUDA1", weights=400, kv=200, compute=40),
    )
    scale = FootprintCorrection(source=FootprintSource.PROBE, ratio=1.5, devices=uses)
    model = replace(spec("a"), facts=FACTS, scale=scale, footprint=Footprint(weights=1500, overhead=70))
    parts = model_parts(model)
    assert (parts.layer, parts.output, parts.compute) == ((1950 - 300 + 3) // 4, 300, 75)
    assert parts.host == 165 + 70


def test_a_model_without_facts_is_one_piece() -> None:
    """What the fake engine serves goes on one GPU, or stays with the CPU."""
    found = place(model_parts(spec("a", 100)), spaces(99 * MIB, 100 * MIB), ANY, None)
    assert found is not None
    assert (found.main_gpu, found.split, found.gpu_layers) == (1, (), 1)


_parts = st.builds(
    ModelParts,
    layers=st.integers(0, 12),
    layer=st.integers(0, 500),
    output=st.integers(0, 2000),
    compute=st.integers(0, 800),
    host=st.integers(0, 1000),
    host_layer=st.integers(0, 900),
    alone=st.integers(0, 50_000),
)
_frees = st.lists(st.integers(-100, 20_000), max_size=5)
_options = st.builds(
    LoadOptions,
    gpu_layers=st.none() | st.integers(0, 70),
    main_gpu=st.none() | st.integers(0, 5),
    tensor_split=st.just(()) | st.lists(st.floats(0, 9), min_size=1, max_size=5).map(tuple),
)


_machines = st.tuples(_frees, st.integers(0, 60_000))


@given(_parts, _machines, _options, st.none() | st.integers(0, 80_000), st.booleans())
@settings(max_examples=80, deadline=None)
def test_no_placement_takes_more_than_there_is(
    parts: ModelParts, machine: tuple[list[int], int], options: LoadOptions, total: int | None, partly: bool
) -> None:
    """On no device, nor in total; every layer is somewhere, and the same question has the same answer."""
    gpus, cpu = machine
    devices = spaces(*gpus, cpu=cpu)
    found = place(parts, devices, options, total, partly=partly)
    assert found == place(parts, devices, options, total, partly=partly)
    if found is None:
        return
    free = {space.name: space.free for space in devices}
    assert all(0 <= size <= free[name] for name, size in found.bytes.items())
    assert total is None or found.total <= total
    assert 0 <= found.gpu_layers <= parts.layers + 1
    assert sum(found.split) in {0, found.gpu_layers}
    assert (found.main_gpu is None) or not found.split
    if options.gpu_layers is not None and gpus:
        assert found.gpu_layers == min(options.gpu_layers, parts.layers + 1)


@given(_parts, _machines, st.integers(0, 4), st.integers(0, 5000), st.booleans())
@settings(max_examples=80, deadline=None)
def test_more_memory_never_makes_a_model_fit_less(
    parts: ModelParts, machine: tuple[list[int], int], where: int, more: int, partly: bool
) -> None:
    """What fits still fits when a device has more free, and no fewer layers are on GPUs."""
    gpus, cpu = machine
    before = place(parts, spaces(*gpus, cpu=cpu), ANY, None, partly=partly)
    larger = [free + more if place == where else free for place, free in enumerate(gpus)]
    after = place(
        parts, spaces(*larger, cpu=cpu + (more if where >= len(gpus) else 0)), ANY, None, partly=partly
    )
    if before is not None:
        assert after is not None
        assert after.gpu_layers >= before.gpu_layers


@given(_parts, _frees)
@settings(max_examples=80, deadline=None)
def test_no_gpu_is_added_where_one_would_do(parts: ModelParts, gpus: list[int]) -> None:
    """A split is chosen only when no GPU holds all the layers that are to be there."""
    found = place(parts, spaces(*gpus), ANY, None, partly=False)
    whole = parts.layers * parts.layer + parts.output + parts.compute
    if found is not None and found.split:
        assert all(free < whole for free in gpus)
    for one in placements(parts, spaces(*gpus), ANY, partly=False):
        assert fits(one, [*spaces(*gpus, cpu=10**9)], None)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(any))
@settings(max_examples=80, deadline=None)
def test_whole_numbers_of_layers_are_exactly_what_llama_cpp_makes_of_them(split: list[int]) -> None:
    """Its arithmetic in 32 bits, played here: each GPU gets as many layers as it has shares."""
    act = sum(split)
    ends = [np.float32(end) / np.float32(act) for end in accumulate(split)]
    counts = [0] * len(split)
    for layer in range(act):
        share = np.float32(layer) / np.float32(act)
        counts[next(place for place, end in enumerate(ends) if end > share)] += 1
    assert counts == split


@pytest.mark.parametrize(
    ("shares", "counts"), [((1.0, 1.0), (6, 5)), ((3.0, 1.0), (9, 2)), ((0.1, 0.2), (4, 7))]
)
def test_the_operators_shares_become_the_layers_that_llama_cpp_would_make_of_them(
    shares: tuple[float, ...], counts: tuple[int, ...]
) -> None:
    """Eleven layers, by hand: layer k goes to the first GPU whose shares end above k/11."""
    assert placed(5000, 5000, tensor_split=shares).split == counts
