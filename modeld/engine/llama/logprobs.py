# SPDX-License-Identifier: GPL-3.0-only
"""Log-probabilities of tokens: natural logarithm of the softmax over the raw logits.

Raw means before bias, penalties, temperature and all other sampling: what the model itself held.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from modeld.core.events import Logprobs, TokenLogprob
from modeld.engine.llama.vocab import Vocab


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
