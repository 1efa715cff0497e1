# SPDX-License-Identifier: GPL-3.0-only
"""Check settings against each other. Pure: each rule yields (the setting to blame, a sentence)."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import PurePath

from modeld.config.kinds import QUANTISED_KV
from modeld.config.settings import AUTO, Settings, for_model
from modeld.config.values import show_duration
from modeld.domain.model import EngineKind

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
    def few(of: Settings) -> str | None:
        ctx, slots = of.llama_ctx, of.llama_slots
        if AUTO in {ctx, slots} or ctx >= slots * _CELLS_PER_SLOT:
            return None
        return (
            f"{ctx} cells are too few for {slots} slots; the least is {slots * _CELLS_PER_SLOT} "
            "(llama_ctx is shared by llama_slots)"
        )

    if message := few(settings):
        yield "llama_ctx" if "llama_ctx" in given else "llama_slots", message
        return
    for name, model in settings.models.items():
        if message := few(for_model(settings, model)):
            yield f"models.{name}.llama_{'slots' if model.llama_ctx is None else 'ctx'}", message


def _flash(settings: Settings, _: Mapping[str, str]) -> Iterator[Finding]:
    def clash(of: Settings) -> str | None:
        if of.llama_kv_type not in QUANTISED_KV or of.llama_flash_attn is not False:
            return None
        remedy = "set llama_flash_attn: true, or type f16"
        return f"a KV cache of type {of.llama_kv_type} needs flash attention; {remedy}"

    if message := clash(settings):
        yield "llama_kv_type", message
        return
    for name, model in settings.models.items():
        if message := clash(for_model(settings, model)):
            yield f"models.{name}.llama_{'flash_attn' if model.llama_kv_type is None else 'kv_type'}", message


def _gpus(settings: Settings, given: Mapping[str, str]) -> Iterator[Finding]:
    if settings.llama_main_gpu is not None and settings.llama_tensor_split is not None:
        name = "llama_main_gpu" if "llama_main_gpu" in given else "llama_tensor_split"
        yield name, "one GPU for all layers, or shares for several: set one of the two"
        return
    for name, model in settings.models.items():
        if model.llama_main_gpu is not None and model.llama_tensor_split is not None:
            yield f"models.{name}.llama_main_gpu", "llama_tensor_split is set, too; set one of the two"


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


# ----------------------------------------------------------------------
# How the time of a stop is shared out: running requests, then their last lines, then the models. Pure.

_FLEET_STOP_S = 0.5


def fleet_stop_s(settings: Settings) -> float:
    """Return what is left of `shutdown_timeout` for the end of the models, seconds: at most a fifth of it."""
    return min(_FLEET_STOP_S, settings.shutdown_timeout / 5)


def drain_patience(settings: Settings) -> float:
    """Return for how long requests may go on at a stop, seconds.

    That is `drain_timeout`, or what `shutdown_timeout` leaves for it: the clients' last lines need as much
    time as the end of the models.
    """
    return min(settings.drain_timeout, settings.shutdown_timeout - 2 * fleet_stop_s(settings))


# ----------------------------------------------------------------------
# Settings that can be used, but contradict each other: one of them has no effect. Pure.
#
# Each rule yields (the setting to blame, a sentence). Settings at their defaults never contradict each other.

_CACHE = ("llama_prefix_cells", "llama_ctx", "llama_context_shift", "llama_kv_unified")


def cautions(settings: Settings, given: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what deserves a warning; `given` holds the names that were set."""
    for rule in _CAUTIONS:
        yield from rule(settings, given)


def _drain(settings: Settings, given: Mapping[str, str]) -> Iterator[Finding]:
    drain, stop = settings.drain_timeout, settings.shutdown_timeout
    patience = drain_patience(settings)
    if patience < drain:
        sentence = (
            f"a drain_timeout of {show_duration(drain)} does not fit into a shutdown_timeout of "
            f"{show_duration(stop)}: when the daemon stops, requests may go on for {show_duration(patience)}"
        )
        yield _blamed(given, "drain_timeout", "shutdown_timeout"), sentence


def _queues(settings: Settings, given: Mapping[str, str]) -> Iterator[Finding]:
    total, connections = settings.max_queue_total, settings.max_connections
    why = f"max_queue_total lets {total} wait for all models together"
    if settings.max_queue_depth > total:
        sentence = f"a max_queue_depth of {settings.max_queue_depth} is never reached: {why}"
        yield _blamed(given, "max_queue_depth", "max_queue_total"), sentence
    for name, model in settings.models.items():
        if model.max_queue_depth is not None and model.max_queue_depth > total:
            yield f"models.{name}.max_queue_depth", f"{model.max_queue_depth} is never reached: {why}"
    if total >= connections:
        sentence = (
            f"a max_queue_total of {total} is never reached, as each request has one of {connections} "
            "connections (max_connections): more clients wait unanswered instead of being told 429"
        )
        yield _blamed(given, "max_connections", "max_queue_total"), sentence


