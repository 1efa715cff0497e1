# SPDX-License-Identifier: GPL-3.0-only
"""Bodies of Ollama's API: keys, types, ranges.

Source: the API of Ollama 0.12 (api/types.go, docs/api.md in its repository). Null means the default.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType
from msgspec.structs import replace

from modeld.dialects.common.body import MAX_INT32, MAX_SEED, Duration
from modeld.dialects.common.sampling import Stops, refuse_contradictions, stops_of
from modeld.domain.request import AS_MANY_AS_FIT, Sampling

_Int = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_Penalty = Annotated[float, Meta(ge=-10, le=10)]


class OllamaOptions(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`options` of a request: how text is chosen, and below that what only the operator decides here."""

    num_predict: Annotated[
        Annotated[int, Meta(ge=-2, le=2**31 - 1)] | None,
        Meta(description="Most tokens; default, -1 and 0: what a slot's share leaves; -2: the whole context"),
    ] = None
    temperature: Annotated[
        Annotated[float, Meta(ge=0, le=100)] | None, Meta(description="Default 0.8; 0 is greedy")
    ] = None
    top_k: Annotated[
        Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None,
        Meta(description="Default 40; 0 and -1 keep all tokens"),
    ] = None
    top_p: Annotated[Annotated[float, Meta(ge=0, le=1)] | None, Meta(description="Default 0.9")] = None
    min_p: Annotated[Annotated[float, Meta(ge=0, le=1)] | None, Meta(description="Default 0: off")] = None
    typical_p: Annotated[Annotated[float, Meta(gt=0, le=1)] | None, Meta(description="Default 1: off")] = None
    repeat_last_n: Annotated[
        Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None,
        Meta(description="Tokens that the penalties look back on; default 64; -1: the context"),
    ] = None
    repeat_penalty: Annotated[
        Annotated[float, Meta(gt=0, le=10)] | None, Meta(description="Default 1: off")
    ] = None
    presence_penalty: Annotated[_Penalty | None, Meta(description="Default 0: off")] = None
    frequency_penalty: Annotated[_Penalty | None, Meta(description="Default 0: off")] = None
    mirostat: Annotated[
        Annotated[int, Meta(ge=0, le=2)] | None, Meta(description="Version 1 or 2 draws; default 0: off")
    ] = None
    mirostat_tau: Annotated[Annotated[float, Meta(ge=0, le=100)] | None, Meta(description="Default 5")] = None
    mirostat_eta: Annotated[Annotated[float, Meta(ge=0, le=1)] | None, Meta(description="Default 0.1")] = None
    seed: Annotated[
        _Int | None, Meta(description="The same seed gives the same text; negative, and default: a fresh one")
    ] = None
    stop: Stops = None
    num_ctx: Annotated[
        Annotated[int, Meta(ge=1, le=2**31 - 1)] | None,
        Meta(description="Never loads a model again: clamped to its context, and the answer says so"),
    ] = None
    num_keep: _Int | None = None
    num_batch: _Int | None = None
    num_gpu: _Int | None = None
    main_gpu: _Int | None = None
    num_thread: _Int | None = None
    draft_num_predict: _Int | None = None
    numa: bool | None = None
    low_vram: bool | None = None
    f16_kv: bool | None = None
    logits_all: bool | None = None
    vocab_only: bool | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    embedding_only: bool | None = None
    penalize_newline: bool | None = None
    tfs_z: Annotated[float, Meta(ge=1, le=1)] | None = None


