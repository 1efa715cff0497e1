# SPDX-License-Identifier: GPL-3.0-only
"""Match entries of `models:` to models, and merge their options. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from modeld.config.model_settings import ModelSettings
from modeld.config.settings import AUTO, Settings, for_model
from modeld.domain.model import Adapter, LoadOptions
from modeld.memory.sizing import AutoSizes

_DEFAULT = LoadOptions()
_PLAIN = ModelSettings()


class OptionAssignment(msgspec.Struct, frozen=True):
    """The entry of each model (of several that name it, one that unites them), and the useless ones."""

    entries: Mapping[str, ModelSettings]
    unmatched: tuple[str, ...]


def assign(entries: Mapping[str, ModelSettings], names: Iterable[Sequence[str]]) -> OptionAssignment:
    """Give every entry to the model it names.

    `names` has for each model its id, then its stem, then its further names. An entry's key is
    looked for among ids, then stems, then further names, then the aliases of other entries.
    """
    models = sorted((tuple(row) for row in names), key=lambda row: row[0])
    known: dict[str, str] = {}
    for column in range(max((len(row) for row in models), default=0)):
        for row in models:
            if column < len(row):
                known.setdefault(row[column], row[0])
    rank = {name: place for row in models for place, name in enumerate(row)}
    direct = sorted((key for key in entries if key in known), key=lambda key: (rank[key], key))
    for key in direct:
        for alias in entries[key].aliases:
            known.setdefault(alias, known[key])
    indirect = [key for key in entries if key in known and key not in direct]
    found: dict[str, ModelSettings] = {}
    for key in (*direct, *indirect):
        earlier = found.get(known[key])
        found[known[key]] = entries[key] if earlier is None else _united(earlier, entries[key])
    return OptionAssignment(found, tuple(sorted(key for key in entries if key not in known)))


def left_open(settings: Settings, entry: ModelSettings) -> AutoSizes:
    """Return what of a model's size is `auto`."""
    own = for_model(settings, entry)
    return AutoSizes(ctx=own.llama_ctx == AUTO, slots=own.llama_slots == AUTO)


def options_of(settings: Settings, entry: ModelSettings, adapters: tuple[Adapter, ...] = ()) -> LoadOptions:
    """Return how a model is loaded: its own entry, and the daemon-wide setting where that is silent.

    `adapters` are those of its entry, as they were found. What is `auto` has its default here;
    `modeld.memory.sizing` chooses it.
    """
    own = for_model(settings, entry)
    return LoadOptions(
        ctx=own.llama_ctx or _DEFAULT.ctx,
        slots=own.llama_slots or _DEFAULT.slots,
        threads=own.llama_threads,
        gpu_layers=own.llama_ngl,
        main_gpu=own.llama_main_gpu,
        tensor_split=own.llama_tensor_split or (),
        flash_attn=own.llama_flash_attn,
        kv_type=own.llama_kv_type,
        ubatch=own.llama_ubatch,
        mmap=own.llama_mmap,
        kv_unified=own.llama_kv_unified,
        context_shift=own.llama_context_shift,
        prefix_cells=own.llama_prefix_cells,
        isolation=own.isolation,
        lora=adapters,
    )


def _united(strong: ModelSettings, weak: ModelSettings) -> ModelSettings:
    """What the weak entry says, where the strong one is silent; all aliases of both."""
    silent = {
        field: getattr(weak, field)
        for field in strong.__struct_fields__
        if getattr(strong, field) == getattr(_PLAIN, field)
    }
    silent["aliases"] = tuple(dict.fromkeys((*strong.aliases, *weak.aliases)))
    return msgspec.structs.replace(strong, **silent)
