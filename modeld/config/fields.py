# SPDX-License-Identifier: GPL-3.0-only
"""The one table of settings: kind, meaning and group of each.

Flags, environment, file, checks, help and documentation all come from it; defaults are those of
`Settings` and `ModelSettings`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import msgspec

from modeld.config.address import parse_address
from modeld.config.lora import LORA, lora_as_json
from modeld.config.nearest import did_you_mean
from modeld.config.settings import AUTO, ModelSettings, Settings
from modeld.config.values import (
    BOOL,
    LIST,
    PATH,
    TEXT,
    BadValue,
    Kind,
    duration,
    one_of,
    or_auto,
    or_none,
    parse_size,
    parse_text,
    told,
    whole,
)
from modeld.core.models import MIB, EngineKind, Isolation

_INT32 = 2**31 - 1
"""llama.cpp counts cells, tokens and layers in 32 bits."""
_MOST_SLOTS = 256
"""LLAMA_MAX_SEQ of llama.cpp."""
_MOST_THREADS = 512
"""GGML_MAX_N_THREADS of ggml."""
_MOST_BYTES = 2**40
_LEAST_ROTATION = 64 * 1024
_LEAST_HEADER = 1024
"""What clients send without being asked for it fits."""
_MOST_MIB = 2**40 // 1024

QUANTISED_KV = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
KV_TYPES = ("f16", "bf16", "f32", *QUANTISED_KV)
LOG_LEVELS = ("off", "error", "warn", "info", "debug")


@dataclass(frozen=True, slots=True)
class Field:
    """One setting.

    Attributes:
      name: key in files; the flag and the environment variable follow from it.
      help: one sentence or two, in Markdown.
      group: heading in the help and the documentation.
      flags: further spellings of the flag.
      zero_is_default: 0 means "not set", as in the Go program.
      default: how the default is told, where it is not a constant.
    """

    name: str
    kind: Kind
    help: str
    group: str = ""
    flags: tuple[str, ...] = ()
    zero_is_default: bool = False
    default: str | None = None

    @property
    def flag(self) -> str:
        """The flag, with its dashes."""
        return "--" + self.name.replace("_", "-")

    @property
    def env(self) -> str:
        """The environment variable."""
        return "MODELD_" + self.name.upper()


def _addr(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        raise BadValue(f'{value} is only a port; write ":{value}", in quotes')
    text = parse_text(value)
    parse_address(text)
    return text


def _mib(low: int) -> Kind:
    return Kind("MIB", lambda value: parse_size(value, MIB, low, _MOST_MIB))


def _bytes(low: int) -> Kind:
    return Kind("BYTES", lambda value: parse_size(value, 1, low, _MOST_BYTES))


def _rotation(value: object) -> int:
    size = parse_size(value, 1, 0, _MOST_BYTES)
    if 0 < size < _LEAST_ROTATION:
        raise BadValue(f"{told(value)} is too small; the least is {_LEAST_ROTATION}, and 0 is never")
    return size


def _engine(value: object) -> EngineKind:
    return EngineKind(cast("str", one_of([str(kind) for kind in EngineKind]).parse(value)))


def _isolation(value: object) -> Isolation:
    return Isolation(cast("str", one_of([str(kind) for kind in Isolation]).parse(value)))


_LOG_LEVEL = one_of(LOG_LEVELS)


def _log_level(value: object) -> str:
    word = "off" if value is False or value == "" else value
    return cast("str", _LOG_LEVEL.parse("warn" if word == "warning" else word))


_NAME = or_none(TEXT, ("",))
_CTX = or_auto(whole(16, _INT32, "CELLS"), AUTO)
_SLOTS = or_auto(whole(1, _MOST_SLOTS), AUTO)
_THREADS = whole(1, _MOST_THREADS)
_NGL = or_none(whole(-1, _INT32), ("auto",), lambda layers: layers == -1)
_FLASH = or_none(BOOL, ("auto",))
_KV = one_of(KV_TYPES)
_PREFIX = or_none(whole(0, _INT32, "CELLS"), ("auto",))
_UBATCH = whole(1, 65536, "TOKENS")
_DEPTH = whole(1, 1_000_000)
_TTL = or_none(duration(-_INT32), ("forever", "never"), lambda seconds: cast("float", seconds) < 0)

_LLAMA: tuple[Field, ...] = (
    Field(
        "llama_ctx",
        _CTX,
        "KV cells shared by all slots of a model; at most slots times its trained context. `auto`: as many "
        "as fit, see below.",
        zero_is_default=True,
    ),
    Field(
        "llama_slots", _SLOTS, "Requests that one model decodes together; `auto` follows from its KV cells."
    ),
    Field(
        "llama_threads",
        _THREADS,
        "CPU threads of a model; shared out while several models decode.",
        zero_is_default=True,
        default="the cores this process may use",
    ),
    Field("llama_ngl", _NGL, "Layers to put on the GPU; `auto` (or -1): all of them where there is a GPU."),
    Field("llama_flash_attn", _FLASH, "Flash attention; `auto` is what was measured to be best."),
    Field(
        "llama_kv_type",
        _KV,
        "Type of the KV cache. The quantised ones need flash attention, and turn it on.",
    ),
    Field("llama_ubatch", _UBATCH, "Most tokens of one physical batch."),
    Field("llama_mmap", BOOL, "Map model files into memory instead of reading them."),
    Field(
        "llama_kv_unified",
        or_none(BOOL, ("auto",)),
        "One KV cache for all slots, or (`false`) an equal share of the cells for each: faster from a few "
        "streams on, but no request can have more. `auto` begins with shares, and gives them up for "
        "the first request that needs more.",
    ),
    Field(
        "llama_context_shift",
        BOOL,
        "Let a generation go on at the end of its context: half of what follows the prompt is forgotten, as "
        "often as needed. Slots then have a cache each, or one in which nothing is retained.",
    ),
    Field(
        "llama_prefix_cells",
        _PREFIX,
        "KV cells that ended requests leave to prompts which begin alike; 0 switches that off, "
        "`auto` follows from the model, and is less while slots are busy.",
    ),
    Field(
        "isolation",
        Kind("process|thread", _isolation),
        "Where an engine runs: in a process of its own, which may crash or hang without harm to others, "
        "or in a thread of the daemon.",
    ),
)

MODEL_FIELDS: tuple[Field, ...] = (
    Field("aliases", LIST, "Further names of the model."),
    Field("pinned", BOOL, "Never evict it to make room."),
    Field("ttl", _TTL, "Unload after so long without a request; `forever` (or -1): never by time."),
    Field("preload", BOOL, "Load it when the daemon starts."),
    *_LLAMA,
    Field(
        "lora",
        LORA,
        "LoRA adapters, applied together: a list of `{path: adapter.gguf, scale: 0.8}`. A relative path is "
        "one in `models_dir`; `scale` is 1 where it is not given.",
    ),
    Field("max_queue_depth", _DEPTH, "Requests that may wait for it.", zero_is_default=True),
    Field("fake", TEXT, "Script of the fake engine for it."),
)
"""What one entry of `models:` may set. Unset ones follow the setting of the same name."""

_CHOSEN = {"llama_ctx", "llama_slots"}
_MODEL_FIELD = {field.name: field for field in MODEL_FIELDS}


def parse_models(value: object) -> Mapping[str, ModelSettings]:
    """Return the options of single models, from a mapping or (in a flag or variable) its JSON text."""
    if isinstance(value, str):
        try:
            value = cast("object", json.loads(value))
        except (ValueError, RecursionError):
            raise BadValue("it must be a JSON object of model names to options") from None
    if not isinstance(value, Mapping):
        raise BadValue(f"{told(value)} is no mapping of model names to options")
    problems: list[tuple[str, str]] = []
    models: dict[str, ModelSettings] = {}
    for name, options in cast("Mapping[object, object]", value).items():
        key = str(name)
        if not isinstance(name, str) or not name.strip():
            problems.append((key, "a model's name must be text; put it in quotes"))
        elif options is not None and not isinstance(options, Mapping):
            problems.append((key, f"{told(options)} is no mapping of options"))
        else:
            chosen = _model_options(key, cast("Mapping[object, object]", options or {}), problems)
            models[key] = msgspec.structs.replace(ModelSettings(), **chosen)
    if problems:
        raise BadValue("", problems)
    return models


def _model_options(
    name: str, options: Mapping[object, object], problems: list[tuple[str, str]]
) -> dict[str, object]:
    chosen: dict[str, object] = {}
    for key, raw in options.items():
        field = _MODEL_FIELD.get(str(key))
        if field is None:
            hint = did_you_mean(str(key), _MODEL_FIELD)
            problems.append((f"{name}.{str(key)[:60]}", f"unknown key{hint}"))
            continue
        try:
            if not is_unset(field, raw):
                chosen[field.name] = field.kind.parse(raw)
        except BadValue as error:
            problems += [(f"{name}.{field.name}", sentence) for _, sentence in error.problems]
    return chosen


def is_unset(field: Field, raw: object) -> bool:
    """Tell whether `raw` stands for "take the default"."""
    if raw is None:
        return True
    zero = (
        isinstance(raw, int | float | str)
        and not isinstance(raw, bool)
        and str(raw).strip() in {"0", "0s", "0.0"}
    )
    return field.zero_is_default and zero


def _show_models(value: object) -> str:
    models = cast("Mapping[str, ModelSettings]", value)
    plain = {
        name: {
            key: _plain(key, option)
            for key, option in cast("Mapping[str, object]", msgspec.structs.asdict(options)).items()
            if option != getattr(ModelSettings(), key)
        }
        for name, options in models.items()
    }
    return json.dumps(plain) if plain else ""


def _plain(key: str, option: object) -> object:
    """An option as JSON has it, and as the same table reads it again."""
    if key == "lora":
        return lora_as_json(option)
    return _MODEL_FIELD[key].kind.show(option) if key in _CHOSEN and option == AUTO else option


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
            Kind("ADDR", _addr),
            "Address to listen on: `127.0.0.1:8080`, `:8080` (every interface), `[::1]:8080`, "
            "`unix:/run/modeld.sock`, or `fd://3` for a socket from systemd.",
        ),
        Field("config", PATH, "Config file (YAML, JSON or TOML).", default="none"),
        Field("models_dir", PATH, "Folder with the `*.gguf` files."),
        Field("default_model", _NAME, "Model for requests that name none.", default="the first found"),
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
            or_none(_mib(0), ("auto",)),
            "Memory for all models together, in MiB (or as `22GiB`). 0 is unlimited; "
            "`auto` is what the machine has.",
        ),
        Field("vram_margin_mb", _mib(0), "Part of the budget that stays free, in MiB."),
        Field(
            "models",
            Kind("JSON", parse_models, _show_models),
            "Options of single models, by name; in a flag or variable a JSON object.",
            default="none",
        ),
    ),
    *_group(
        "Limits",
        Field("max_body_bytes", _bytes(1), "Largest request body (a number, or as `2MiB`)."),
        Field("max_header_bytes", _bytes(_LEAST_HEADER), "Most bytes of a request's line and headers."),
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
            _DEPTH,
            "Requests that may wait for one model; more are refused with 429.",
            zero_is_default=True,
        ),
        Field(
            "max_queue_total",
            _DEPTH,
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
            _bytes(1024),
            "Text that is kept for a slow reader; one that falls further behind is cut.",
        ),
        Field(
            "drain_timeout",
            duration(0.001),
            "How long running requests may go on when the daemon stops or a model is unloaded.",
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
    *_group("llama.cpp", *_LLAMA),
    *_group(
        "Logs and events",
        Field(
            "log_level",
            Kind("|".join(LOG_LEVELS), _log_level),
            "What is logged. Prompts and texts only at `debug`.",
        ),
        Field("log_format", one_of(("text", "json")), "Lines for people, or one JSON object a line."),
        Field("events_enable", BOOL, "Write what the scheduler does as lines of JSON (docs/events.md)."),
        Field("events_file", PATH, "File, or named pipe, for these lines.", default="standard output"),
        Field(
            "events_max_bytes",
            Kind("BYTES", _rotation),
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
            whole(64, _INT32, "TOKENS"),
            "What one key may have in a turn while several wait for a model.",
        ),
    ),
    *_group(
        "Browsers (CORS)",
        Field("cors_enabled", BOOL, "Let pages of other origins use the API."),
        Field(
            "cors_allowed_origins",
            LIST,
            "These origins, such as `https://app.example`, or `*`.",
            flags=("--cors-origins",),
            default="none",
        ),
        Field(
            "cors_allowed_methods",
            LIST,
            "Methods they may use.",
            flags=("--cors-methods",),
            default="GET,POST,OPTIONS",
        ),
        Field(
            "cors_allowed_headers",
            LIST,
            "Request headers they may send.",
            flags=("--cors-headers",),
            default="Accept,Authorization,Content-Type,X-API-Key,X-Requested-With,X-Log-Level",
        ),
    ),
    *_group(
        "Testing",
        Field("engine", Kind("llama|fake", _engine), "`fake` answers with scripted text, without llama.cpp."),
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