def _waits(settings: Settings, given: Mapping[str, str]) -> Iterator[Finding]:
    refused = f"who waits for that is refused after {show_duration(settings.max_wait)} (max_wait)"
    backlog = settings.max_wait / 3 if settings.backlog_time is None else settings.backlog_time
    first = "max_wait_before_drain" if settings.max_wait_before_drain >= settings.quantum else "quantum"
    turn = max(settings.max_wait_before_drain, settings.quantum) + backlog
    if turn >= settings.max_wait:
        sentence = (
            f"a busy model makes room for others only after {show_duration(round(turn, 3))} "
            f"({first} and backlog_time), but {refused}"
        )
        yield _blamed(given, first, "backlog_time", "max_wait"), sentence
    if settings.min_residency >= settings.max_wait:
        sentence = (
            f"a model makes room for others only after {show_duration(settings.min_residency)} "
            f"(min_residency), but {refused}"
        )
        yield _blamed(given, "min_residency", "max_wait"), sentence
    limit = settings.infer_timeout
    if limit is not None and limit <= settings.max_wait:
        sentence = (
            f"a max_wait of {show_duration(settings.max_wait)} is never reached: infer_timeout ends a "
            f"request {show_duration(limit)} after it came, with 504 if it still waits"
        )
        yield _blamed(given, "infer_timeout", "max_wait"), sentence


def _cache(settings: Settings, given: Mapping[str, str]) -> Iterator[Finding]:
    cases = [("", settings, set(given))]
    for name, model in settings.models.items():
        own = {key for key in _CACHE if getattr(model, key) is not None}
        cases.append((f"models.{name}.", for_model(settings, model), own))
    for place, of, own in cases:
        prefix, ctx = of.llama_prefix_cells, of.llama_ctx
        if not prefix or own.isdisjoint(_CACHE):
            continue
        blamed = place + _blamed(own, *_CACHE)
        if of.llama_context_shift and of.llama_kv_unified is not False:
            yield (
                blamed,
                (
                    f"llama_prefix_cells of {prefix} has no effect alongside llama_context_shift, "
                    "unless each slot has a cache of its own; set llama_kv_unified: false"
                ),
            )
        elif ctx != AUTO and prefix > ctx:
            yield blamed, f"llama_prefix_cells of {prefix} is more than all {ctx} KV cells (llama_ctx)"


def _no_layers(settings: Settings, given: Mapping[str, str]) -> Iterator[Finding]:
    why = "has no effect with llama_ngl: 0, no layer on a GPU"
    for name in ("llama_main_gpu", "llama_tensor_split"):
        if getattr(settings, name) is not None and settings.llama_ngl == 0:
            yield _blamed(given, name, "llama_ngl"), f"{name} {why}"
        for model_name, model in settings.models.items():
            if getattr(model, name) is not None and for_model(settings, model).llama_ngl == 0:
                yield f"models.{model_name}.{name}", f"this {why}"


def _idle(settings: Settings, given: Mapping[str, str]) -> Iterator[Finding]:
    """What was set and does nothing, since what it belongs to is off."""
    if settings.engine is not EngineKind.FAKE:
        names = [f"models.{name}.fake" for name, model in settings.models.items() if model.fake]
        for name in (*(["fake"] if settings.fake else []), *names):
            yield name, "this has no effect without engine: fake"
    if "share_tokens" in given and settings.keys_file is None:
        yield "share_tokens", "this has no effect without keys (keys_file): turns are taken by keys"
    if "allowed_hosts" in given and settings.keys_file is not None:
        yield "allowed_hosts", "this has no effect with keys (keys_file): they are asked for instead"
    for name in ("cors_allowed_methods", "cors_allowed_headers"):
        if name in given and "cors_enabled" not in given:
            yield name, "this has no effect without cors_enabled: true"


def _rebinding(settings: Settings, _: Mapping[str, str]) -> Iterator[Finding]:
    if "*" in settings.allowed_hosts and settings.keys_file is None:
        sentence = (
            "with * and without keys (keys_file) any web page that a user of this machine opens can use "
            "every model (DNS rebinding, docs/security.md); list the names instead"
        )
        yield "allowed_hosts", sentence


def _blamed(given: Container[str], *names: str) -> str:
    """Return the first of these settings that somebody set."""
    return next((name for name in names if name in given), names[0])


_CAUTIONS: tuple[Callable[[Settings, Mapping[str, str]], Iterator[Finding]], ...] = (
    _drain,
    _queues,
    _waits,
    _cache,
    _no_layers,
    _idle,
    _rebinding,
)
