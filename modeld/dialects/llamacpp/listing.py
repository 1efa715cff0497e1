# SPDX-License-Identifier: GPL-3.0-only
"""Render `/health`, `/props` and `/slots` for one of many models, without loading it. Pure."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from modeld import __version__
from modeld.dialects.llamacpp.render import settings_of
from modeld.domain.instance_state import InstanceState
from modeld.domain.model import ModelSpec
from modeld.domain.request import AS_MANY_AS_FIT, GenerateRequest
from modeld.domain.status import DaemonStatus, InstanceStatus


class LlamaHealth(msgspec.Struct, frozen=True):
    """It is well."""

    status: str = "ok"


class LlamaDone(msgspec.Struct, frozen=True):
    """An order to load or unload was taken."""

    success: bool = True


class LlamaGenerationSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a request gets that asks for nothing."""

    n_ctx: int
    params: Annotated[msgspec.Raw, Meta(extra_json_schema={"type": "object"})]


class LlamaModalities(msgspec.Struct, frozen=True):
    """What it takes alongside text: nothing."""

    vision: bool = False
    audio: bool = False


class LlamaProps(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to know of one model; a sleeping one is loaded when it is asked."""

    default_generation_settings: LlamaGenerationSettings
    total_slots: int
    model_alias: str
    model_path: str
    chat_template: str
    modalities: LlamaModalities
    build_info: str
    is_sleeping: bool


class LlamaSlot(msgspec.Struct, frozen=True, kw_only=True):
    """One slot. The busy ones come first: which request is in which is not told."""

    id: int
    id_task: int
    n_ctx: int
    speculative: bool
    is_processing: bool


def props(spec: ModelSpec, status: DaemonStatus, template: str) -> LlamaProps:
    """Return what is known of a model, with the chat template of its file."""
    instance = instance_of(spec, status)
    return LlamaProps(
        default_generation_settings=LlamaGenerationSettings(
            n_ctx=_context(spec, instance),
            params=settings_of(GenerateRequest(max_tokens=AS_MANY_AS_FIT)),
        ),
        total_slots=spec.options.slots,
        model_alias=spec.aliases[0] if spec.aliases else spec.id,
        model_path=spec.path,
        chat_template=template,
        modalities=LlamaModalities(),
        build_info=f"modeld {__version__}",
        is_sleeping=instance is None or instance.state is not InstanceState.READY,
    )


def slots(spec: ModelSpec, status: DaemonStatus) -> list[LlamaSlot]:
    """Return the slots of a model; one that is not loaded has none."""
    instance = instance_of(spec, status)
    if instance is None or instance.state not in {InstanceState.READY, InstanceState.DRAINING}:
        return []
    return [
        LlamaSlot(
            id=number,
            id_task=-1,
            n_ctx=_context(spec, instance),
            speculative=False,
            is_processing=number < instance.busy_slots,
        )
        for number in range(instance.slots)
    ]


def instance_of(spec: ModelSpec, status: DaemonStatus) -> InstanceStatus | None:
    """Return the instance of a model, if it ever had one."""
    return next((found for found in status.instances if found.model_id == spec.id), None)


def _context(spec: ModelSpec, instance: InstanceStatus | None) -> int:
    """Return the most tokens that a request may use: as loaded, or as it would be."""
    if instance is not None and instance.context_length:
        return instance.context_length
    trained = 0 if spec.facts is None else spec.facts.context_length
    return min(spec.options.ctx, trained) if trained else spec.options.ctx
