# SPDX-License-Identifier: GPL-3.0-only
"""Declare the settings of the daemon: one frozen struct, each field with its kind, default and meaning.

Flags, environment, files, options of single models, checks, help and documentation follow from its fields:
the text below a field is what `--help` and docs/configuration.md say. One name serves as config key
(`vram_budget_mb`), environment variable (`MODELD_VRAM_BUDGET_MB`) and flag (`--vram-budget-mb`). Durations
are seconds here; people write them `30s`, `1m30s`, `500ms`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, cast

import msgspec

from modeld.config.kinds import (
    ADDR,
    GGML_MAX_N_THREADS,
    INT32,
    KV_TYPE,
    LLAMA_MAX_SEQ,
    LOG_LEVEL,
    ROTATION,
    SHARES,
    TIMEOUT,
    WAIT,
    duration,
    mib,
    one_of,
    or_auto,
    or_none,
    size_bytes,
    whole,
    word_of,
)
from modeld.config.model_settings import DEPTH, ModelSettings, models_kind
from modeld.config.setting import Setting, settings_of
from modeld.domain.model import EngineKind, Isolation

AUTO = 0
"""Of `llama_ctx` and `llama_slots`: chosen from the model's facts and the budget."""
_STATE_DIR = "$STATE_DIRECTORY, else the XDG state folder"
_NO_KEYS = "the credential `modeld.keys` of systemd, else none: no key is asked for"
_ENGINE = word_of(EngineKind, "llama|fake")
_MODELS = models_kind(lambda: MODEL_SETTINGS)
_TIMEOUT_OR_OFF = or_none(duration(), ("off", "none", ""), lambda seconds: seconds == 0)
_LAYERS = or_none(whole(-1, INT32), ("auto",), lambda layers: layers == -1)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings, resolved and checked, in the order of the documentation."""

    addr: Annotated[str, Setting(ADDR, section="Where")] = "127.0.0.1:8080"
    """Address to listen on: `127.0.0.1:8080`, `:8080` (every interface), `[::1]:8080`,
    `unix:/run/modeld.sock`, or `fd://3` for a socket from systemd."""
    allowed_hosts: Annotated[tuple[str, ...], Setting(default_text="none")] = ()
    """Names that requests may have in `Host` while no keys are in force, such as `gpubox.lan`, or
    `*.example.com` for all below it; `*` is any. IP addresses, `localhost` and the names of this machine
    always pass, others get 421 (docs/security.md)."""
    config: Annotated[Path | None, Setting(default_text="none")] = None
    """Config file (YAML, JSON or TOML)."""
    models_dir: Path = Path("~/models/llm")
    """Folder with the `*.gguf` files, also in folders below; or the cache of Hugging Face."""
    default_model: Annotated[str | None, Setting(default_text="the first found")] = None
    """Model for requests that name none."""
    state_dir: Annotated[Path | None, Setting(default_text=_STATE_DIR)] = None
    """Folder for what is kept between runs."""
    dry_runs: bool = True
    """Ask llama.cpp what each new model takes, in a short process, while no request is inside."""

    vram_budget_mb: Annotated[int | None, Setting(or_none(mib(0), ("auto",)), section="Memory")] = 0
    """Memory for all models together, in MiB (or as `22GiB`). 0 is unlimited; `auto` is nine tenths of what
    is free at the start."""
    vram_margin_mb: Annotated[int, Setting(mib(0))] = 0
    """Part of the budget that stays free, in MiB."""
    vram_watch: bool = True
    """Give models less than the budget while other processes hold memory of it (docs/devices.md)."""
    models: Annotated[Mapping[str, ModelSettings], Setting(_MODELS, default_text="none")] = {}
    """Options of single models, by name; in a flag or variable a JSON object."""

    max_body_bytes: Annotated[int, Setting(size_bytes(1), section="Limits")] = 1024 * 1024
    """Largest request body (a number, or as `2MiB`)."""
    max_header_bytes: Annotated[int, Setting(size_bytes(1024))] = 32 * 1024
    """Most bytes of a request's line and headers."""
    max_connections: Annotated[int, Setting(whole(1, 1_000_000))] = 4096
    """Connections at a time, fewer where `LimitNOFILE` is low. At the bound the one that is idle for longest
    makes room; while all are busy, new ones wait."""
    header_timeout: Annotated[float, Setting(TIMEOUT)] = 10.0
    """From the first byte of a request to the end of its headers; also a TLS handshake. Then 408."""
    body_timeout: Annotated[float, Setting(TIMEOUT)] = 60.0
    """From there to the end of its body. Then 408."""
    idle_timeout: Annotated[float, Setting(TIMEOUT)] = 75.0
    """A connection without a request is closed after so long: longer than a proxy keeps its own."""
    max_queue_depth: Annotated[int, Setting(DEPTH, zero_is_default=True)] = 32
    """Requests that may wait for one model; more are refused with 429."""
    max_queue_total: Annotated[int, Setting(DEPTH, zero_is_default=True)] = 256
    """Requests that may wait for all models together; more are refused with 429."""
    max_wait: Annotated[float, Setting(WAIT, zero_is_default=True)] = 30.0
    """A request that waited longer is refused with 429."""
    infer_timeout: Annotated[float | None, Setting(_TIMEOUT_OR_OFF)] = None
    """A generation ends after this long."""
    write_timeout: Annotated[float, Setting(TIMEOUT)] = 60.0
    """A reader that takes nothing for so long is cut."""
    stall_timeout: Annotated[float, Setting(TIMEOUT)] = 30.0
    """An engine that finishes no step for so long while it has work is killed and started again."""
    max_stream_backlog: Annotated[int, Setting(size_bytes(1024))] = 1024 * 1024
    """Text that is kept for a slow reader; one that falls further behind is cut."""
    strict_bodies: bool = False
    """Refuse bodies of OpenAI's, Anthropic's, Ollama's and llama.cpp's API with keys without effect here.
    Otherwise these are dropped, and the header `X-Modeld-Ignored` of the answer names them."""
    drain_timeout: Annotated[float, Setting(WAIT, zero_is_default=True)] = 2.0
    """How long running requests may go on when the daemon stops, as far as `shutdown_timeout` leaves time for
    it."""
    shutdown_timeout: float = 5.0
    """The stop after SIGTERM is over within this time."""

    max_wait_before_drain: Annotated[
        float, Setting(section="Models that take turns (docs/scheduling.md)")
    ] = 2.0
    """Busy models are asked to make room once a request has waited so long for their memory; what comes for
    them later waits until the other model had its turn."""
    quantum: float = 2.0
    """A model that was loaded serves at least so long before that."""
    backlog_time: Annotated[
        float | None, Setting(or_none(duration(), ("auto",)), default_text="a third of max_wait")
    ] = None
    """A model that has to make room first serves those that came before, for at most so long."""
    min_residency: float = 0.0
    """An idle model stays at least so long before it makes room."""
    evict_timeout: Annotated[float, Setting(TIMEOUT)] = 10.0
    """After that its running requests may go on for so long before more models are asked to go, or they are
    cut."""
    cut_streams: bool = False
    """Cut requests that run on for longer than `evict_timeout` when their model has to make room."""

    llama_ctx: Annotated[
        int, Setting(or_auto(whole(16, INT32, "CELLS"), AUTO), section="llama.cpp", zero_is_default=True)
    ] = 8192
    """KV cells shared by all slots of a model; at most slots times its trained context. `auto`: as many as
    fit, see below."""
    llama_slots: Annotated[int, Setting(or_auto(whole(1, LLAMA_MAX_SEQ), AUTO))] = 4
    """Requests that one model decodes together; `auto` follows from its KV cells."""
    llama_threads: Annotated[
        int,
        Setting(
            whole(1, GGML_MAX_N_THREADS), zero_is_default=True, default_text="the cores this process may use"
        ),
    ] = os.cpu_count() or 1
    """CPU threads of a model; shared out while several models decode."""
    llama_ngl: Annotated[int | None, Setting(_LAYERS)] = None
    """Layers to put on the GPU; `auto` (or -1): all of them where there is a GPU."""
    llama_main_gpu: Annotated[int | None, Setting(or_none(whole(0, 15), ("auto",)))] = None
    """The one GPU for all its layers, counted from 0; `auto`: chosen by what is free (docs/devices.md)."""
    llama_tensor_split: Annotated[tuple[float, ...] | None, Setting(or_none(SHARES, ("auto",)))] = None
    """Shares of the layers for each GPU, such as `3,1`; `auto`: chosen by what is free."""
    llama_flash_attn: bool | None = None
    """Flash attention; `auto` is what was measured to be best."""
    llama_kv_type: Annotated[str, Setting(KV_TYPE)] = "f16"
    """Type of the KV cache. The quantised ones need flash attention, and turn it on."""
    llama_ubatch: Annotated[int, Setting(whole(1, 65536, "TOKENS"))] = 512
    """Most tokens of one physical batch."""
    llama_mmap: bool = True
    """Map model files into memory instead of reading them."""
    llama_kv_unified: bool | None = None
    """One KV cache for all slots, or (`false`) an equal share of the cells for each: faster from a few
    streams on, but no request can have more. `auto` begins with shares, and gives them up for the first
    request that needs more."""
    llama_context_shift: bool = False
    """Let a generation go on at the end of its context: half of what follows the prompt is forgotten, as
    often as needed. Slots then have a cache each, or one in which nothing is retained."""
    llama_prefix_cells: Annotated[int | None, Setting(or_none(whole(0, INT32, "CELLS"), ("auto",)))] = None
    """KV cells that ended requests leave to prompts which begin alike; 0 switches that off, `auto` follows
    from the model, and is less while slots are busy."""
    isolation: Annotated[Isolation, Setting(word_of(Isolation, "process|thread"))] = Isolation.PROCESS
    """Where an engine runs: in a process of its own, which may crash or hang without harm to others, or in a
    thread of the daemon."""

    log_level: Annotated[str, Setting(LOG_LEVEL, section="Logs and events")] = "info"
    """What is logged. Prompts and texts only at `debug`."""
    log_format: Annotated[str, Setting(one_of(("text", "json")))] = "text"
    """Lines for people, or one JSON object a line."""
    events_enable: bool = False
    """Write what the scheduler does as lines of JSON (docs/events.md)."""
    events_file: Annotated[Path | None, Setting(default_text="standard output")] = None
    """File, or named pipe, for these lines."""
    events_max_bytes: Annotated[int, Setting(ROTATION)] = 64 * 1024 * 1024
    """A file that would grow larger becomes `.1`, and that one `.2`; 0 leaves the rotation to others, who
    send SIGHUP."""
    events_keep: Annotated[int, Setting(whole(1, 1000, "FILES"))] = 3
    """How many of these older files are kept."""

    tls_cert: Annotated[Path | None, Setting(section="TLS", default_text="none: HTTP is spoken")] = None
    """Certificate (PEM, with those between it and its root): HTTPS is spoken, and HTTP is not. Read again at
    SIGHUP."""
    tls_key: Annotated[Path | None, Setting(default_text="none")] = None
    """Its private key (PEM, not encrypted)."""

    keys_file: Annotated[Path | None, Setting(section="Keys (docs/keys.md)", default_text=_NO_KEYS)] = None
    """File of the keys that are asked for; `modeld keys` changes it, SIGHUP has it read again."""
    require_keys: bool = False
    """Do not start without keys."""
    share_tokens: Annotated[int, Setting(whole(64, INT32, "TOKENS"))] = 2048
    """What one key may have in a turn while several wait for a model."""

    cors_enabled: Annotated[bool, Setting(section="Browsers (CORS)")] = False
    """Let pages of other origins use the API."""
    cors_allowed_origins: Annotated[
        tuple[str, ...], Setting(flags=("--cors-origins",), default_text="none")
    ] = ()
    """These origins, such as `https://app.example`, or `*`; `app://*` is a scheme other than http."""
    cors_allowed_methods: Annotated[tuple[str, ...], Setting(flags=("--cors-methods",))] = (
        *("GET", "POST", "DELETE", "OPTIONS"),
    )
    """Methods they may use."""
    cors_allowed_headers: Annotated[tuple[str, ...], Setting(flags=("--cors-headers",))] = (
        *("Accept", "Authorization", "Content-Type", "User-Agent", "X-API-Key", "X-Requested-With"),
        *("X-Request-ID", "X-Log-Level", "X-Log-Infer"),
        *("Anthropic-*", "Idempotency-Key", "OpenAI-*", "X-Stainless-*"),  # clients of Anthropic and OpenAI
    )
    """Request headers they may send; `X-Stainless-*` is all that begin so."""

    engine: Annotated[EngineKind, Setting(_ENGINE, section="Testing")] = EngineKind.LLAMA
    """`fake` answers with scripted text, without llama.cpp."""
    fake: str = ""
    """Script of the fake engine."""


