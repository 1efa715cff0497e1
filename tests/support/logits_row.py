# SPDX-License-Identifier: GPL-3.0-only
"""Samplers over logits that a test writes into a model's own row."""

from __future__ import annotations

import numpy as np

from modeld.domain.request import Sampling
from modeld.engine.llama.constraints.matcher import logits_of
from modeld.engine.llama.native.library import lib
from modeld.engine.llama.sampling.sampler import Sampler

GREEDY = Sampling(temperature=0.0)
FREE = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
"""Nothing is left out before the draw."""


class LogitsRow:
    """The one row of logits of a decode of the tiny model, which a test may overwrite."""

    def __init__(self, engine) -> None:
        self.vocab = engine._vocab
        self.context = engine._model.context
        engine._batch.clear()
        self.number = engine._batch.add_token(self.vocab.bos, 0, 0)
        assert lib.llama_decode(self.context, engine._batch.struct) == 0
        self.logits = logits_of(self.context, self.number, self.vocab.size)

    def sample(self, sampling, prompt=(), **options):
        """Return one token, drawn after this prompt."""
        return self.draw(sampling, 1, prompt, **options)[0]

    def draw(self, sampling, count, prompt=(), **options):
        """Return so many tokens that one sampler draws, each from the logits that are there now."""
        sampler = Sampler(self.vocab, sampling, context=256, **options)
        sampler.see_prompt(np.array(prompt, dtype=np.int32))
        try:
            return [sampler.sample(self.context, self.number) for _ in range(count)]
        finally:
            sampler.close()

    def draw_preferring(self, sampler, *tokens):
        """Return the token that a sampler draws when these are the most probable ones, in this order."""
        self.logits[:] = np.linspace(1.0, 0.0, self.vocab.size)
        for place, token in enumerate(tokens):
            self.logits[token] = 100.0 - place
        return sampler.sample(self.context, self.number)

    def set_logits(self, **logits):
        """Let these tokens (`t5=1.0`) have these logits, and all others next to no chance."""
        self.logits[:] = -100
        for name, logit in logits.items():
            self.logits[int(name[1:])] = logit

    def follow_zipf(self):
        """Let probabilities fall as those of words do, which Mirostat 1 takes for granted."""
        self.logits[:] = -1.2 * np.log(np.arange(1, self.vocab.size + 1))

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

    def draw_in_c(self, count, *samplers):
        """Return so many tokens that a chain of these samplers of llama.cpp draws."""
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        for sampler in samplers:
            lib.llama_sampler_chain_add(chain, sampler)
        drawn = [lib.llama_sampler_sample(chain, self.context, self.number) for _ in range(count)]
        lib.llama_sampler_free(chain)
        return drawn
