# SPDX-License-Identifier: GPL-3.0-only
"""Drives an engine in tests: feeds requests, steps to the end, and keeps what came out, by id."""

from __future__ import annotations

from collections import defaultdict

from modeld.domain.model import LoadOptions
from modeld.domain.request import GenerateRequest, Sampling
from modeld.domain.request_events import FinishReason
from modeld.engine.protocol import LoadSpec, RequestAdmitted, RequestDone, RequestFailed, TokenOutput

GREEDY = Sampling(temperature=0.0)
MOST_STEPS = 5000


def generate_request(prompt=None, **fields):
    """Return a greedy request of a few tokens."""
    return GenerateRequest(prompt=prompt, **{"max_tokens": 8, "sampling": GREEDY} | fields)


def spec(path, *, fake="", **options):
    """Return a LoadSpec for a file, with one thread."""
    return LoadSpec(
        model_id="m.gguf", path=str(path), options=LoadOptions(**{"threads": 1} | options), fake=fake
    )


class EngineDriver:
    """An engine and what came out of it. Each output is checked against the contract."""

    def __init__(self, engine) -> None:
        self.engine = engine
        self.outputs = defaultdict(list)
        self.order = []
        self._next = 0

    def submit(self, request):
        """Submit a request under a new id, and return the id."""
        self._next += 1
        self.engine.submit(self._next, request)
        return self._next

    def step(self):
        """Do one step, check its outputs, and return them."""
        outputs = self.engine.step()
        for output in outputs:
            so_far = self.outputs[output.id]
            match output:
                case RequestAdmitted():
                    assert not so_far
                    assert self.running < self.engine.info.slots
                case TokenOutput():
                    assert so_far
                    assert isinstance(so_far[0], RequestAdmitted)
                    assert not isinstance(so_far[-1], RequestDone | RequestFailed)
                case RequestDone(reason=reason):
                    assert so_far or reason is FinishReason.CANCELLED
                    assert not any(isinstance(earlier, RequestDone | RequestFailed) for earlier in so_far)
                case RequestFailed():
                    assert not any(isinstance(earlier, RequestDone | RequestFailed) for earlier in so_far)
            so_far.append(output)
            self.order.append(output)
        return outputs

    def finish(self):
        """Step until nothing is left to do."""
        for _ in range(MOST_STEPS):
            if not self.engine.busy:
                return
            self.step()
        raise AssertionError(f"not done after {MOST_STEPS} steps")

    def until(self, kind, request_id):
        """Step until an output of this kind came for an id, and return it."""
        for _ in range(MOST_STEPS):
            found = [output for output in self.outputs[request_id] if isinstance(output, kind)]
            if found:
                return found[0]
            self.step()
        raise AssertionError(f"no {kind.__name__} after {MOST_STEPS} steps")

    def run(self, *requests):
        """Submit, finish, and return the ids."""
        ids = [self.submit(request) for request in requests]
        self.finish()
        return ids

    def text(self, request_id):
        """Return all text of an id."""
        return "".join(output.text for output in self.outputs[request_id] if isinstance(output, TokenOutput))

    def logprobs(self, request_id):
        """Return the log-probabilities of all tokens of an id that asked for them."""
        steps = (output.logprobs for output in self.outputs[request_id] if isinstance(output, TokenOutput))
        return [one.chosen.logprob for step in steps for one in step]

    def tokens(self, request_id):
        """Return the number of tokens that came for an id."""
        return sum(output.count for output in self.outputs[request_id] if isinstance(output, TokenOutput))

    def last(self, request_id):
        """Return the last output of an id."""
        return self.outputs[request_id][-1]

    def generate(self, request):
        """Serve one request; return (text, last output)."""
        (request_id,) = self.run(request)
        return self.text(request_id), self.last(request_id)

    @property
    def running(self):
        """How many requests hold a slot."""
        return sum(
            isinstance(outputs[0], RequestAdmitted)
            and not isinstance(outputs[-1], RequestDone | RequestFailed)
            for outputs in self.outputs.values()
            if outputs
        )
