# SPDX-License-Identifier: GPL-3.0-only
"""Sample the next token of a job, and end the job if it was the last."""

from __future__ import annotations

import numpy as np

from modeld.domain.request_events import FinishReason
from modeld.engine.llama.active_requests import ActiveRequests
from modeld.engine.llama.constraints.matcher import NO_TOKEN, logits_of
from modeld.engine.llama.job import Job
from modeld.engine.llama.kv.manager import KvManager
from modeld.engine.llama.native.model import Model
from modeld.engine.llama.native.vocab import Vocab
from modeld.engine.protocol import Output, TokenOutput
from modeld.errors import EngineFailed, InvalidGrammar


class TokenStep:
    """What follows a decode, for the jobs of one engine."""

    def __init__(self, model: Model, vocab: Vocab, places: KvManager, seats: ActiveRequests) -> None:
        self._model = model
        self._vocab = vocab
        self._places = places
        self._seats = seats

    def verify_draft(self, job: Job, outputs: list[Output]) -> None:
        """Draw from row after row, as long as the token that is drawn is the one that was guessed."""
        guess, job.guess = job.guess, []
        job.drafted += len(guess)
        accepted = 0
        while self.advance(job, outputs):
            if accepted == len(guess) or job.pending != guess[accepted]:
                break
            accepted += 1
            job.accepted += 1
            job.kept += 1
            job.row += 1
        else:
            return  # Its end has taken out of the cache what is not decoded of it.
        if job.lookup is not None:
            job.lookup.learn(len(guess), accepted)
        if accepted < len(guess) and not self._places.memory.cut(job.slot, job.kept):
            text = f"{self._model.id}: its KV cache cannot be wound back; do without prompt_lookup"
            self._seats.fail(job, EngineFailed(text), outputs)

    def advance(self, job: Job, outputs: list[Output]) -> bool:
        """Draw the next token of a job; return whether it goes on."""
        context = self._model.context
        if not job.generated and not np.isfinite(logits_of(context, job.row, self._vocab.size)).all():
            self._seats.fail(job, without_numbers(self._model), outputs)
            self._places.forget_all()  # What it began with may be the cause.
            return False
        try:
            token = job.sampler.sample(context, job.row)
        except InvalidGrammar as error:  # it takes too long, which only shows now
            self._seats.fail(job, error, outputs)
            return False
        if token == NO_TOKEN or token in job.ends:
            self._seats.finish(job, FinishReason.STOP, job.text.flush(), outputs)
            return False
        job.choose(token)
        piece = self._vocab.spelling(token) if token in job.spelled else self._vocab.piece(token)
        text = job.text.push(piece)
        reason = None
        if job.generated >= job.limit:
            reason = FinishReason.LENGTH
            text += job.text.flush()
        if job.text.stopped:
            reason = FinishReason.STOP
        logprobs = () if job.logprobs is None else job.logprobs_at(context, token, self._vocab)
        outputs.append(TokenOutput(id=job.id, text=text, logprobs=logprobs))
        if reason is None:
            return True
        self._seats.finish(job, reason, "", outputs)
        return False


def without_numbers(model: Model) -> EngineFailed:
    """Return what is said of a model that computes infinities, or values that are no numbers."""
    return EngineFailed(f"{model.id} computes values that are no numbers; its file may be damaged")


# ----------------------------------------------------------------------
# Pure: decodes that failed one after the other, and what is said of them.

MOST = 3
"""Failed decodes in a row after which the engine as a whole counts as broken."""


class DecodeFailures:
    """Counts failures of one engine."""

    def __init__(self, model_id: str) -> None:
        self._id = model_id
        self._count = 0

    def passed(self) -> None:
        """Take note of a decode that did not fail."""
        self._count = 0

    def failed(self, reason: str) -> EngineFailed:
        """Take note of one that failed; return what is told to the request that is given up for it.

        Raises: EngineFailed when there were too many in a row.
        """
        self._count += 1
        if self._count >= MOST:
            raise EngineFailed(f"{self._id}: {reason}, {self._count} times in a row; load the model again")
        return self.given_up(reason)

    def given_up(self, reason: str) -> EngineFailed:
        """Return what is told to a request that is given up for a reason that is no failure of the engine."""
        return EngineFailed(f"{self._id}: {reason}; send the request again")
