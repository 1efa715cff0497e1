# SPDX-License-Identifier: GPL-3.0-only
"""Settings that can be used, but contradict each other: one of them has no effect. Pure.

Each rule yields (the setting to blame, a sentence). Settings at their defaults never contradict each other.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from typing import TypeVar

from modeld.config.rules import Finding
from modeld.config.settings import AUTO, ModelSettings, Settings
from modeld.config.stop import drain_patience
from modeld.config.values import show_duration
from modeld.core.models import EngineKind

_T = TypeVar("_T")
_CACHE = ("llama_prefix_cells", "llama_ctx", "llama_context_shift", "llama_kv_unified")


def cautions(settings: Settings, given: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what deserves a warning; `given` holds the names that were set."""
    for rule in _RULES:
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
    for name, model in (("", ModelSettings()), *settings.models.items()):
        own = {key for key in _CACHE if getattr(model, key) is not None} if name else set(given)
        prefix = _first(model.llama_prefix_cells, settings.llama_prefix_cells)
        ctx = _first(model.llama_ctx, settings.llama_ctx)
        shift = _first(model.llama_context_shift, settings.llama_context_shift)
        unified = _first(model.llama_kv_unified, settings.llama_kv_unified)
        if not prefix or own.isdisjoint(_CACHE):
            continue
        blamed = (f"models.{name}." if name else "") + _blamed(own, *_CACHE)
        if shift and unified is not False:
            yield (
                blamed,
                (
                    f"llama_prefix_cells of {prefix} has no effect beside llama_context_shift, "
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
            layers = _first(model.llama_ngl, settings.llama_ngl)
            if getattr(model, name) is not None and layers == 0:
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


def _first(own: _T | None, common: _T) -> _T:
    return common if own is None else own


def _blamed(given: Container[str], *names: str) -> str:
    """Return the first of these settings that somebody set."""
    return next((name for name in names if name in given), names[0])


_RULES: tuple[Callable[[Settings, Mapping[str, str]], Iterator[Finding]], ...] = (
    _drain,
    _queues,
    _waits,
    _cache,
    _no_layers,
    _idle,
    _rebinding,
)
