# SPDX-License-Identifier: GPL-3.0-only
"""Choose tokens with one chain of llama.cpp samplers per running request.

A grammar stands outside the chain (`constraints.matcher`).

The most probable token alone, biased or not, needs no chain: numpy finds the same one, the first of
equals, in a tenth of the time (49,152 logits: 9 us against 106, most of which go into a copy of them).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from modeld.domain.request import Sampling
from modeld.domain.request_events import Logprobs, TokenLogprob
from modeld.engine.llama.constraints.grammar import Grammar
from modeld.engine.llama.constraints.lazy import LazyDraw
from modeld.engine.llama.constraints.matcher import ConstrainedDraw, GuidedDraw, draw_of, logits_of
from modeld.engine.llama.native.library import lib
from modeld.engine.llama.native.vocab import TokenArray, Vocab
from modeld.engine.llama.sampling.chain import chain_links, check, uses_history
from modeld.errors import InvalidRequest

_MOST_BIAS = 1e6


class Sampler:
    """The samplers of one request, of at most `context` tokens.

    `close` frees them; nothing else may be called after it.
    Raises: InvalidRequest for values that cannot be used, InvalidGrammar.
    """

    def __init__(
        self,
        vocab: Vocab,
        sampling: Sampling,
        *,
        context: int,
        ignore_end: bool = False,
        grammar: Grammar | None = None,
    ) -> None:
        check(sampling)
        self._vocab = vocab
        biases = self._biases(sampling, ignore_end, grammar)
        self._banned = [token for token, bias in biases.items() if bias == -math.inf]
        if len(self._banned) >= vocab.size:
            raise InvalidRequest("logit_bias and ignore_eos together ban every token of the model")
        self._constrained = None if grammar is None else _drawing(vocab, grammar)
        self._looks_back = uses_history(sampling, context)
        bare = sampling.temperature <= 0 and not self._looks_back and grammar is None
        self._highest = _Highest(vocab.size, biases) if bare else None
        params = lib.llama_sampler_chain_default_params()
        params.no_perf = True
        self._chain = lib.llama_sampler_chain_init(params)
        for sampler in chain_links(vocab, sampling, biases, context):
            lib.llama_sampler_chain_add(self._chain, sampler)

    def see_prompt(self, tokens: TokenArray) -> None:
        """Let penalties know the end of the prompt, as llama.cpp's server does."""
        if self._looks_back:
            for token in tokens[-self._looks_back :].tolist():
                lib.llama_sampler_accept(self._chain, token)

    def sample(self, context: int, row: int) -> int:
        """Choose the token after this row of the last batch, and take note of it.

        Returns: a token, or NO_TOKEN when the grammar allows none.
        """
        if self._highest is not None:
            token = self._highest.find(context, row)
            if token is not None:
                return token
        if self._constrained is None:
            return lib.llama_sampler_sample(self._chain, context, row)
        return self._constrained.draw(self._chain, context, row, self._banned)

    def close(self) -> None:
        """Free what C holds. Idempotent."""
        chain, self._chain = self._chain, 0
        if chain:
            lib.llama_sampler_free(chain)
        if self._constrained is not None:
            self._constrained.close()

    def _biases(self, sampling: Sampling, ignore_end: bool, grammar: Grammar | None) -> dict[int, float]:
        """Return what to add to the logit of each token, several wishes for one token summed."""
        biases: dict[int, float] = {}
        for token, bias in self._by_token(sampling):
            if not 0 <= token < self._vocab.size:
                raise InvalidRequest(
                    f"logit_bias names token {token}; this model has tokens 0 to {self._vocab.size - 1}"
                )
            if math.isnan(bias) or bias == math.inf:
                raise InvalidRequest(
                    f"logit_bias of token {token} is {bias}; only -inf and numbers can be used"
                )
            biases[token] = biases.get(token, 0.0) + max(-_MOST_BIAS, min(bias, _MOST_BIAS))
            if bias == -math.inf:
                biases[token] = -math.inf
        if ignore_end:
            biases.update(dict.fromkeys(self._vocab.end_tokens, -math.inf))
        if grammar is not None and not grammar.tokens and not grammar.lazy:
            # llama.cpp lets a grammar match the spelling of a control token, which is no text
            hidden = (token for token in self._vocab.control_tokens if token not in self._vocab.end_tokens)
            biases.update(dict.fromkeys(hidden, -math.inf))
        return biases

    def _by_token(self, sampling: Sampling) -> Iterator[tuple[int, float]]:
        """Yield the bias of each token; a text's goes to each of its tokens, as in llama.cpp's server."""
        found: dict[str, list[int]] = {}
        for token, bias in sampling.logit_bias:
            if isinstance(token, int):
                yield token, bias
                continue
            if token not in found:
                found[token] = self._vocab.tokenize(token, add_special=False, parse_special=False).tolist()
            if not found[token]:
                raise InvalidRequest(f"logit_bias: this model has no tokens for the text {token!r}")
            yield from ((each, bias) for each in found[token])


def _drawing(vocab: Vocab, grammar: Grammar) -> ConstrainedDraw | GuidedDraw | LazyDraw:
    return LazyDraw(vocab, grammar) if grammar.lazy else draw_of(vocab, grammar)


class _Highest:
    """Finds the token with the highest logit, biases added."""

    def __init__(self, size: int, biases: dict[int, float]) -> None:
        self._size = size
        self._biased = np.fromiter(biases, np.intp, len(biases)) if biases else None
        self._biases = np.fromiter(biases.values(), np.float32, len(biases))

    def find(self, context: int, row: int) -> int | None:
        """Return the first of the highest; None where a logit is no number: what then is for the chain."""
        logits = logits_of(context, row, self._size)
        if self._biased is None:
            token = int(logits.argmax())
            return None if math.isnan(logits[token]) else token
        raw = logits[self._biased]
        logits[self._biased] = raw + self._biases
        token = int(logits.argmax())
        highest = logits[token]
        logits[self._biased] = raw
        return None if math.isnan(highest) else token


# ----------------------------------------------------------------------
# Log-probabilities of tokens: natural logarithm of the softmax over the raw logits.
#
# Raw means before bias, penalties, temperature and all other sampling: what the model itself held.


def logprobs_of(logits: npt.NDArray[np.float32], chosen: int, top: int, vocab: Vocab) -> Logprobs:
    """Return ln p of the chosen token and of the `top` most probable ones, most probable first."""
    highest = float(logits.max())
    shifted = logits.astype(np.float64) - highest
    shifted -= np.log(np.exp(shifted).sum())
    top = min(top, len(shifted))
    best: list[int] = []
    if top:
        largest = np.argpartition(shifted, -top)[-top:]
        best = sorted(largest.tolist(), key=lambda token: (-shifted[token], token))
    return Logprobs(
        chosen=_describe(chosen, shifted, vocab),
        top=tuple(_describe(token, shifted, vocab) for token in best),
    )


def _describe(token: int, logprobs: npt.NDArray[np.float64], vocab: Vocab) -> TokenLogprob:
    piece = vocab.piece(token) or vocab.text(token).encode()
    return TokenLogprob(token_id=token, text=piece, logprob=float(logprobs[token]))
