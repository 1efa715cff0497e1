# SPDX-License-Identifier: GPL-3.0-only
"""`POST /v1/completions`, the old way to ask for text: the body, and what it asks for. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from modeld.core.request import GenerateRequest
from modeld.dialects.body import MAX_INT32
from modeld.dialects.inputs import Input, inputs_of
from modeld.dialects.openai.ask import Asked, choices_of, include_usage, read, sampling_of, stop_of
from modeld.dialects.openai.wire import MOST_CHOICES, Choosing
from modeld.errors import InvalidRequest

MOST_LOGPROBS = 5
DEFAULT_TOKENS = 16
"""As in OpenAI's API."""
Token = Annotated[int, Meta(ge=0, le=MAX_INT32)]
_Prompt = str | Annotated[list[str | Token | list[Token]], Meta(min_length=1)]


class CompletionBody(Choosing, kw_only=True):
    """What `POST /v1/completions` takes."""

    prompt: Annotated[_Prompt, Meta(description="A text, the ids of its tokens, or a list of either")]
    max_tokens: Annotated[Annotated[int, Meta(ge=1, le=MAX_INT32)] | None, Meta(description="Default 16")] = (
        None
    )
    echo: Annotated[bool | None, Meta(description="The text begins with the prompt; default false")] = None
    logprobs: Annotated[int, Meta(ge=0, le=MOST_LOGPROBS)] | None = None
    best_of: Annotated[
        Annotated[int, Meta(ge=1, le=MOST_CHOICES)] | None, Meta(description="Only as many as `n`")
    ] = None
    suffix: None = None


_decoder = msgspec.json.Decoder(CompletionBody)


def parse_completion(body: bytes) -> Asked:
    """Read the body of `POST /v1/completions`. Raises: InvalidRequest."""
    wire = read(body, _decoder, '{"model": "...", "prompt": "Hello"}')
    if wire.best_of not in (None, wire.n or 1):
        raise InvalidRequest(
            f"`best_of` is {wire.best_of}, `n` is {wire.n or 1}: choices are not ranked; leave out `best_of`"
        )
    prompts = inputs_of(wire.prompt, field="prompt", most=None)
    count = len(prompts) * (wire.n or 1)
    if count > MOST_CHOICES:
        raise InvalidRequest(f"`prompt` and `n` ask for {count} choices; {MOST_CHOICES} are the most")
    requests = [
        GenerateRequest(
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_tokens=() if isinstance(prompt, str) else prompt,
            max_tokens=wire.max_tokens or DEFAULT_TOKENS,
            sampling=sampling_of(wire),
            stop=stop_of(wire),
            ignore_eos=bool(wire.ignore_eos),
            logprobs=wire.logprobs,
        )
        for prompt in prompts
    ]
    return Asked(
        orders=choices_of(wire, requests),
        n=wire.n or 1,
        stream=bool(wire.stream),
        include_usage=include_usage(wire),
        echo=_echo(wire, prompts),
    )


def _echo(wire: CompletionBody, prompts: Sequence[Input]) -> tuple[str, ...]:
    if not wire.echo:
        return ()
    if wire.logprobs is not None:
        raise InvalidRequest(
            "`echo` and `logprobs` do not go together: log-probabilities of a prompt are not computed. "
            "Leave out one of the two"
        )
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise InvalidRequest("`echo` repeats a text; give the `prompt` as text, or leave out `echo`")
    return tuple(str(prompt) for prompt in prompts)
