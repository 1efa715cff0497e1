# SPDX-License-Identifier: GPL-3.0-only
"""Render `/api/tags`, `/api/ps`, `/api/show` and `/api/version`. Pure."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Mapping

import msgspec
from msgspec import UNSET, UnsetType

from modeld import __version__
from modeld.dialects.common.body import decode
from modeld.dialects.ollama.common import OllamaPullBody, OllamaShowBody
from modeld.domain.instance_state import InstanceState
from modeld.domain.model import MIB, Catalog, ModelFacts, ModelSpec
from modeld.domain.status import DaemonStatus, InstanceStatus

API_VERSION = "0.12.6"
"""The version of Ollama whose API this is. Clients compare it with the least that they need."""
FOR_EVER_S = 100 * 365 * 86400
"""Models that stay for ever are said to go in a century: clients expect a time."""
_show = msgspec.json.Decoder(OllamaShowBody)
_pull = msgspec.json.Decoder(OllamaPullBody)
_LATEST = ":latest"
_SHORT = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K"))


class OllamaVersion(msgspec.Struct, frozen=True):
    """The version of the API, and modeld's own."""

    version: str = API_VERSION
    modeld: str = __version__


class OllamaDetails(msgspec.Struct, frozen=True, kw_only=True):
    """What kind of model it is."""

    parent_model: str = ""
    format: str = "gguf"
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str
    context_length: int
    embedding_length: int


class OllamaModel(msgspec.Struct, frozen=True, kw_only=True):
    """One model. The digest names a version of the file, by its name, size and time, not its content."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: OllamaDetails
    capabilities: list[str]


class OllamaTags(msgspec.Struct, frozen=True):
    """All models whose files can be read."""

    models: list[OllamaModel]


class OllamaRunning(msgspec.Struct, frozen=True, kw_only=True):
    """One loaded model, and when it goes if nobody asks for it. Sizes in bytes."""

    name: str
    model: str
    size: int
    digest: str
    details: OllamaDetails
    expires_at: str
    size_vram: int
    context_length: int


class OllamaPs(msgspec.Struct, frozen=True):
    """All loaded models, those that stay longest first."""

    models: list[OllamaRunning]


class OllamaShow(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to know of one model. `error` is modeld's own: what is wrong with its file."""

    modelfile: str
    parameters: str
    template: str
    details: OllamaDetails
    model_info: Mapping[str, str | int]
    capabilities: list[str]
    modified_at: str
    error: str | UnsetType = UNSET


class OllamaProgress(msgspec.Struct, frozen=True):
    """The answer to a pull of a model that is here."""

    status: str


def parse_show(body: bytes) -> str | None:
    """Read the body of `POST /api/show`: return the name of the model. Raises: InvalidRequest."""
    wire = decode(body, _show, '{"model": "llama"}')
    return wire.model or wire.name or None


def parse_pull(body: bytes) -> tuple[str | None, bool]:
    """Read the body of `POST /api/pull`: return the model's name, and whether to stream.

    Raises: InvalidRequest.
    """
    wire = decode(body, _pull, '{"model": "llama"}')
    return wire.model or wire.name or None, wire.stream is not False


def find(catalog: Catalog, name: str | None) -> ModelSpec | None:
    """Return the model of a name as clients of Ollama write it: `:latest` goes without saying."""
    if name is None:
        return catalog.find(None)
    other = name.removesuffix(_LATEST) if name.endswith(_LATEST) else name + _LATEST
    return catalog.find(name) or catalog.find(other)


