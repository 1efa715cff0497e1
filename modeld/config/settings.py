# SPDX-License-Identifier: GPL-3.0-only
"""The settings of the daemon: one frozen value, every field with its default and its meaning.

The same name serves as config key (`vram_budget_mb`), environment variable
(`MODELD_VRAM_BUDGET_MB`) and flag (`--vram-budget-mb`). Durations are seconds here; people write
them `30s`, `1m30s`, `500ms`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from modeld.domain.model import EngineKind, Isolation

AUTO = 0
"""Of `llama_ctx` and `llama_slots`: chosen from the model's facts and the budget."""


class LoraSettings(msgspec.Struct, frozen=True, kw_only=True):
    """A LoRA adapter that a model is served with."""

    path: Path
    """Relative to `models_dir`, or absolute."""
    scale: float = 1.0


class ModelSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of `models:`. None takes the daemon-wide setting of the same name."""

    aliases: tuple[str, ...] = ()
    pinned: bool = False
    ttl: float | None = None
    preload: bool = False
    llama_ctx: int | None = None
    llama_slots: int | None = None
    llama_threads: int | None = None
    llama_ngl: int | None = None
    llama_main_gpu: int | None = None
    llama_tensor_split: tuple[float, ...] | None = None
    llama_flash_attn: bool | None = None
    llama_kv_type: str | None = None
    llama_ubatch: int | None = None
    llama_mmap: bool | None = None
    llama_kv_unified: bool | None = None
    llama_context_shift: bool | None = None
    llama_prefix_cells: int | None = None
    isolation: Isolation | None = None
    lora: tuple[LoraSettings, ...] = ()
    max_queue_depth: int | None = None
    fake: str | None = None


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings, resolved and checked."""

    addr: str = "127.0.0.1:8080"
    allowed_hosts: tuple[str, ...] = ()
    config: Path | None = None
    models_dir: Path = Path("~/models/llm")
    vram_budget_mb: int | None = 0
    """MiB; 0 is unlimited; None is `auto`: nine tenths of what is free at the start."""
    vram_margin_mb: int = 0
    vram_watch: bool = True
    default_model: str | None = None
    shutdown_timeout: float = 5.0
    drain_timeout: float = 2.0
    max_body_bytes: int = 1024 * 1024
    max_header_bytes: int = 32 * 1024
    max_connections: int = 4096
    max_queue_depth: int = 32
    max_queue_total: int = 256
    max_wait: float = 30.0
    max_wait_before_drain: float = 2.0
    share_tokens: int = 2048
    quantum: float = 2.0
    backlog_time: float | None = None
    """None: a third of `max_wait`."""
    min_residency: float = 0.0
    evict_timeout: float = 10.0
    cut_streams: bool = False
    infer_timeout: float | None = None
    header_timeout: float = 10.0
    body_timeout: float = 60.0
    idle_timeout: float = 75.0
    write_timeout: float = 60.0
    stall_timeout: float = 30.0
    max_stream_backlog: int = 1024 * 1024
    strict_bodies: bool = False
    log_level: str = "info"
    log_format: str = "text"
    tls_cert: Path | None = None
    tls_key: Path | None = None
    keys_file: Path | None = None
    """None: the credential of systemd, if there is one; else no key is asked for."""
    require_keys: bool = False
    cors_enabled: bool = False
    cors_allowed_origins: tuple[str, ...] = ()
    cors_allowed_methods: tuple[str, ...] = ("GET", "POST", "DELETE", "OPTIONS")
    cors_allowed_headers: tuple[str, ...] = (
        *("Accept", "Authorization", "Content-Type", "User-Agent", "X-API-Key", "X-Requested-With"),
        *("X-Request-ID", "X-Log-Level", "X-Log-Infer"),
        *("Anthropic-*", "Idempotency-Key", "OpenAI-*", "X-Stainless-*"),
    )
    """One that ends with `*` stands for all that begin so. The last line is what the clients of OpenAI and
    Anthropic send."""
    events_enable: bool = False
    events_file: Path | None = None
    events_max_bytes: int = 64 * 1024 * 1024
    """0: never rotated here."""
    events_keep: int = 3
    state_dir: Path | None = None
    dry_runs: bool = True
    isolation: Isolation = Isolation.PROCESS
    llama_ctx: int = 8192
    """KV cells; `AUTO`: chosen."""
    llama_slots: int = 4
    """`AUTO`: chosen."""
    llama_threads: int = os.cpu_count() or 1
    llama_ngl: int | None = None
    llama_main_gpu: int | None = None
    llama_tensor_split: tuple[float, ...] | None = None
    llama_flash_attn: bool | None = None
    llama_kv_type: str = "f16"
    llama_ubatch: int = 512
    llama_mmap: bool = True
    llama_kv_unified: bool | None = None
    llama_context_shift: bool = False
    llama_prefix_cells: int | None = None
    engine: EngineKind = EngineKind.LLAMA
    """`fake` serves scripted text without llama.cpp: for tests and load tests."""
    fake: str = ""
    """Script of the fake engine, see `modeld.engine.fake`."""
    models: Mapping[str, ModelSettings] = {}
    """Options of single models, by id, stem or alias."""