class OllamaTerms(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What every request for a model has."""

    model: Annotated[
        str | None, Meta(description="Id or alias, with or without `:latest`; default: the default model")
    ] = None
    keep_alive: Annotated[
        Duration | None,
        Meta(description="How long the model stays loaded: `5m`, or seconds; negative: for ever; 0: unload"),
    ] = None
    options: Annotated[
        OllamaOptions | None, Meta(description="How text is chosen; see docs/compatibility.md")
    ] = None


class _Text(OllamaTerms, kw_only=True):
    stream: Annotated[bool | None, Meta(description="A line per token (default), or one object")] = None
    format: Annotated[
        msgspec.Raw | UnsetType,
        Meta(
            description='"json", or a JSON schema that the text must satisfy',
            extra_json_schema={"type": ["object", "string", "null"]},
        ),
    ] = UNSET
    think: Annotated[bool | str | None, Meta(description="Only false: thoughts are not set apart")] = None
    truncate: Annotated[bool | None, Meta(description="No effect: what is too long is refused")] = None
    shift: Annotated[bool | None, Meta(description="No effect: `llama_context_shift` decides")] = None
    logprobs: Annotated[bool | None, Meta(description="Tell log-probabilities; default false")] = None
    top_logprobs: Annotated[
        Annotated[int, Meta(ge=0, le=20)] | None, Meta(description="And those of so many others")
    ] = None


class OllamaGenerateBody(_Text, kw_only=True):
    """Of `POST /api/generate`. Without a prompt the model is loaded, or (`keep_alive` 0) unloaded."""

    prompt: Annotated[str | None, Meta(description="Becomes a user's message, unless `raw`")] = None
    system: Annotated[str | None, Meta(description="The system's message before it")] = None
    template: Annotated[
        str | None, Meta(description="Takes the place of the model's own; a part of Go's template language")
    ] = None
    raw: Annotated[bool | None, Meta(description="No template; control tokens are parsed")] = None
    suffix: Annotated[str | None, Meta(description="Refused: nothing is inserted before a text")] = None
    images: Annotated[list[str] | None, Meta(description="Refused: there is no vision")] = None
    context: Annotated[list[int] | None, Meta(description="Refused: send messages to /api/chat")] = None


class OllamaCalledFunction(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A function that the model called, and with what."""

    name: str
    arguments: dict[str, msgspec.Raw]
    index: int | None = None


class OllamaToolCall(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A call of a tool in a message of the assistant."""

    function: OllamaCalledFunction
    id: str | None = None
    type: str | None = None


class OllamaMessage(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One turn of a conversation."""

    role: Annotated[str, Meta(description="system, user, assistant or tool")]
    content: Annotated[str | None, Meta(description="Plain text: control tokens in it mean nothing")] = None
    thinking: Annotated[str | None, Meta(description="Left out of the prompt")] = None
    images: Annotated[list[str] | None, Meta(description="Refused: there is no vision")] = None
    tool_calls: list[OllamaToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class OllamaFunction(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A function that the model may call."""

    name: Annotated[str, Meta(min_length=1)]
    description: str | None = None
    parameters: Annotated[
        msgspec.Raw | UnsetType,
        Meta(description="JSON schema", extra_json_schema={"type": ["object", "null"]}),
    ] = UNSET
    strict: Annotated[bool | None, Meta(description="No effect")] = None


class OllamaTool(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What the model may use: a function."""

    function: OllamaFunction
    type: Annotated[str | None, Meta(description="function")] = None


class OllamaChatBody(_Text, kw_only=True):
    """What `POST /api/chat` takes. Without messages the model is loaded (or, `keep_alive` 0, unloaded)."""

    messages: list[OllamaMessage] | None = None
    tools: Annotated[list[OllamaTool] | None, Meta(description="Functions that the model may call")] = None


class OllamaEmbedBody(OllamaTerms, kw_only=True):
    """What `POST /api/embed` takes. Without an input the model is loaded."""

    input: Annotated[
        str | Annotated[list[str], Meta(max_length=2048)] | None, Meta(description="A text or several")
    ] = None
    truncate: Annotated[
        bool | None, Meta(description="Cut an input that is longer than the context (default), or refuse it")
    ] = None
    dimensions: Annotated[
        Annotated[int, Meta(ge=1, le=65536)] | None,
        Meta(description="So many numbers of each vector, scaled to length 1 again"),
    ] = None


class OllamaEmbeddingsBody(OllamaTerms, kw_only=True):
    """What the older `POST /api/embeddings` takes."""

    prompt: str | None = None


class OllamaShowBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What `POST /api/show` takes; `name` is an older spelling of `model`."""

    model: str | None = None
    name: str | None = None
    verbose: Annotated[bool | None, Meta(description="No effect: arrays and tensors are not told")] = None


class OllamaPullBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What `POST /api/pull` takes: nothing is fetched, but a model that is here needs no fetching."""

    model: str | None = None
    name: str | None = None
    stream: bool | None = None
    insecure: bool | None = None
    username: str | None = None
    password: str | None = None


# ----------------------------------------------------------------------
# `options` of Ollama: what they make of a request, and which have no meaning here. Pure.

DEFAULTS = Sampling(top_p=0.9, min_p=0.0)
"""Where a client of Ollama says nothing: its defaults differ from llama.cpp's in these two."""
_SAME_NAME = frozenset(Sampling.__struct_fields__) & frozenset(OllamaOptions.__struct_fields__) - {
    *("seed", "top_k")
}
_UNDER_MIROSTAT = ("top_k", "top_p", "min_p", "typical_p")
OPERATORS = (
    *("num_keep", "num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict", "numa", "low_vram"),
    *("f16_kv", "logits_all", "vocab_only", "use_mmap", "use_mlock", "embedding_only"),
    "penalize_newline",
)
"""Options about how a model is loaded. Here the operator decides that, once for all clients."""


def sampling_of(options: OllamaOptions | None) -> Sampling:
    """Return how the next token is chosen.

    Mirostat chooses from all tokens, so the samplers that it takes the place of are off alongside it; and
    temperature 0 takes the most probable one always, so Mirostat is off then. Ollama does the same.

    Raises: InvalidRequest.
    """
    if options is None:
        return DEFAULTS
    given: dict[str, object] = {
        name: value for name in _SAME_NAME if (value := getattr(options, name)) is not None
    }
    if options.top_k is not None:
        given["top_k"] = max(options.top_k, 0)
    if given.get("temperature") == 0:
        given.pop("mirostat", None)
    if given.get("mirostat"):
        given |= {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}
    sampling = replace(DEFAULTS, seed=_seed(options.seed), **given)
    refuse_contradictions(sampling, given)
    return sampling


def max_tokens_of(options: OllamaOptions | None) -> int:
    """Return the bound of generated tokens."""
    wanted = None if options is None else options.num_predict
    if wanted is None or wanted in (-1, 0):
        return AS_MANY_AS_FIT
    return wanted if wanted > 0 else MAX_INT32


def stop_of(options: OllamaOptions | None) -> tuple[str, ...]:
    """Return the texts before which it ends."""
    stop = None if options is None else options.stop
    return stops_of(stop)


def without_effect(options: OllamaOptions | None) -> tuple[str, ...]:
    """Return the names of those options that were given, and change nothing."""
    if options is None:
        return ()
    names = [name for name in OPERATORS if getattr(options, name) is not None]
    if options.mirostat and options.temperature == 0:
        names.append("mirostat")
    elif options.mirostat:
        names += [name for name in _UNDER_MIROSTAT if getattr(options, name) is not None]
    return tuple(names)


def _seed(seed: int | None) -> int | None:
    """Return a seed of llama.cpp's 32 bits; clients of Ollama draw larger ones."""
    return None if seed is None or seed < 0 else seed % (MAX_SEED + 1)
