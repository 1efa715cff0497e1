# SPDX-License-Identifier: GPL-3.0-only
"""A model: facts read from its file, load options, and memory footprint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum

import msgspec

MIB = 1024 * 1024
"""Bytes in a MiB. `*_mb` is MiB everywhere."""


class EngineKind(StrEnum):
    """Which implementation of an engine loads a file."""

    LLAMA = "llama"
    FAKE = "fake"


class Isolation(StrEnum):
    """Where an engine runs."""

    THREAD = "thread"
    PROCESS = "process"


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts from a GGUF file's metadata and tensor table. Zero: the file does not say.

    Sizes in bytes; `weights_bytes` is the sum of all tensors, over all parts of a split file.
    """

    architecture: str
    name: str = ""
    quant: str = ""
    """Type of the weights as the field writes it: `Q4_0`, `Q4_K_M`, `F16`."""
    parameters: int = 0
    context_length: int = 0
    """Tokens of context the model was trained with."""
    layers: int = 0
    embedding_length: int = 0
    heads: int = 0
    kv_heads: tuple[int, ...] = ()
    """KV heads of each layer (a layer without attention has 0)."""
    key_length: int = 0
    value_length: int = 0
    feed_forward_length: int = 0
    vocabulary: int = 0
    sliding_window: int = 0
    weights_bytes: int = 0
    output_bytes: int = 0
    """Of those, the output matrix (or the tied embedding that serves as one)."""
    matrix_bytes: tuple[tuple[str, int], ...] = ()
    """Bytes by tensor type of the matrices that llama.cpp may keep a rearranged copy of."""
    recurrent_bytes: int = 0
    """Recurrent state of one sequence, bytes (Mamba and its kind)."""
    has_chat_template: bool = False
    pooling: str = ""
    """Of an embedding model, how it pools: `mean`, `cls` or `last`. Empty: it generates text."""


class Adapter(msgspec.Struct, frozen=True, kw_only=True):
    """A LoRA adapter of a model. With another file in its place it is another adapter."""

    path: str
    scale: float = 1.0
    """What it adds to the weights is multiplied by this; 0: as if it were not there."""
    bytes: int = 0
    """Size of its tensors."""
    modified_ns: int = 0
    """Time of modification of the file, ns since the epoch."""


class LoadOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a model is loaded. Resolved: nothing here means "default" any more, except None."""

    ctx: int = 8192
    """KV cells shared by all slots; the engine lowers it to slots x trained context."""
    slots: int = 4
    """Requests decoded together."""
    threads: int = 1
    """CPU threads to begin with; the scheduler shares cores out while several instances decode."""
    gpu_layers: int | None = None
    """Layers to put on the GPU; None: all of them where there is a GPU."""
    main_gpu: int | None = None
    """The one GPU for all its layers, by its place among llama.cpp's; None: chosen. -1: none at all."""
    tensor_split: tuple[float, ...] = ()
    """How its layers are split over the GPUs, as shares; empty: chosen."""
    flash_attn: bool | None = None
    """None: the engine's measured default for the device."""
    kv_type: str = "f16"
    """f16, bf16, f32, q8_0, q4_0, ...: as llama.cpp's --cache-type-k and -v."""
    ubatch: int = 512
    """Most tokens of one physical batch."""
    mmap: bool = True
    context_shift: bool = False
    """A generation goes on at the context's end, without its middle."""
    kv_unified: bool | None = None
    """One KV cache for all slots, or (False) one for each; None: by rule, see engine/llama/kv/layout.py."""
    prefix_cells: int | None = None
    """KV cells kept for prompts that begin alike; 0: none; None: by rule, see docs/prefix-cache.md."""
    isolation: Isolation = Isolation.THREAD
    """A thread of the daemon, or a process of its own, which takes some memory more."""
    lora: tuple[Adapter, ...] = ()
    """Adapters that are applied together."""


class Footprint(msgspec.Struct, frozen=True, kw_only=True):
    """What a loaded model takes, in bytes, by cause."""

    weights: int = 0
    kv: int = 0
    compute: int = 0
    overhead: int = 0

    @property
    def total(self) -> int:
        """Sum of all causes, bytes."""
        return self.weights + self.kv + self.compute + self.overhead

    def scaled(self, ratio: float) -> Footprint:
        """Return this footprint with every cause so many times as large."""
        return Footprint(
            weights=round(self.weights * ratio),
            kv=round(self.kv * ratio),
            compute=round(self.compute * ratio),
            overhead=round(self.overhead * ratio),
        )