SETTINGS: Mapping[str, Setting] = settings_of(Settings)
"""Every setting, by name, in the order of the documentation."""
MODEL_SETTINGS: Mapping[str, Setting] = settings_of(ModelSettings, SETTINGS)
"""What one entry of `models:` may set."""
LOAD_SETTINGS = tuple(name for name, setting in SETTINGS.items() if setting.section == "llama.cpp")
"""The names of those that say how a model is loaded."""
LEGACY: Mapping[str, str] = {
    "real_infer": "inference is always real; use engine: fake for scripted text",
    "spawn_llama": "models are loaded by modeld itself; use isolation: process for a process per model",
    "llama_bin": "llama.cpp is built into modeld; no server binary is started",
    "llama_url": "models are loaded from models_dir; no llama.cpp server is contacted",
    "llama_api_key": "no llama.cpp server is contacted",
    "llama_use_openai": "no llama.cpp server is contacted",
    "llama_host": "no llama.cpp server is started; use addr for modeld's own address",
    "llama_port": "no llama.cpp server is started; use addr for modeld's own address",
    "llama_port_range": "no llama.cpp server is started",
    "llama_timeout": "use infer_timeout",
    "llama_connect_timeout": "no llama.cpp server is contacted",
}
"""Settings of the Go program that no longer apply, and what to do instead."""


_SHARED = tuple(name for name in MODEL_SETTINGS if name in SETTINGS)
_GPUS = ("llama_main_gpu", "llama_tensor_split")


def for_model(settings: Settings, model: ModelSettings) -> Settings:
    """Return the settings as they hold for one model: its own options, and the daemon's where it has none."""
    own: dict[str, object] = {
        name: value for name in _SHARED if (value := cast("object", getattr(model, name))) is not None
    }
    if not own.keys().isdisjoint(_GPUS):  # whoever names GPUs names all of them
        own = {**dict.fromkeys(_GPUS), **own}
    return msgspec.structs.replace(settings, **own)
