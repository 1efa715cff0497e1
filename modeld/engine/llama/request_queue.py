# SPDX-License-Identifier: GPL-3.0-only
"""Requests without a slot: queue them in order, and prepare them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection
from functools import partial
from typing import NamedTuple

from modeld.domain.request import (
    DetokenizeRequest,
    EmbedRequest,
    Request,
    TemplateRequest,
    TokenizeRequest,
    VocabularyRequest,
)
from modeld.domain.request_events import (
    Detokenized,
    FinishReason,
    Templated,
    Tokenized,
    Usage,
    VocabularyAnswer,
)
from modeld.engine.llama.constraints.compiler import GrammarCompiler, StillCompiling
from modeld.engine.llama.constraints.grammar import Constraints
from modeld.engine.llama.embedding.job import EmbedJob, prepare_embedding
from modeld.engine.llama.job import Job, prepare
from modeld.engine.llama.native.library import logger
from modeld.engine.llama.native.vocab import Vocab
from modeld.engine.llama.prompts.renderer import PromptRenderer, StillRendering
from modeld.engine.llama.prompts.tool_grammar import CallGrammars
from modeld.engine.protocol import AnswerOutput, Output, RequestDone, RequestFailed
from modeld.errors import EngineFailed, ModeldError

# ----------------------------------------------------------------------
# The wall around one request's preparation: whatever breaks in it ends this request and no other.


def prepare_or_fail(
    model_id: str,
    request_id: int,
    prepare: Callable[[], None],
    outputs: list[Output],
    *,
    later: tuple[type[Exception], ...] = (),
) -> None:
    """Prepare a request; what is wrong with it, or with this program, goes to `outputs` as its end.

    Raises: what is `later`, which says that it is not ready yet.
    """
    try:
        prepare()
    except later:
        raise
    except ModeldError as error:
        outputs.append(RequestFailed(id=request_id, problem=error.as_problem()))
    except Exception as error:  # noqa: BLE001  # our defect: logged, and told to its request alone
        logger.exception("%s: a request could not be prepared", model_id)
        fault = EngineFailed(f"{model_id}: this request could not be prepared: {error!r}")
        outputs.append(RequestFailed(id=request_id, problem=fault.as_problem()))


# ----------------------------------------------------------------------
# Pure: divides an engine's time between requests that arrive and streams that wait meanwhile.
#
# To tokenise 128 KiB of text takes 0.1 s, and 64 such texts may arrive together. What takes longest, a large
# grammar in GBNF, is checked in slices (`constraints.grammar`).
#
#     (1) after `SLICE_S` no other request is prepared in this step; the one under way is finished
#     (2) what took longer, or is not done yet, is followed by as much time for those who stream, if any do
#     (3) what is known without a decode is told at once, but not in two steps one after the other
#         without a decode between them
#
# So whatever arrives, streams keep about half of their speed, and cancels are heard in between.

SLICE_S = 0.05
"""Seconds of one step for the preparation of requests; a usual one takes 0.3 ms."""


class PreparationTurns:
    """Whose turn it is. Times in seconds of any steady clock."""

    def __init__(self) -> None:
        self._began = 0.0
        self._streams_until = 0.0
        self._told = False

    def may_prepare(self, now: float, *, streams: bool) -> bool:
        """Whether requests may be prepared in this step; if so, that begins now."""
        self._began = now
        return not streams or now >= self._streams_until

    def may_go_on(self, now: float) -> bool:
        """Whether another request may be prepared in this step."""
        return now - self._began < SLICE_S

    def prepared(self, now: float, *, unfinished: bool = False) -> None:
        """Take note that the preparation of this step has ended; `unfinished`: it goes on in a later one."""
        took = now - self._began
        self._streams_until = now + took if unfinished or took >= SLICE_S else now

    def tells_first(self, *, known: bool) -> bool:
        """Whether this step ends before its decode, to tell what is known."""
        self._told = known and not self._told
        return self._told


# ----------------------------------------------------------------------
# Answers what needs the vocabulary and the chat template only: no slot, no cells, no decode.


def answer(request: VocabularyRequest, vocab: Vocab, template: PromptRenderer) -> VocabularyAnswer:
    """Answer a request that needs no slot.

    Raises: InvalidRequest for a token that the vocabulary does not have, and what the template objects to.
    """
    match request:
        case TokenizeRequest(content=content, add_special=add, parse_special=parse):
            tokens = tuple(vocab.tokenize(content, add_special=add, parse_special=parse).tolist())
            pieces = tuple(vocab.spelling(token) for token in tokens) if request.with_pieces else None
            return Tokenized(tokens, pieces)
        case DetokenizeRequest(tokens=tokens):
            vocab.check(tokens, "tokens")
            return Detokenized(vocab.detokenize(tokens))
        case TemplateRequest(messages=messages, tools=tools):
            parts = template.render(messages, tools)
            count = len(vocab.tokenize_parts(parts)) if request.count else None
            return Templated("".join(parts), count)


# ----------------------------------------------------------------------

_RENDER_PATIENCE = 0.003
"""Seconds that streams wait for the prompt of a chat: a usual one is there by then."""
_IDLE_RENDER_PATIENCE = 0.02
"""The same when nobody streams. After it the owner looks for messages."""


class ContextLimits(NamedTuple):
    """What a request may have."""

    context: int
    """Most tokens, prompt and answer together."""
    share: int
    """The KV cells of a slot, where all have as many."""
    shifts: bool
    """At the end of the context a generation goes on without its middle."""


class RequestQueue:
    """Takes requests in and prepares them: renders, tokenises, compiles, and refuses what is bad.

    Attributes:
      waiting: those that are prepared. Whoever gives the first one a slot takes it out.
    """

    def __init__(self, model_id: str, vocab: Vocab, template: PromptRenderer, *, can_guess: bool) -> None:
        """`can_guess`: the memory of this model can be wound back."""
        self.waiting: deque[Job | EmbedJob] = deque()
        self._id = model_id
        self._vocab = vocab
        self._template = template
        self._can_guess = can_guess
        self._submitted: deque[tuple[int, Request]] = deque()
        self._turns = PreparationTurns()
        self._compiler = GrammarCompiler(vocab, template.try_grammars)
        self._calls = CallGrammars(self._compiler)
        self._constraints = Constraints(self._compiler)

    @property
    def busy(self) -> bool:
        """Whether anybody is in here."""
        return bool(self.waiting or self._submitted)

    def submit(self, request_id: int, request: Request) -> None:
        """Take a request; `prepare` refuses it if it is bad."""
        self._submitted.append((request_id, request))

    def tells_first(self, *, known: bool) -> bool:
        """Whether this step ends before its decode, to tell what is known: a decode may take long."""
        return self._turns.tells_first(known=known)

    def cancel(self, ids: Collection[int], outputs: list[Output]) -> bool:
        """End those of these requests that are in here; return whether one of them was prepared."""
        for entry in [entry for entry in self._submitted if entry[0] in ids]:
            self._submitted.remove(entry)
            outputs.append(RequestDone(id=entry[0], reason=FinishReason.CANCELLED, usage=Usage()))
        left = [job for job in self.waiting if job.id in ids]
        for job in left:
            self.waiting.remove(job)
            _close(job)
            outputs.append(RequestDone(id=job.id, reason=FinishReason.CANCELLED, usage=Usage()))
        return bool(left)

    def close(self) -> None:
        """Let go of all requests and grammars; the model can be freed then. Idempotent."""
        self._compiler.close()
        for job in self.waiting:
            _close(job)
        self.waiting.clear()
        self._submitted.clear()

    def prepare(self, room: ContextLimits, outputs: list[Output], *, busy: bool, streams: bool) -> None:
        """Prepare requests in order, as long as it is their turn.

        The first whose prompt is still being rendered, or whose grammar is compiled, holds the others up.

        Args:
          room: what a request may have now.
          outputs: gets what is refused, and the answers to what needs no slot.
          busy: some have a slot.
          streams: some of these wait for their next token.
        """
        if not self._submitted or not self._turns.may_prepare(time.perf_counter(), streams=streams):
            return
        self._template.patience_s = _RENDER_PATIENCE if busy else _IDLE_RENDER_PATIENCE
        compiling = False
        while self._submitted:
            request_id, request = self._submitted[0]
            prepare = partial(self._prepare, request_id, request, room, outputs)
            try:
                prepare_or_fail(
                    self._id, request_id, prepare, outputs, later=(StillRendering, StillCompiling)
                )
            except (StillRendering, StillCompiling) as still:
                compiling = isinstance(still, StillCompiling)
                break
            self._submitted.popleft()
            self._constraints.forget()
            self._compiler.forget()
            self._template.patience_s = _RENDER_PATIENCE
            if not self._turns.may_go_on(time.perf_counter()):
                break
        self._turns.prepared(time.perf_counter(), unfinished=compiling)

    def _prepare(self, request_id: int, request: Request, room: ContextLimits, outputs: list[Output]) -> None:
        """Let a request wait for a slot, or answer it if it needs none. Raises what is wrong with it."""
        if isinstance(request, VocabularyRequest):
            outputs.append(AnswerOutput(request_id, answer(request, self._vocab, self._template)))
            return
        if isinstance(request, EmbedRequest):
            embedding = prepare_embedding(
                request_id, request, self._vocab, context=room.context, why=", or raise llama_ctx"
            )
            self.waiting.append(embedding)
            return
        job = prepare(
            request_id,
            request,
            vocab=self._vocab,
            template=self._template,
            calls=self._calls,
            constraints=self._constraints,
            context=room.context,
            share=room.share,
            shifts=room.shifts,
        )
        if job.lookup is not None and not self._can_guess:
            logger.info("%s: no prompt lookup: the memory of this model cannot be wound back", self._id)
            job.lookup = None
        self.waiting.append(job)


def _close(job: Job | EmbedJob) -> None:
    if isinstance(job, Job):
        job.sampler.close()
