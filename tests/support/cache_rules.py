# SPDX-License-Identifier: GPL-3.0-only
"""What may happen to requests in whatever prefix cache: the rules that machines over a cache share."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

families = {
    "root": st.integers(0, 2),
    "parts": st.integers(1, 120),
    "turn": st.integers(0, 2),
    "rest": st.integers(0, 60),
}
"""What `family` makes prompts of."""


def run(begin, end):
    """Return the tokens begin to end - 1."""
    return np.arange(begin, end, dtype=np.int32)


def family(root, parts, turn, rest):
    """Return a prompt of one of three families that part from each other at many places."""
    return np.concatenate((run(root * 100, root * 100 + parts), run(turn * 100, turn * 100 + rest)))


class CacheRules(RuleBasedStateMachine):
    """Random decodes, ends and evictions. Who inherits begins with an `engine`, and submits requests."""

    @precondition(lambda self: self.engine.running)
    @rule(which=st.integers(0, 9), count=st.integers(1, 120))
    def decode(self, which, count):
        self.engine.decode(self.engine.running[which % len(self.engine.running)], count)

    @precondition(lambda self: self.engine.running)
    @rule(which=st.integers(0, 9))
    def finish(self, which):
        """A request ends or is cancelled, wherever it is."""
        self.engine.finish(self.engine.running[which % len(self.engine.running)])

    @precondition(lambda self: self.engine.running)
    @rule(which=st.integers(0, 9))
    def drop(self, which):
        self.engine.drop(self.engine.running[which % len(self.engine.running)])

    @precondition(lambda self: self.engine.cache.retained)
    @rule(which=st.integers(0, 9))
    def forget(self, which):
        retained = self.engine.cache.retained
        self.engine.memory.perform(self.engine.cache.forget(retained[which % len(retained)]))
