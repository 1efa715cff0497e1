# SPDX-License-Identifier: GPL-3.0-only
"""The one table of settings: kind, meaning and group of each.

Flags, environment, file, checks, help and documentation all come from it; defaults are those of
`Settings` and `ModelSettings`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modeld.config.field import (
    DEPTH,
    INT32,
    LOG_LEVELS,
    NAME,
    Field,
    mib,
    parse_addr,
    parse_engine,
    parse_log_level,
    parse_rotation,
    size_bytes,
)
from modeld.config.model_fields import LLAMA_FIELDS, parse_models, show_models
from modeld.config.settings import Settings
from modeld.config.values import BOOL, LIST, PATH, TEXT, Kind, duration, one_of, or_none, whole

_LEAST_HEADER = 1024
"""What clients send without being asked for it fits."""


def _group(name: str, *fields: Field) -> tuple[Field, ...]:
    return tuple(
        Field(field.name, field.kind, field.help, name, field.flags, field.zero_is_default, field.default)
        for field in fields
    )


FIELDS: Sequence[Field] = (
    *_group(
        "Where",
        Field(
            "addr",
            Kind("ADDR", parse_addr),
            "Address to listen on: `127.0.0.1:8080`, `:8080` (every interface), `[::1]:8080`, "
            "`unix:/run/modeld.sock`, or `fd://3` for a socket from systemd.",
        ),
        Field(
            "allowed_hosts",
            LIST,
            "Names that requests may have in `Host` while no keys are in force, such as `gpubox.lan`, or "
            "`*.example.com` for all below it; `*` is any. IP addresses, `localhost` and the names of this "
            "machine always pass, others get 421 (docs/security.md).",
            default="none",
        ),
        Field("config", PATH, "Config file (YAML, JSON or TOML).", default="none"),
        Field(
            "models_dir",
            PATH,
            "Folder with the `*.gguf` files, also in folders below; or the cache of Hugging Face.",
        ),
        Field("default_model", NAME, "Model for requests that name none.", default="the first found"),
        Field(
            "state_dir",
            PATH,
            "Folder for what is kept between runs.",
            default="$STATE_DIRECTORY, else the XDG state folder",
        ),
        Field(
            "dry_runs",
            BOOL,
            "Ask llama.cpp what each new model takes, in a short process, while no request is inside.",
        ),
    ),
    *_group(
        "Memory",
        Field(
            "vram_budget_mb",
            or_none(mib(0), ("auto",)),
            "Memory for all models together, in MiB (or as `22GiB`). 0 is unlimited; "
            "`auto` is nine tenths of what is free at the start.",
        ),
        Field("vram_margin_mb", mib(0), "Part of the budget that stays free, in MiB."),
        Field(
            "vram_watch",
            BOOL,
            "Give models less than the budget while other processes hold memory of it (docs/devices.md).",
        ),
        Field(
            "models",
            Kind("JSON", parse_models, show_models),
            "Options of single models, by name; in a flag or variable a JSON object.",
            default="none",
        ),
    ),
    *_group(
        "Limits",
        Field("max_body_bytes", size_bytes(1), "Largest request body (a number, or as `2MiB`)."),
        Field("max_header_bytes", size_bytes(_LEAST_HEADER), "Most bytes of a request's line and headers."),
        Field(
            "max_connections",
            whole(1, 1_000_000),
            "Connections at a time, fewer where `LimitNOFILE` is low. At the bound the one that is idle for "
            "longest makes room; while all are busy, new ones wait.",
        ),
        Field(
            "header_timeout",
            duration(0.1),
            "From the first byte of a request to the end of its headers; also a TLS handshake. Then 408.",
        ),
        Field("body_timeout", duration(0.1), "From there to the end of its body. Then 408."),
        Field(
            "idle_timeout",
            duration(0.1),
            "A connection without a request is closed after so long: longer than a proxy keeps its own.",
        ),
        Field(
            "max_queue_depth",
            DEPTH,
            "Requests that may wait for one model; more are refused with 429.",
            zero_is_default=True,
        ),
        Field(
            "max_queue_total",
            DEPTH,
            "Requests that may wait for all models together; more are refused with 429.",
            zero_is_default=True,
        ),
        Field(
            "max_wait",
            duration(0.001),
            "A request that waited longer is refused with 429.",
            zero_is_default=True,
        ),
        Field(
            "infer_timeout",
            or_none(duration(), ("off", "none", ""), lambda seconds: seconds == 0),
            "A generation ends after this long.",
        ),
        Field("write_timeout", duration(0.1), "A reader that takes nothing for so long is cut."),
        Field(
            "stall_timeout",
            duration(0.1),
            "An engine that finishes no step for so long while it has work is killed and started again.",
        ),
        Field(
            "max_stream_backlog",
            size_bytes(1024),
            "Text that is kept for a slow reader; one that falls further behind is cut.",
        ),
        Field(
            "strict_bodies",
            BOOL,
            "Refuse bodies of OpenAI's, Anthropic's, Ollama's and llama.cpp's API with keys without effect "
            "here. Otherwise these are dropped, and the header `X-Modeld-Ignored` of the answer names them.",
        ),
        Field(
            "drain_timeout",
            duration(0.001),
            "How long running requests may go on when the daemon stops, as far as `shutdown_timeout` leaves "
            "time for it.",
            zero_is_default=True,
        ),
        Field("shutdown_timeout", duration(), "The stop after SIGTERM is over within this time."),
    ),
    *_group(
        "Models that take turns (docs/scheduling.md)",
        Field(
            "max_wait_before_drain",
            duration(),
            "Busy models are asked to make room once a request has waited so long for their memory; what "
            "comes for them later waits until the other model had its turn.",
        ),
        Field("quantum", duration(), "A model that was loaded serves at least so long before that."),
        Field(
            "backlog_time",
            or_none(duration(), ("auto",)),
            "A model that has to make room first serves those that came before, for at most so long.",
            default="a third of max_wait",
        ),
        Field("min_residency", duration(), "An idle model stays at least so long before it makes room."),
        Field(
            "evict_timeout",
            duration(0.1),
            "After that its running requests may go on for so long before more models are asked to go, or "
            "they are cut.",
        ),
        Field(
            "cut_streams",
            BOOL,
            "Cut requests that run on for longer than `evict_timeout` when their model has to make room.",
        ),
    ),
    *_group("llama.cpp", *LLAMA_FIELDS),
    *_group(
        "Logs and events",
        Field(
            "log_level",
            Kind("|".join(LOG_LEVELS), parse_log_level),
            "What is logged. Prompts and texts only at `debug`.",
        ),
        Field("log_format", one_of(("text", "json")), "Lines for people, or one JSON object a line."),
        Field("events_enable", BOOL, "Write what the scheduler does as lines of JSON (docs/events.md)."),
        Field("events_file", PATH, "File, or named pipe, for these lines.", default="standard output"),
        Field(
            "events_max_bytes",
            Kind("BYTES", parse_rotation),
            "A file that would grow larger becomes `.1`, and that one `.2`; 0 leaves the rotation to others, "
            "who send SIGHUP.",
        ),
        Field("events_keep", whole(1, 1000, "FILES"), "How many of these older files are kept."),
    ),
    *_group(
        "TLS",
        Field(
            "tls_cert",
            PATH,
            "Certificate (PEM, with those between it and its root): HTTPS is spoken, and HTTP is not. "
            "Read again at SIGHUP.",
            default="none: HTTP is spoken",
        ),
        Field("tls_key", PATH, "Its private key (PEM, not encrypted).", default="none"),
    ),
    *_group(
        "Keys (docs/keys.md)",
        Field(
            "keys_file",
            PATH,
            "File of the keys that are asked for; `modeld keys` changes it, SIGHUP has it read again.",
            default="the credential `modeld.keys` of systemd, else none: no key is asked for",
        ),
        Field("require_keys", BOOL, "Do not start without keys."),
        Field(
            "share_tokens",
            whole(64, INT32, "TOKENS"),
            "What one key may have in a turn while several wait for a model.",
        ),
    ),
    *_group(
        "Browsers (CORS)",
        Field("cors_enabled", BOOL, "Let pages of other origins use the API."),
        Field(
            "cors_allowed_origins",
            LIST,
            "These origins, such as `https://app.example`, or `*`; `app://*` is a scheme other than http.",
            flags=("--cors-origins",),
            default="none",
        ),
        Field(
            "cors_allowed_methods",
            LIST,
            "Methods they may use.",
            flags=("--cors-methods",),
        ),
        Field(
            "cors_allowed_headers",
            LIST,
            "Request headers they may send; `X-Stainless-*` is all that begin so.",
            flags=("--cors-headers",),
        ),
    ),
    *_group(
        "Testing",
        Field(
            "engine",
            Kind("llama|fake", parse_engine),
            "`fake` answers with scripted text, without llama.cpp.",
        ),
        Field("fake", TEXT, "Script of the fake engine."),
    ),
)
"""Every setting, in the order of the documentation."""

BY_NAME: Mapping[str, Field] = {field.name: field for field in FIELDS}

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


def show_default(field: Field) -> str:
    """Return how the default of a setting is told to people; the empty text for nothing."""
    return field.default if field.default is not None else field.kind.show(getattr(Settings(), field.name))
