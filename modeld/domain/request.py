# SPDX-License-Identifier: GPL-3.0-only
"""A request in the one form that every dialect is parsed into.

Values only: a dialect has checked types and ranges before it builds one of these.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How the next token is chosen. Defaults are llama.cpp's (common/common.h)."""

    temperature: float = 0.8
    """0 is greedy: the most probable token, always."""
    top_k: int = 40
    """0 leaves all tokens in."""
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    """Keeps logits that many standard deviations below the highest; 0 and below is off."""
    xtc_probability: float = 0.0
    """How often all tokens but the least probable of those above `xtc_threshold` are left out."""
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    """The temperature varies so far up and down, with the entropy to the power of the exponent."""
    dynatemp_exponent: float = 1.0
    mirostat: int = 0
    """1 or 2: that version of Mirostat draws, instead of all from `top_k` to `xtc`; 0 is off."""
    mirostat_tau: float = 5.0
    """The surprise that Mirostat aims at, bits."""
    mirostat_eta: float = 0.1
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_last_n: int = 64
    """Tokens that the penalties look back on, prompt included; -1: the whole context."""
    dry_multiplier: float = 0.0
    """Penalty of a token that would prolong a repetition, times `dry_base` for each token above the
    length that is allowed; 0 is off."""
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    """Tokens that are searched for repetitions, prompt included; -1: the whole context."""
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    """Texts over which no repetition reaches."""
    seed: int | None = None
    """None draws a fresh seed; the same number gives the same text."""
    logit_bias: tuple[tuple[int | str, float], ...] = ()
    """(token id, added to its logit); minus infinity bans the token. A text stands for each of its tokens."""


class ConstraintKind(StrEnum):
    """Which language a constraint is written in."""

    GRAMMAR = "grammar"
    JSON_SCHEMA = "json_schema"
    CALL = "call"


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A function that the model may call."""

    name: str
    description: str = ""
    parameters: str = '{"type": "object", "properties": {}}'
    """JSON schema of its arguments, as JSON text."""
    strict: bool = False
    """Calls must satisfy the schema; one that cannot be compiled is refused."""


AS_MANY_AS_FIT = 0
"""As `max_tokens`: what a slot's share of the KV cells leaves alongside the prompt. For dialects whose
requests have no bound by themselves: all of the context would be reserved for each, and they would go one by
one."""


class Constraint(msgspec.Struct, frozen=True, kw_only=True):
    """The text must match this GBNF grammar, be JSON of this schema, or be the call of a function.

    With triggers it is lazy: text is free until one of them comes, and from its beginning on is bound.
    """

    kind: ConstraintKind
    text: str
    """A grammar, or the JSON text of a schema; of a call, the schema of an answer that is none, or empty."""
    strict: bool = False
    """A schema that cannot be kept whole is refused, not kept in part."""
    tools: tuple[Tool, ...] = ()
    """The functions one of which is to be called: an object of `name` and `arguments`."""
    trigger_words: tuple[str, ...] = ()
    trigger_tokens: tuple[int, ...] = ()


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A function that an assistant called."""

    id: str
    name: str
    arguments: str
    """JSON text, of an object usually."""


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One turn of a conversation. All its parts are plain text, never control tokens."""

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    """What an assistant called in this turn."""
    tool_call_id: str = ""
    """Of a tool's turn: the call that it answers; empty: unknown."""
    name: str = ""
    """Of a tool's turn: the function that answers; empty: unknown."""


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True, tag="generate"):
    """One generation: a raw `prompt`, its tokens, or `messages` for the model's own chat template."""

    prompt: str | None = None
    """Raw text: control tokens in it are parsed. None when the prompt is given otherwise."""
    prompt_tokens: tuple[int, ...] = ()
    """The prompt as token ids, instead of either; nothing is added to them."""
    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    """What the model is told it may call. Tokens that mark a call are then shown as text, and without a
    `constraint` a call that the model begins in its template's form is bound by their schemas."""
    max_tokens: int = 512
    """Upper bound of generated tokens; clipped to the room that the context leaves. Or `AS_MANY_AS_FIT`."""
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    """The text ends before the first of these; none of them is ever shown."""
    stop_tokens: tuple[int, ...] = ()
    """Tokens that end the text as an end-of-generation token does: without a text of their own."""
    ignore_eos: bool = False
    """Ban end-of-generation tokens."""
    logprobs: int | None = None
    """None: no log-probabilities. N: those of the chosen token and of the N most probable."""
    constraint: Constraint | None = None
    lookup: int = 0
    """Most tokens that are guessed ahead from what the text repeats; 0 is off. Never changes the text."""


class Pooling(StrEnum):
    """How the vectors of an input's tokens become one vector."""

    MEAN = "mean"
    CLS = "cls"
    """That of the first token."""
    LAST = "last"


class EmbedRequest(msgspec.Struct, frozen=True, kw_only=True, tag="embed"):
    """One vector for each of the inputs, in their order."""

    inputs: tuple[str | tuple[int, ...], ...]
    """Each is a text, or the ids of its tokens."""
    normalize: bool = True
    """Scale each vector to length 1."""
    truncate: bool = False
    """Cut an input that is longer than the context, instead of refusing it."""
    pooling: Pooling | None = None
    """None: as the model's file says, else the mean."""


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True, tag="tokenize"):
    """The tokens of a text."""

    content: str
    add_special: bool = False
    """Add the tokens that begin and end a text, as the model's metadata says."""
    parse_special: bool = True
    """Let the texts of control tokens become those tokens."""
    with_pieces: bool = False
    """Tell the bytes of each token, too."""


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True, tag="detokenize"):
    """The text of these tokens."""

    tokens: tuple[int, ...]


class TemplateRequest(msgspec.Struct, frozen=True, kw_only=True, tag="template"):
    """The prompt that the model's chat template makes of these messages and tools."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    count: bool = False
    """Tell how many tokens it has, too."""


VocabularyRequest = TokenizeRequest | DetokenizeRequest | TemplateRequest
"""Requests that only need the model's vocabulary: answered between two steps, without a slot."""
Request = GenerateRequest | EmbedRequest | TokenizeRequest | DetokenizeRequest | TemplateRequest


class Priority(StrEnum):
    """Class of a request in the queue."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """Whose a request is in a queue that several share, and what it will cost; see `scheduler.fair_queue`."""

    owner: str = ""
    """Requests of one owner wait in one line."""
    name: str = ""
    """What the owner is called where it is told who caused something."""
    may_unload: bool = True
    """Its `keep_alive` may take the model from others who have it stay, see `scheduler.keep_alive`."""
    weight: float = 1.0
    tokens: int = 0
    """Of prompt and answer together, as estimated before anything was read."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """A request and the terms on which it is served: what the scheduler needs to know."""

    request: Request
    model: str | None = None
    """Id or alias; None is the default model."""
    timeout_s: float | None = None
    """From arrival to last token, seconds; None has no limit of the client's."""
    priority: Priority = Priority.NORMAL
    keep_alive_s: float | None = None
    """How long the model stays loaded after this request; None: the model's own ttl; negative: for ever."""
    tenant: Tenant = Tenant()

    @property
    def needs_no_slot(self) -> bool:
        """Whether it is answered without a slot."""
        return isinstance(self.request, VocabularyRequest)
