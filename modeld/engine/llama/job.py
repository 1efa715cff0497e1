# SPDX-License-Identifier: GPL-3.0-only
"""One generation request in the engine: prepare it, and track it until it ends.

`prepare` does all that can fail for what is in a request, so that a bad one is refused before it
waits for a slot.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from msgspec.structs import replace

from modeld.domain.request import AS_MANY_AS_FIT, ConstraintKind, GenerateRequest
from modeld.domain.request_events import Logprobs, Usage
from modeld.domain.text_filter import TextFilter
from modeld.domain.tool_calls import ends_in_thought
from modeld.engine.llama.constraints.grammar import Constraints, Grammar
from modeld.engine.llama.constraints.matcher import logits_of
from modeld.engine.llama.native.vocab import TokenArray, Vocab
from modeld.engine.llama.prompts.renderer import PromptRenderer
from modeld.engine.llama.prompts.tool_grammar import CallGrammars
from modeld.engine.llama.sampling.prompt_lookup import PromptLookup
from modeld.engine.llama.sampling.sampler import Sampler, logprobs_of
from modeld.errors import InvalidGrammar, InvalidRequest, PromptTooLong


class Job:
    """State of one request.

    Attributes:
      prompt: its tokens.
      limit: most tokens it may generate, clipped to the context.
      slot: the sequence it is decoded into; -1 while it waits.
      ends: tokens that end it.
      spelled: control tokens that are shown as text.
      thought: the marker of a thought in which its text begins; empty: in none.
      notices: what of its schema or its functions is not kept.
      cached: tokens of the prompt that another request had decoded.
      answer: the tokens generated.
      kept: tokens of it that are in the KV cache, which is also its next position.
      upto: what `kept` becomes when the batch under way is decoded.
      pending: the token sampled last, to be decoded next; -1 during prefill.
      row: row of its logits in the batch under way; -1 if it asked for none.
      context: cells it may have; at their end it shifts, if it is one that shifts.
      intact: tokens of its beginning that are as decoded; None: all of them, as it did not shift.
      generated: tokens sampled, not counting one that ended the generation.
      lookup: guesses its next tokens; None if it must not.
      guess: those that follow the pending one in the batch under way, in the rows behind its own.
      drafted, accepted: tokens guessed, and those of them that came true.
    """

    __slots__ = (
        "accepted",
        "answer",
        "cached",
        "context",
        "drafted",
        "ends",
        "generated",
        "guess",
        "id",
        "intact",
        "kept",
        "limit",
        "logprobs",
        "lookup",
        "notices",
        "pending",
        "prompt",
        "prompt_length",
        "row",
        "sampler",
        "slot",
        "spelled",
        "text",
        "thought",
        "upto",
    )

    def __init__(
        self,
        request_id: int,
        request: GenerateRequest,
        prompt: TokenArray,
        limit: int,
        *,
        sampler: Sampler,
        ends: frozenset[int],
        spelled: frozenset[int] = frozenset(),
    ) -> None:
        self.id = request_id
        self.prompt = prompt
        self.prompt_length = len(prompt)
        self.limit = limit
        self.logprobs = request.logprobs
        self.sampler = sampler
        self.ends = ends
        self.spelled = spelled
        self.thought = ""
        self.notices: tuple[str, ...] = ()
        self.text = TextFilter(request.stop)
        self.slot = -1
        self.cached = 0
        self.answer: list[int] = []
        self.context = self.prompt_length + limit
        self.intact: int | None = None
        self.kept = 0
        self.upto = 0
        self.pending = -1
        self.row = -1
        self.generated = 0
        self.lookup = PromptLookup(prompt.tolist(), request.lookup) if request.lookup else None
        self.guess: list[int] = []
        self.drafted = 0
        self.accepted = 0

    @property
    def cells(self) -> int:
        """KV cells it needs at most."""
        return min(self.prompt_length + self.limit, self.context)

    @property
    def lends(self) -> int:
        """Tokens of its prompt that others can begin with."""
        return min(self.kept, self.prompt_length if self.intact is None else self.intact)

    @property
    def usage(self) -> Usage:
        """Its counts so far."""
        return Usage(
            prompt_tokens=self.prompt_length,
            completion_tokens=self.generated,
            cached_tokens=self.cached,
            drafted_tokens=self.drafted,
            accepted_tokens=self.accepted,
        )

    @property
    def decoded(self) -> TokenArray:
        """The tokens of it that are in the KV cache: of the prompt, then of the answer.

        What follows a shift saw tokens that are gone, and is of no use to others.
        """
        if self.intact is not None:
            return self.prompt[: self.intact]
        rest = self.kept - self.prompt_length
        if rest <= 0:
            return self.prompt[: self.kept]
        return np.concatenate((self.prompt, np.array(self.answer[:rest], dtype=np.int32)))

    def begin(self, sequence: int, cached: int) -> None:
        """Take note of its slot, and of the tokens that need not be decoded."""
        self.slot = sequence
        self.kept = self.cached = cached

    def choose(self, token: int) -> None:
        """Take note of the token that was sampled."""
        self.pending = token
        self.answer.append(token)
        self.generated += 1
        if self.lookup is not None:
            self.lookup.add(token)

    def take_guess(self, most: int) -> list[int]:
        """Return tokens that may follow the pending one, for which it has room, and may still generate."""
        room = min(most, self.limit - self.generated - 1, self.context - self.upto)
        self.guess = [] if self.lookup is None else self.lookup.guess(room)
        return self.guess

    def logprobs_at(self, context: int, token: int, vocab: Vocab) -> tuple[Logprobs, ...]:
        """Return the log-probabilities of the token sampled from its row; none if not asked for."""
        if self.logprobs is None:
            return ()
        return (logprobs_of(logits_of(context, self.row, vocab.size), token, self.logprobs, vocab),)


def prepare(
    request_id: int,
    request: GenerateRequest,
    *,
    vocab: Vocab,
    template: PromptRenderer,
    calls: CallGrammars,
    constraints: Constraints,
    context: int,
    share: int,
    shifts: bool = False,
) -> Job:
    """Turn a request into a job that only needs a slot. One that `shifts` goes on at the context's end.

    Without a bound it generates within `share`, the KV cells of a slot; or as many as those, where its
    prompt alone has more.

    Raises: InvalidRequest, PromptTooLong, InvalidGrammar; StillRendering, StillCompiling: try again later.
    """
    if request.max_tokens < 1 and request.max_tokens != AS_MANY_AS_FIT:
        raise InvalidRequest(f"max_tokens is {request.max_tokens}; it must be at least 1")
    bound = _bound(request, template, calls, constraints)
    prompt, thought = _prompt(request, vocab, template, context)
    if not len(prompt):
        raise InvalidRequest("the prompt is empty: it has no tokens")
    room = context - len(prompt)
    if room < 1:
        raise _too_long(str(len(prompt)), len(prompt), context)
    ends = _ends(request, vocab)
    if request.constraint is not None:
        thought = ""  # It binds the text from its first letter on.
    elif isinstance(bound, Grammar):
        bound = replace(bound, thought=thought)
    sampler = _sampler(request, vocab, bound, context)
    sampler.see_prompt(prompt)
    if request.max_tokens == AS_MANY_AS_FIT:
        limit = min(room, share - len(prompt) if len(prompt) < share else share)
    else:
        limit = request.max_tokens if shifts else min(request.max_tokens, room)
    spelled = vocab.tool_tokens if request.tools else frozenset[int]()
    job = Job(request_id, request, prompt, limit, sampler=sampler, ends=ends, spelled=spelled)
    job.context = context
    job.thought = thought
    job.notices = bound.notices if isinstance(bound, Grammar) else ()
    return job


def _bound(
    request: GenerateRequest, template: PromptRenderer, calls: CallGrammars, constraints: Constraints
) -> Grammar | InvalidGrammar | None:
    """Return what binds the text. Raises: StillRendering, StillCompiling; InvalidGrammar of a function."""
    constraint, patience_s = request.constraint, template.patience_s
    if constraint is not None and constraint.kind is ConstraintKind.CALL:
        strict = constraint.strict
        return calls.forced(constraint.tools, constraint.text, strict=strict, patience_s=patience_s)
    if constraint is not None:
        return constraints.of(constraint, patience_s)
    if request.tools and template.form is not None:
        return calls.of(request.tools, template.form, patience_s)
    return None


def _prompt(
    request: GenerateRequest, vocab: Vocab, template: PromptRenderer, context: int
) -> tuple[TokenArray, str]:
    """Return the tokens of the prompt, in whatever form it came, and the marker of a thought at its end."""
    if request.prompt_tokens:
        vocab.check(request.prompt_tokens, "prompt")
        return np.array(request.prompt_tokens, dtype=np.int32), ""
    if request.prompt is None and request.messages:
        parts = template.render(request.messages, request.tools)
    elif request.prompt:
        parts = [request.prompt]
    else:
        raise InvalidRequest("the prompt is empty: there is no text, and there are no messages")
    text = "".join(parts)
    many = max(vocab.excess(text, context), len(parts) if len(parts) > context else 0)
    if many:
        raise _too_long(f"about {many}", many, context)
    return vocab.tokenize_parts(parts), ends_in_thought(text)


def _sampler(
    request: GenerateRequest, vocab: Vocab, bound: Grammar | InvalidGrammar | None, context: int
) -> Sampler:
    """Return what chooses the tokens, by the grammar of what was asked for, or else of calls.

    Raises: InvalidRequest, InvalidGrammar.
    """
    if isinstance(bound, InvalidGrammar):
        raise bound
    make = partial(Sampler, vocab, request.sampling, context=context, ignore_end=request.ignore_eos)
    try:
        return make(grammar=bound)
    except InvalidGrammar:
        if request.constraint is not None or any(tool.strict for tool in request.tools):
            raise
        return make()  # This vocabulary cannot spell what a call begins with.


def _ends(request: GenerateRequest, vocab: Vocab) -> frozenset[int]:
    """Return the tokens that end the generation."""
    if not request.stop_tokens:
        return vocab.end_tokens
    for token in request.stop_tokens:
        if not 0 <= token < vocab.size:
            raise InvalidRequest(
                f"stop_token_ids names token {token}; this model has tokens 0 to {vocab.size - 1}"
            )
        if request.ignore_eos and token in vocab.end_tokens:
            raise InvalidRequest(
                f"stop_token_ids names token {token}, an end-of-generation token, which ignore_eos bans; "
                f"leave one of the two out"
            )
    return vocab.end_tokens.union(request.stop_tokens)


def _too_long(said: str, tokens: int, context: int) -> PromptTooLong:
    return PromptTooLong(
        f"the prompt has {said} tokens, and with one token of an answer at least the context of "
        f"{context} tokens has room for {context - 1}; shorten the prompt",
        details={"prompt_tokens": tokens, "context": context},
    )