class DeviceUse(msgspec.Struct, frozen=True, kw_only=True):
    """What a model takes on one device, bytes. `CPU` is the machine's memory."""

    device: str
    weights: int = 0
    kv: int = 0
    compute: int = 0


class DryRun(msgspec.Struct, frozen=True, kw_only=True):
    """What llama.cpp itself says that a model will take, without taking it."""

    peak: Footprint
    """With the layout of the KV cache that takes most; the engine may change it while it serves."""
    before_use: Footprint
    """With the layout it begins with."""
    devices: tuple[DeviceUse, ...] = ()
    """Of the peak, without the overhead of the process."""


class FootprintSource(StrEnum):
    """Where an estimate comes from."""

    FORMULA = "formula"
    """Arithmetic from the file's metadata."""
    PROBE = "probe"
    """A dry run of llama.cpp."""


class FootprintCorrection(msgspec.Struct, frozen=True, kw_only=True):
    """How the footprint of a model came about."""

    source: FootprintSource = FootprintSource.FORMULA
    base: Footprint = Footprint()
    """The estimate before anything was learned."""
    first: Footprint = Footprint()
    """The same, with the layout of the KV cache that it begins with."""
    ratio: float = 1.0
    """What was learned from loads: the footprint is so many times the estimate."""
    measured: int = 0
    """Bytes by which that was learned; 0: nothing was."""
    devices: tuple[DeviceUse, ...] = ()
    """By device, before anything was learned; empty by formula."""
    problem: str = ""
    """Why there was no dry run, where one failed."""


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One model of the catalogue: a file, what is known of it, and how it is to be served."""

    id: str
    """File name with its ending; of a split model, the name of its first part."""
    path: str
    name: str = ""
    size_bytes: int = 0
    """Of all parts together."""
    modified_ns: int = 0
    """Newest modification time of the parts, ns since the epoch."""
    facts: ModelFacts | None = None
    """None when the file is damaged; then `error` says how."""
    error: str | None = None
    aliases: tuple[str, ...] = ()
    """Further names: those from the config; the stem of `id` always works and is the first."""
    options: LoadOptions = LoadOptions()
    footprint: Footprint = Footprint()
    """Estimate for `options`, and what was learned: what a load reserves."""
    scale: FootprintCorrection = FootprintCorrection()
    """How it came about."""
    sizing: str = ""
    """Why `auto` chose these cells and slots; empty where nothing was left to choose."""
    fitting_ctx: int = 0
    """Where the footprint does not fit the budget: the largest `llama_ctx` that does; 0: there is none."""
    pinned: bool = False
    ttl_s: float | None = None
    """Unload after this many idle seconds; None: never by time."""
    preload: bool = False
    max_queue_depth: int | None = None
    """How many requests may wait for it; None: the daemon's setting."""


class Catalog(msgspec.Struct, frozen=True, kw_only=True):
    """All models known at one moment, in the order of their ids, and how names resolve."""

    models: Mapping[str, ModelSpec] = {}
    default: str | None = None
    """Id of the default model; None when there are no models or the configured one is missing."""
    names: Mapping[str, str] = {}
    """Every id and alias to its id. Ids win over stems, stems over configured aliases."""

    def find(self, name: str | None) -> ModelSpec | None:
        """Return the model of an id or alias, the default one for None, or None."""
        key = self.default if name is None else self.names.get(name)
        return None if key is None else self.models.get(key)


def catalog_of(specs: Iterable[ModelSpec], default: str | None = None) -> Catalog:
    """Build a catalogue. `default` is an id or alias; None takes the first healthy model.

    A name that two models claim goes to the stronger claim (id, then stem, then alias), and
    among equals to the first by id.
    """
    models = {spec.id: spec for spec in sorted(specs, key=lambda spec: spec.id)}
    names = {model_id: model_id for model_id in models}
    for place in (0, 1):
        for spec in models.values():
            for alias in spec.aliases[:1] if place == 0 else spec.aliases[1:]:
                names.setdefault(alias, spec.id)
    if default is None:
        healthy = (spec.id for spec in models.values() if spec.error is None)
        # Ids with several folders come last: in deep trees and caches files come and go by themselves.
        chosen = min(healthy, key=lambda model_id: (model_id.count("/") > 1, model_id), default=None)
    else:
        chosen = names.get(default)
    return Catalog(models=models, default=chosen, names=names)