def rfc3339(seconds: float) -> str:
    """Return a time since the epoch as clients of Ollama read it."""
    moment = dt.datetime.fromtimestamp(max(0.0, seconds), tz=dt.UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def tags(catalog: Catalog) -> OllamaTags:
    """Return the models that can be asked for, the newest first."""
    sound = [spec for spec in catalog.models.values() if spec.error is None]
    sound.sort(key=lambda spec: -spec.modified_ns)
    return OllamaTags([_model(spec) for spec in sound])


def running(catalog: Catalog, status: DaemonStatus) -> OllamaPs:
    """Return the models that are in memory."""
    found = [
        (_expiry(instance, status.server_time_unix), instance, spec)
        for instance in status.instances
        if instance.state in {InstanceState.READY, InstanceState.DRAINING}
        and (spec := catalog.models.get(instance.model_id)) is not None
    ]
    found.sort(key=lambda entry: -entry[0])
    return OllamaPs(
        [
            OllamaRunning(
                name=spec.id,
                model=spec.id,
                size=(size := round(instance.est_vram_mb * MIB)),
                digest=_digest(spec),
                details=_details(spec),
                expires_at=rfc3339(expiry),
                size_vram=size if status.devices and spec.options.gpu_layers != 0 else 0,
                context_length=instance.context_length,
            )
            for expiry, instance, spec in found
        ]
    )


def show(spec: ModelSpec, template: str) -> OllamaShow:
    """Return what is known of a model, with the chat template of its file: Jinja, not Ollama's language."""
    facts = spec.facts or ModelFacts(architecture="")
    family = facts.architecture
    numbers = {
        "general.parameter_count": facts.parameters,
        f"{family}.context_length": facts.context_length,
        f"{family}.embedding_length": facts.embedding_length,
        f"{family}.block_count": facts.layers,
        f"{family}.feed_forward_length": facts.feed_forward_length,
        f"{family}.attention.head_count": facts.heads,
        f"{family}.attention.head_count_kv": max(facts.kv_heads, default=0),
        f"{family}.attention.key_length": facts.key_length,
        f"{family}.attention.value_length": facts.value_length,
        f"{family}.vocab_size": facts.vocabulary,
    }
    info: dict[str, str | int] = {"general.architecture": family, "general.basename": facts.name or spec.id}
    info |= {name: number for name, number in numbers.items() if number}
    return OllamaShow(
        modelfile=f"# modeld serves this file as it is; there is no Modelfile\nFROM {spec.path}\n",
        parameters=f"{'num_ctx':<30} {spec.options.ctx}",
        template=template,
        details=_details(spec),
        model_info=info,
        capabilities=_capabilities(spec),
        modified_at=rfc3339(spec.modified_ns / 1e9),
        error=spec.error or UNSET,
    )


def _model(spec: ModelSpec) -> OllamaModel:
    return OllamaModel(
        name=spec.id,
        model=spec.id,
        modified_at=rfc3339(spec.modified_ns / 1e9),
        size=spec.size_bytes,
        digest=_digest(spec),
        details=_details(spec),
        capabilities=_capabilities(spec),
    )


def _details(spec: ModelSpec) -> OllamaDetails:
    facts = spec.facts or ModelFacts(architecture="")
    return OllamaDetails(
        family=facts.architecture,
        families=[facts.architecture],
        parameter_size=_short(facts.parameters),
        quantization_level=facts.quant,
        context_length=facts.context_length,
        embedding_length=facts.embedding_length,
    )


def _capabilities(spec: ModelSpec) -> list[str]:
    if spec.facts is not None and spec.facts.pooling:
        return ["embedding"]
    return ["completion", "tools"]


def _digest(spec: ModelSpec) -> str:
    return hashlib.sha256(f"{spec.id}\0{spec.size_bytes}\0{spec.modified_ns}".encode()).hexdigest()


def _expiry(instance: InstanceStatus, now: float) -> float:
    return now + FOR_EVER_S if instance.keep_until_unix is None else instance.keep_until_unix


def _short(parameters: int) -> str:
    """Return a number of parameters as Ollama writes it: 7.2B, 134.52M."""
    for unit, letter in _SHORT:
        if parameters >= unit:
            digits = 2 if letter in "KM" else 1
            return f"{parameters / unit:.{digits}f}".rstrip("0").rstrip(".") + letter
    return str(parameters) if parameters else ""
