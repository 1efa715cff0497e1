# SPDX-License-Identifier: GPL-3.0-only
"""Samplers over logits that a test writes into the tiny model's own rows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from modeld.core.request import Sampling
from modeld.engine.llama.constrained import logits_of
from modeld.engine.llama.library import lib
from modeld.engine.llama.sampler import Sampler

GREEDY = Sampling(temperature=0.0)


class Row:
    """The one row of logits of a decode of the tiny model, which a test may overwrite."""

    def __init__(self, engine) -> None:
        self.vocab = engine._vocab
        self.context = engine._model.context
        engine._batch.clear()
        self.number = engine._batch.add_token(self.vocab.bos, 0, 0)
        assert lib.llama_decode(self.context, engine._batch.struct) == 0
        self.logits = logits_of(self.context, self.number, self.vocab.size)

    def sample(self, sampling, **options):
        sampler = Sampler(self.vocab, sampling, **options)
        try:
            return sampler.sample(self.context, self.number)
        finally:
            sampler.close()

    def greedy_in_c(self, biases=()):
        """Return what llama.cpp's own greedy chain takes."""
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        array = (lib.llama_logit_bias * len(biases))(*(lib.llama_logit_bias(*bias) for bias in biases))
        lib.llama_sampler_chain_add(
            chain, lib.llama_sampler_init_logit_bias(self.vocab.size, len(biases), array)
        )
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_greedy())
        token = lib.llama_sampler_sample(chain, self.context, self.number)
        lib.llama_sampler_free(chain)
        return token


@pytest.fixture
def row(tiny_lab):
    engine = tiny_lab.bench(slots=2, ctx=512, ubatch=64).engine
    yield Row(engine)
    engine._memory.clear()


def test_greedy_takes_the_token_that_the_chain_takes(row):
    """Also among equals, of which there are many here, and with biases; the logits stay as they were."""
    random = np.random.default_rng(1)
    for _ in range(200):
        row.logits[:] = random.integers(0, 8, row.vocab.size)
        before = row.logits.copy()
        assert row.sample(GREEDY) == row.greedy_in_c()
        biases = tuple((int(token), float(bias)) for token, bias in random.integers(-4, 4, (20, 2)) % 300)
        biases = tuple(dict(biases).items())
        biased = Sampling(temperature=0.0, logit_bias=biases)
        assert row.sample(biased) == row.greedy_in_c(biases)
        assert (row.logits == before).all()


def test_greedy_needs_no_chain(row, monkeypatch):
    """The usual greedy request costs no copy of the logits in C, with banned tokens neither."""
    monkeypatch.setattr(lib, "llama_sampler_sample", None)
    row.logits[:] = 0
    row.logits[[7, 9, 11]] = (3, 2, 1)
    assert row.sample(GREEDY) == 7
    assert row.sample(Sampling(temperature=0.0, logit_bias=((7, -math.inf), (11, 1.5)))) == 11
    (end,) = row.vocab.end_tokens
    row.logits[end] = 9
    assert row.sample(GREEDY) == end
    assert row.sample(GREEDY, ignore_end=True) == 7


@pytest.mark.parametrize("places", [[0], [5], [5, 200], list(range(300))])
def test_a_logit_that_is_no_number_is_not_taken(row, places):
    """What llama.cpp makes of broken logits is what comes out; its token is one of the vocabulary."""
    row.logits[:] = 0
    row.logits[17] = 1
    row.logits[places] = math.nan
    assert row.sample(GREEDY) == row.greedy_in_c()
    biased = Sampling(temperature=0.0, logit_bias=((3, 0.5),))
    assert row.sample(biased) == row.greedy_in_c(((3, 0.5),))
