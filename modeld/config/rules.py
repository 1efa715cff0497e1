# SPDX-License-Identifier: GPL-3.0-only
"""Rules about settings together. Pure: each rule yields (the setting to blame, a sentence)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath

from modeld.config.kinds import QUANTISED_KV
from modeld.config.settings import AUTO, ModelSettings, Settings

Finding = tuple[str, str]
_CELLS_PER_SLOT = 16
"""Fewer make no sentence; llama.cpp rounds its caches up anyway."""
_ORIGIN = re.compile(
    r"\*|null|(?!https?:)[a-z][a-z0-9+.-]*://\*|[a-z][a-z0-9+.-]*://(\[[0-9a-f:]+\]|[a-z0-9_.-]+)(:\d{1,5})?",
    re.IGNORECASE,
)
_HOST = re.compile(r"\*|(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?\.?", re.IGNORECASE)


def findings(settings: Settings, given: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what is wrong with `settings` as a whole; `given` holds the names that were set."""
    for rule in _RULES:
        yield from rule(settings, given)


def _margin(settings: Settings, given: Mapping[str, str]) -> Iterator[Finding]:
    budget, margin = settings.vram_budget_mb, settings.vram_margin_mb
    if budget and margin >= budget:
        yield (
            "vram_margin_mb" if "vram_margin_mb" in given else "vram_budget_mb",
            f"the margin of {margin} MiB leaves nothing of the budget of {budget} MiB",
        )


def _cors(settings: Settings, given: Mapping[str, str]) -> Iterator[Finding]:
    origins = settings.cors_allowed_origins
    if settings.cors_enabled and not origins:
        yield "cors_enabled", "no origin is allowed; name some in cors_allowed_origins (* is all of them)"
    if origins and "cors_enabled" not in given:
        yield "cors_allowed_origins", "this has no effect without cors_enabled: true"
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            better = origin.rstrip("/")
            hint = f"; write {better}" if _ORIGIN.fullmatch(better) else "; write scheme://host:port"
            yield "cors_allowed_origins", f'"{origin[:80]}" is no origin{hint}'
    token = re.compile(r"\*|[A-Za-z0-9!#$%&'*+.^_`|~-]+")
    for name, words in (
        ("cors_allowed_methods", settings.cors_allowed_methods),
        ("cors_allowed_headers", settings.cors_allowed_headers),
    ):
        for word in words:
            if not token.fullmatch(word):
                yield name, f'"{word[:80]}" cannot be part of an HTTP header'


def _hosts(settings: Settings, _: Mapping[str, str]) -> Iterator[Finding]:
    for host in settings.allowed_hosts:
        if not _HOST.fullmatch(host):
            sentence = (
                f'"{host[:80]}" is no host name; write it without scheme and port, as in gpubox.lan or '
                "*.example.com (IP addresses need no entry)"
            )
            yield "allowed_hosts", sentence


def _events(settings: Settings, given: Mapping[str, str]) -> Iterator[Finding]:
    if settings.events_file is not None and "events_enable" not in given:
        yield "events_file", "nothing is written to it without events_enable: true"
    for name in ("events_max_bytes", "events_keep"):
        if name in given and settings.events_file is None:
            yield name, "only a file is rotated; name one with events_file"


def _cells(settings: Settings, given: Mapping[str, str]) -> Iterator[Finding]:
    def few(ctx: int, slots: int) -> str | None:
        if AUTO in {ctx, slots} or ctx >= slots * _CELLS_PER_SLOT:
            return None
        return (
            f"{ctx} cells are too few for {slots} slots; the least is {slots * _CELLS_PER_SLOT} "
            "(llama_ctx is shared by llama_slots)"
        )

    if message := few(settings.llama_ctx, settings.llama_slots):
        yield "llama_ctx" if "llama_ctx" in given else "llama_slots", message
        return
    for name, model in settings.models.items():
        ctx = settings.llama_ctx if model.llama_ctx is None else model.llama_ctx
        slots = settings.llama_slots if model.llama_slots is None else model.llama_slots
        if message := few(ctx, slots):
            yield f"models.{name}.llama_{'slots' if model.llama_ctx is None else 'ctx'}", message


def _flash(settings: Settings, _: Mapping[str, str]) -> Iterator[Finding]:
    def clash(kv_type: str, flash: bool | None) -> str | None:
        if kv_type not in QUANTISED_KV or flash is not False:
            return None
        return f"a KV cache of type {kv_type} needs flash attention; set llama_flash_attn: true, or type f16"

    if message := clash(settings.llama_kv_type, settings.llama_flash_attn):
        yield "llama_kv_type", message
        return
    for name, model in settings.models.items():
        kv_type, flash = kv_and_flash(settings, model)
        if message := clash(kv_type, flash):
            yield f"models.{name}.llama_{'flash_attn' if model.llama_kv_type is None else 'kv_type'}", message


def _gpus(settings: Settings, given: Mapping[str, str]) -> Iterator[Finding]:
    if settings.llama_main_gpu is not None and settings.llama_tensor_split is not None:
        name = "llama_main_gpu" if "llama_main_gpu" in given else "llama_tensor_split"
        yield name, "one GPU for all layers, or shares for several: set one of the two"
        return
    for name, model in settings.models.items():
        if model.llama_main_gpu is not None and model.llama_tensor_split is not None:
            yield f"models.{name}.llama_main_gpu", "llama_tensor_split is set, too; set one of the two"


def kv_and_flash(settings: Settings, model: ModelSettings) -> tuple[str, bool | None]:
    """Return KV type and flash attention of one model, before `auto` is resolved."""
    kv_type = settings.llama_kv_type if model.llama_kv_type is None else model.llama_kv_type
    flash = settings.llama_flash_attn if model.llama_flash_attn is None else model.llama_flash_attn
    return kv_type, flash


def _aliases(settings: Settings, _: Mapping[str, str]) -> Iterator[Finding]:
    owners: dict[str, str] = {}
    for name in settings.models:
        owners[name] = name
        stem = PurePath(name).stem if name.lower().endswith(".gguf") else name
        if stem in settings.models and stem != name:
            yield f"models.{stem}", f"this and models.{name} are the same model; keep one of them"
    for name in settings.models:
        if name.lower().endswith(".gguf"):
            owners.setdefault(PurePath(name).stem, name)
    for name, model in settings.models.items():
        for alias in model.aliases:
            owner = owners.setdefault(alias, name)
            if owner != name:
                yield f"models.{name}.aliases", f'"{alias}" already names the model {owner}'


def _tls(settings: Settings, _: Mapping[str, str]) -> Iterator[Finding]:
    if (settings.tls_cert is None) != (settings.tls_key is None):
        has, lacks = ("tls_key", "tls_cert") if settings.tls_cert is None else ("tls_cert", "tls_key")
        yield has, f"HTTPS takes a certificate and its key; set {lacks} too"


def _same_file(settings: Settings, _: Mapping[str, str]) -> Iterator[Finding]:
    for name, what in (
        ("config", "the config file"),
        ("keys_file", "the file of the keys (keys_file)"),
        ("tls_cert", "the certificate (tls_cert)"),
        ("tls_key", "the private key (tls_key)"),
    ):
        if settings.events_file is not None and settings.events_file == getattr(settings, name):
            yield "events_file", f"this is {what}; events would be written into it"


_RULES: tuple[Callable[[Settings, Mapping[str, str]], Iterator[Finding]], ...] = (
    _margin,
    _cors,
    _hosts,
    _events,
    _cells,
    _flash,
    _gpus,
    _aliases,
    _same_file,
    _tls,
)
