# SPDX-License-Identifier: GPL-3.0-only
"""Parse `/api/generate` and `/api/chat`. Pure.

What a body asks for becomes an order once its model is known (`order_of`): a model without a chat
template gets the text of `/api/generate` as it is.
"""

from __future__ import annotations

import msgspec

from modeld.dialects.common.body import decode, keep_alive_of
from modeld.dialects.common.schema import schema_text
from modeld.dialects.ollama.common import (
    OllamaChatBody,
    OllamaGenerateBody,
    OllamaMessage,
    OllamaOptions,
    OllamaTerms,
    max_tokens_of,
    sampling_of,
    stop_of,
    without_effect,
)
from modeld.dialects.ollama.gotemplate import GoTemplate
from modeld.dialects.ollama.tools import call_or, message_of, tools_of
from modeld.domain.model import ModelSpec
from modeld.domain.request import (
    Constraint,
    ConstraintKind,
    GenerateRequest,
    Message,
    Order,
    TokenizeRequest,
    Tool,
)
from modeld.errors import InvalidRequest

ROLES = ("system", "user", "assistant", "tool")
_ANY_OBJECT = '{"type":"object"}'
_generate = msgspec.json.Decoder(OllamaGenerateBody)
_chat = msgspec.json.Decoder(OllamaChatBody)


class OllamaRequestTerms(msgspec.Struct, frozen=True, kw_only=True):
    """On which terms something is asked for, and of whom."""

    model: str | None
    keep_alive_s: float | None
    num_ctx: int | None
    ignored: tuple[str, ...]
    """Options that change nothing here."""

    def notice(self, spec: ModelSpec) -> str:
        """Return what the client should know of its options; empty when all is as it wrote."""
        parts: list[str] = []
        context = self.context(spec)
        if context is not None and self.num_ctx != context:
            parts.append(
                f"num_ctx {self.num_ctx} became {context}, the context that {spec.id} is loaded with; its "
                f"operator sets it with llama_ctx"
            )
        if self.ignored:
            parts.append(f"no effect here: {', '.join(self.ignored)}")
        return "; ".join(parts)

    def context(self, spec: ModelSpec) -> int | None:
        """Return the context that `num_ctx` became: the model's own, whatever was asked for; else None."""
        return None if self.num_ctx is None else context_of(spec)


