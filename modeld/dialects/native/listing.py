# SPDX-License-Identifier: GPL-3.0-only
"""Render `GET /models`. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec
from msgspec import UNSET, UnsetType

from modeld.domain.daemon_events import FleetEvent, as_json
from modeld.domain.instance_state import InstanceState
from modeld.domain.model import MIB, Catalog, ModelFacts, ModelSpec


class AdapterBody(msgspec.Struct, frozen=True):
    """A LoRA adapter that a model is served with."""

    path: str
    scale: float


class ModelFootprintBody(msgspec.Struct, frozen=True, kw_only=True):
    """What `est_vram_mb` is made of: the estimate by cause, MiB, and what loads have taught."""

    source: str
    """`probe`: a dry run of llama.cpp; `formula`: arithmetic from the metadata."""
    estimate_mb: float
    weights_mb: float
    kv_mb: float
    compute_mb: float
    overhead_mb: float
    learned_ratio: float
    """`est_vram_mb` is so many times the estimate."""
    measured_mb: float | None = None
    """What a worker would hold with all its buffers in use, by the last load; null before the first."""
    problem: str | UnsetType = UNSET
    """Why there was no dry run, where one failed."""


class ModelBody(msgspec.Struct, frozen=True, kw_only=True):
    """One model. Zero and the empty text mean that the file does not say; a damaged file has an `error`."""

    id: str
    name: str
    path: str
    quant: str
    family: str
    size_bytes: int
    context_length: int
    parameters: int
    modified_unix: int
    state: InstanceState
    aliases: tuple[str, ...]
    default: bool
    pinned: bool
    kv_cells: int
    """KV cells shared by its slots, as it is or would be loaded."""
    slots: int
    est_vram_mb: float
    """What it takes, or would take."""
    footprint: ModelFootprintBody
    sizing: str | UnsetType = UNSET
    """Why `auto` chose these cells and slots, where the config left it to choose."""
    lora: list[AdapterBody] | UnsetType = UNSET
    """Its LoRA adapters, where the config names any."""
    error: str | UnsetType = UNSET


class ModelsBody(msgspec.Struct, frozen=True):
    """All models, in the order of their ids."""

    models: list[ModelBody]


def models_body(catalog: Catalog, states: Mapping[str, InstanceState]) -> ModelsBody:
    """Return the list; a model without a state is stopped."""
    return ModelsBody(
        models=[
            _model(spec, states.get(spec.id, InstanceState.STOPPED), is_default=spec.id == catalog.default)
            for spec in catalog.models.values()
        ]
    )


def model_body(catalog: Catalog, states: Mapping[str, InstanceState], model_id: str) -> ModelBody:
    """Return what is told of one model. Raises: KeyError."""
    spec = catalog.models[model_id]
    return _model(spec, states.get(model_id, InstanceState.STOPPED), is_default=model_id == catalog.default)


def _model(spec: ModelSpec, state: InstanceState, *, is_default: bool) -> ModelBody:
    facts = spec.facts or ModelFacts(architecture="")
    return ModelBody(
        id=spec.id,
        name=spec.name or facts.name or spec.id,
        path=spec.path,
        quant=facts.quant,
        family=facts.architecture,
        size_bytes=spec.size_bytes,
        context_length=facts.context_length,
        parameters=facts.parameters,
        modified_unix=spec.modified_ns // 10**9,
        state=state,
        aliases=spec.aliases,
        default=is_default,
        pinned=spec.pinned,
        kv_cells=spec.options.ctx,
        slots=spec.options.slots,
        est_vram_mb=spec.footprint.total / MIB,
        footprint=_footprint(spec),
        sizing=spec.sizing or UNSET,
        lora=[AdapterBody(adapter.path, adapter.scale) for adapter in spec.options.lora] or UNSET,
        error=UNSET if spec.error is None else spec.error,
    )


def _footprint(spec: ModelSpec) -> ModelFootprintBody:
    base, scale = spec.scale.base if spec.scale.base.total else spec.footprint, spec.scale
    return ModelFootprintBody(
        source=str(scale.source),
        estimate_mb=base.total / MIB,
        weights_mb=base.weights / MIB,
        kv_mb=base.kv / MIB,
        compute_mb=base.compute / MIB,
        overhead_mb=base.overhead / MIB,
        learned_ratio=scale.ratio,
        measured_mb=scale.measured / MIB if scale.measured else None,
        problem=scale.problem or UNSET,
    )


# ----------------------------------------------------------------------
# The daemon's events as a client reads them: server-sent events, or a JSON object a line. Pure.

SSE_TYPE = "text/event-stream"
"""Content type of server-sent events (WHATWG HTML, 9.2)."""
SSE_BEGIN = b"retry: 2000\n\n"
"""A client that lost its connection comes again after 2 s, and names the last event it has."""
SSE_KEEPALIVE = b":\n\n"
"""A comment: readers skip it."""

Show = Callable[[FleetEvent], bytes]


def as_line(event: FleetEvent) -> bytes:
    """Return an event as one line of JSON."""
    return as_json(event) + b"\n"


def as_sse(event: FleetEvent) -> bytes:
    """Return an event with its id and kind outside of the JSON, too, where browsers look for them."""
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (event.id.encode(), event.kind.encode(), as_json(event))


def shown(events: Iterable[FleetEvent], wanted: Callable[[FleetEvent], bool], show: Show) -> bytes:
    """Return the bytes of those events that are wanted."""
    return b"".join(show(event) for event in events if wanted(event))
