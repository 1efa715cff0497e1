# SPDX-License-Identifier: GPL-3.0-only
"""The sizes that `auto` chooses: within the budget, larger with a larger one, and told with a reason."""

from __future__ import annotations

from functools import partial

import msgspec
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from modeld.domain.model import MIB, LoadOptions, ModelFacts, ModelSpec
from modeld.engine.llama.footprint import cells_of, estimate
from modeld.memory.devices import DeviceKind
from modeld.memory.layer_placement import DeviceSpace
from modeld.memory.sizing import LEAST_A_SLOT, MOST_CELLS, MOST_SLOTS, AutoSizes, choose_size, largest_ctx
from modeld.memory.space import capacity_of

MISTRAL = ModelFacts(
    architecture="llama",
    context_length=32768,
    layers=32,
    embedding_length=4096,
    heads=32,
    kv_heads=(8,) * 32,
    key_length=128,
    value_length=128,
    feed_forward_length=14336,
    vocabulary=32768,
    weights_bytes=4_140_000_000,
)
GIB = 1024 * MIB
BOTH = AutoSizes(ctx=True, slots=True)

facts = st.builds(
    lambda trained, layers, heads, weights, vocabulary: ModelFacts(
        architecture="llama",
        context_length=trained,
        layers=layers,
        embedding_length=64 * heads,
        heads=heads,
        kv_heads=(max(1, heads // 4),) * layers,
        key_length=64,
        value_length=64,
        feed_forward_length=256 * heads,
        vocabulary=vocabulary,
        weights_bytes=weights,
    ),
    st.sampled_from((0, 16, 256, 300, 2048, 3000, 8192, 131072)),
    st.integers(1, 80),
    st.integers(1, 64),
    st.integers(1, 40 * GIB),
    st.integers(32, 256_000),
)
options = st.builds(
    LoadOptions,
    ctx=st.sampled_from((256, 2048, 8192, 8200, 100_000)),
    slots=st.integers(1, 16),
    ubatch=st.sampled_from((32, 512, 2048)),
    flash_attn=st.sampled_from((None, True)),
)
opens = st.sampled_from((AutoSizes(ctx=True), AutoSizes(slots=True), BOTH))
rooms = st.integers(0, 64 * GIB)


def takes(facts):
    return partial(estimate, facts, repacked=frozenset())


@given(facts, options, opens, rooms)
def test_a_choice_is_never_above_the_room_unless_nothing_fits(facts, options, left, room):
    """What is chosen fits; if it does not, then it is the least, and the reason says so."""
    size = choose_size(facts, options, left, room, takes(facts))
    assert size.footprint == estimate(facts, size.options, repacked=frozenset())
    if size.footprint.total > room:
        assert "even that does not fit" in size.reason
        least = msgspec.structs.replace(
            options,
            ctx=LEAST_A_SLOT * (1 if left.slots else options.slots) if left.ctx else options.ctx,
            slots=1 if left.slots else options.slots,
        )
        assert estimate(facts, least, repacked=frozenset()).total > room


@given(facts, options, opens, rooms, rooms)
def test_a_larger_room_never_gives_a_smaller_size(facts, options, left, one, other):
    """Neither fewer cells nor fewer slots come of more memory."""
    small, large = (
        choose_size(facts, options, left, room, takes(facts)).options for room in sorted((one, other))
    )
    assert small.ctx <= large.ctx
    assert small.slots <= large.slots


@given(facts, options, opens, rooms | st.none())
def test_only_what_is_open_is_chosen_and_within_bounds(facts, options, left, room):
    """Everything else stays, each slot has cells enough, and the bounds hold."""
    chosen = choose_size(facts, options, left, room, takes(facts)).options
    assert msgspec.structs.replace(chosen, ctx=options.ctx, slots=options.slots) == options
    assert left.ctx or chosen.ctx == options.ctx
    assert left.slots or chosen.slots == options.slots
    assert chosen.ctx >= LEAST_A_SLOT * chosen.slots or (not left.ctx and chosen.slots in {1, options.slots})
    if left.ctx:
        assert chosen.ctx <= max(MOST_CELLS, options.ctx, 256)
        assert cells_of(facts, chosen) == chosen.ctx or chosen.ctx - cells_of(facts, chosen) < 256
    if left.slots:
        assert 1 <= chosen.slots <= MOST_SLOTS


@given(facts, options, rooms)
def test_the_context_named_in_a_refusal_fits_and_is_the_largest(facts, options, room):
    """With it the model fits, with one group of cells more it does not; 0 means that none does."""
    ctx = largest_ctx(facts, options, room, takes(facts))

    def need(cells):
        return estimate(facts, msgspec.structs.replace(options, ctx=cells), repacked=frozenset()).total

    assert ctx <= options.ctx
    if ctx:
        assert need(ctx) <= room
        assert need(options.ctx) <= room or need(ctx + 256) > room
    else:
        assert need(LEAST_A_SLOT * options.slots) > room


@pytest.mark.parametrize(
    ("room", "cells", "slots", "reason"),
    [
        (None, 8192, 4, "the default: neither a budget nor the machine's memory is known"),
        (4000 * MIB, 256, 1, "the least there is, and even that does not fit into 4000 MiB"),
        (5 * GIB, 4608, 2, "the most that fits into 5120 MiB"),
        (8 * GIB, 8192, 4, "the default; more would not leave half of 8192 MiB to others"),
        (16 * GIB, 18688, 8, "the most that leaves half of 16384 MiB to others"),
        (80 * GIB, 32768, 8, "the most that is of use to it, or that auto takes"),
    ],
)
def test_the_sizes_of_a_7b_model(room, cells, slots, reason):
    """What an operator gets for some budgets, and what he is told."""
    size = choose_size(MISTRAL, LoadOptions(), BOTH, room, takes(MISTRAL))
    assert (size.options.ctx, size.options.slots, size.reason) == (cells, slots, reason)


def test_a_short_trained_context_bounds_the_cells():
    """Cells that no slot could use are not taken."""
    small = msgspec.structs.replace(MISTRAL, context_length=1024)
    size = choose_size(small, LoadOptions(), BOTH, 80 * GIB, takes(small))
    assert (size.options.ctx, size.options.slots) == (8 * 1024, 8)
    assert (
        choose_size(small, LoadOptions(), AutoSizes(ctx=True), 80 * GIB, takes(small)).options.ctx == 4 * 1024
    )


def test_slots_alone_follow_from_the_cells():
    """With a context that the config names, one slot for 2,048 cells."""
    wide = LoadOptions(ctx=12288)
    assert choose_size(MISTRAL, wide, AutoSizes(slots=True), 80 * GIB, takes(MISTRAL)).options.slots == 6


@given(facts, options, opens, rooms | st.none(), st.lists(st.integers(0, 40 * GIB), min_size=1, max_size=3))
@settings(deadline=None, max_examples=40)
def test_a_choice_has_a_place_on_the_devices_where_the_least_has(facts, options, left, room, cards):
    """On the GPUs, or divided between them and the machine; and it is no larger than without them."""
    spaces = [
        DeviceSpace(name=f"CUDA{place}", kind=DeviceKind.GPU, free=free) for place, free in enumerate(cards)
    ]
    space = capacity_of(room, [DeviceSpace(name="CPU", kind=DeviceKind.CPU, free=64 * GIB), *spaces])

    def spec_with(options):
        footprint = estimate(facts, options, repacked=frozenset())
        return ModelSpec(id="m", path="/m", facts=facts, options=options, footprint=footprint)

    on_gpus, together = fits = space.fits(spec_with)
    size = choose_size(facts, options, left, room, takes(facts), devices=fits)
    least = choose_size(facts, options, left, 0, takes(facts))
    event("all on GPUs" if on_gpus(size.options, 1) else "partly" if together(size.options, 1) else "nowhere")
    if on_gpus(least.options, 1) or together(least.options, 1):
        assert on_gpus(size.options, 1) or together(size.options, 1)
    bounded = choose_size(facts, options, left, room, takes(facts))
    if room is not None:
        assert size.options.ctx <= bounded.options.ctx
        assert size.options.slots <= bounded.options.slots


@pytest.mark.parametrize(
    ("card", "cells", "reason"),
    [
        (5 * GIB, 4864, "the most that fits into the memory of the GPUs"),
        (8 * GIB, 8192, "the default; more would not leave half of the memory of the GPUs to others"),
        (16 * GIB, 18688, "the most that leaves half of the memory of the GPUs to others"),
        (80 * GIB, 32768, "the most that is of use to it, or that auto takes"),
        (4 * GIB, 32768, "the most that is of use to it, or that auto takes"),
    ],
)
def test_sizes_for_one_card(card, cells, reason):
    """A 7B model of 4 GB on a machine of 256 GiB, by its card; one too small for it counts for nothing."""

    def spec_with(options):
        footprint = estimate(MISTRAL, options, repacked=frozenset())
        return ModelSpec(id="m", path="/m", facts=MISTRAL, options=options, footprint=footprint)

    spaces = [
        DeviceSpace(name="CPU", kind=DeviceKind.CPU, free=256 * GIB),
        DeviceSpace(name="CUDA0", kind=DeviceKind.GPU, free=card),
    ]
    fits = capacity_of(256 * GIB, spaces).fits(spec_with)
    size = choose_size(MISTRAL, LoadOptions(), BOTH, 256 * GIB, takes(MISTRAL), devices=fits)
    assert (size.options.ctx, size.reason) == (cells, reason)