class ParsedOllama(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed request for text. Without a `request` the model is only to be loaded, or unloaded."""

    terms: OllamaRequestTerms
    chat: bool
    stream: bool
    request: GenerateRequest | None
    plain: str = ""
    """What takes the place of the messages for a model without a chat template."""

    @property
    def unloads(self) -> bool:
        """Whether it asks for no text, and that the model goes."""
        return self.request is None and self.terms.keep_alive_s == 0


def parse_generate(body: bytes) -> ParsedOllama:
    """Read the body of `POST /api/generate`. Raises: InvalidRequest with a sentence that names the key."""
    wire = decode(body, _generate, '{"model": "llama", "prompt": "Hello"}')
    if wire.suffix:
        raise InvalidRequest(
            "`suffix` is not served: modeld does not fill in before a text. Send the prompt alone, or with "
            "`raw` a prompt that has the model's own tokens for it"
        )
    if wire.context:
        raise InvalidRequest("`context` is not served: send the conversation as `messages` to /api/chat")
    _refuse_images(wire.images, "images")
    if wire.raw and (wire.template or wire.system):
        raise InvalidRequest("`raw` sends the prompt as it is: leave out `template` and `system`, or `raw`")
    request = None
    prompt = wire.prompt or ""
    if prompt:
        raw = prompt if wire.raw else None
        if raw is None and wire.template:
            raw = GoTemplate(wire.template).render(prompt=prompt, system=wire.system or "")
        turns = [("system", wire.system)] if wire.system else []
        messages = [Message(role=role, content=text) for role, text in (*turns, ("user", prompt))]
        request = _request(wire, wire.options, prompt=raw, messages=() if raw else tuple(messages))
    return ParsedOllama(
        terms=terms_of(wire),
        chat=False,
        stream=wire.stream is not False and bool(prompt),
        request=request,
        plain="\n\n".join(text for text in (wire.system, prompt) if text),
    )


def parse_chat(body: bytes) -> ParsedOllama:
    """Read the body of `POST /api/chat`. Raises: InvalidRequest with a sentence that names the key."""
    wire = decode(body, _chat, '{"model": "llama", "messages": [{"role": "user", "content": "Hello"}]}')
    request = None
    tools = tools_of(wire.tools or ())
    if wire.messages:
        messages = tuple(_message(turn, number) for number, turn in enumerate(wire.messages))
        request = _request(wire, wire.options, prompt=None, messages=messages, tools=tools)
    return ParsedOllama(
        terms=terms_of(wire),
        chat=True,
        stream=wire.stream is not False and request is not None,
        request=request,
    )


def order_of(asked: ParsedOllama, spec: ModelSpec) -> Order:
    """Return the order for this model: of text, or of next to nothing for a model that is to be loaded."""
    request = asked.request or TokenizeRequest(content="")
    templateless = spec.facts is not None and not spec.facts.has_chat_template
    if asked.plain and templateless and isinstance(request, GenerateRequest) and request.messages:
        request = msgspec.structs.replace(request, prompt=asked.plain, messages=())
    return Order(request=request, model=spec.id, keep_alive_s=asked.terms.keep_alive_s)


def terms_of(wire: OllamaTerms) -> OllamaRequestTerms:
    """Return the terms of a body. Raises: InvalidRequest."""
    return OllamaRequestTerms(
        model=wire.model or None,
        keep_alive_s=keep_alive_of(wire.keep_alive),
        num_ctx=None if wire.options is None else wire.options.num_ctx,
        ignored=without_effect(wire.options),
    )


def context_of(spec: ModelSpec) -> int:
    """Return the most tokens that one request to this model may use."""
    options = spec.options
    cells = options.ctx // options.slots if options.kv_unified is False else options.ctx
    trained = 0 if spec.facts is None else spec.facts.context_length
    return min(cells, trained) if trained else cells


def _request(
    wire: OllamaGenerateBody | OllamaChatBody,
    options: OllamaOptions | None,
    *,
    prompt: str | None,
    messages: tuple[Message, ...],
    tools: tuple[Tool, ...] = (),
) -> GenerateRequest:
    if wire.think:
        raise InvalidRequest(
            "`think` is not served: thoughts are not set apart from the answer. Leave it out, or set it "
            "to false"
        )
    if wire.top_logprobs and not wire.logprobs:
        raise InvalidRequest("`top_logprobs` needs `logprobs` set to true")
    return GenerateRequest(
        prompt=prompt,
        messages=messages,
        tools=tools,
        max_tokens=max_tokens_of(options),
        sampling=sampling_of(options),
        stop=stop_of(options),
        logprobs=(wire.top_logprobs or 0) if wire.logprobs else None,
        constraint=call_or(tools, _constraint(wire.format)),
    )


def _constraint(given: msgspec.Raw | msgspec.UnsetType) -> Constraint | None:
    if not isinstance(given, msgspec.Raw) or bytes(given) in {b"null", b'""'}:
        return None
    text = _ANY_OBJECT
    if bytes(given) != b'"json"':
        if not bytes(given).startswith(b"{"):
            raise InvalidRequest('`format` must be "json" or a JSON schema, such as {"type": "object"}')
        text = schema_text(given, "format")
    return Constraint(kind=ConstraintKind.JSON_SCHEMA, text=text)


def _message(turn: OllamaMessage, number: int) -> Message:
    role = turn.role.lower()
    if role not in ROLES:
        raise InvalidRequest(
            f'`messages[{number}].role` must be one of {", ".join(ROLES)}, not "{role[:40]}"'
        )
    _refuse_images(turn.images, f"messages[{number}].images")
    return message_of(turn, role, number)


def _refuse_images(images: list[str] | None, key: str) -> None:
    if images:
        raise InvalidRequest(f"`{key}`: no model has vision here; send text alone")
