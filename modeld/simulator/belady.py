# SPDX-License-Identifier: GPL-3.0-only
"""Compute the fewest loads a trace needs, knowing the future (Belady). Pure.

Belady's rule (evict what is used again last; L. A. Belady, IBM Systems Journal 5(2), 1966) is optimal for
pages of one size that are asked for one after the other. Models have sizes, so two figures come out of it:

- `belady_loads` plays the rule with the sizes as they are: a server in order of arrival can do so well. With
  equal sizes it is the optimum of all of them; with different sizes (an NP-hard problem) it is only good.
- `fewest_loads` is a lower bound for every server in order of arrival: as many models as the budget can ever
  hold at once (the smallest ones) are played as pages of one size.

A server that lets requests for one model wait for each other needs fewer loads than either: it is not bound
to the order of arrival. What no server can go below is one load for each model that is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def belady_loads(uses: Sequence[str], sizes: Mapping[str, float], budget: float | None) -> int:
    """Count the loads when `uses` are served in order, and room is made by Belady's rule.

    `budget` and `sizes` in one unit; None is unlimited. What is larger than the budget is skipped.
    """
    next_use = _next_uses(uses)
    resident: dict[str, float] = {}  # model -> place of its next use
    loads = 0
    for place, model in enumerate(uses):
        if budget is not None and sizes[model] > budget:
            continue
        if model not in resident:
            loads += 1
            held = sum(sizes[one] for one in resident)
            while budget is not None and resident and held + sizes[model] > budget:
                victim = max(resident, key=lambda one: (resident[one], one))
                held -= sizes[victim]
                del resident[victim]
        resident[model] = next_use[place]
    return loads


def fewest_loads(uses: Sequence[str], sizes: Mapping[str, float], budget: float | None) -> int:
    """Return a number of loads that no server in order of arrival can go below."""
    fitting = [model for model in uses if budget is None or sizes[model] <= budget]
    if budget is None:
        return len(set(fitting))
    room, left = 0, budget
    for size in sorted(sizes[model] for model in set(fitting)):
        if size > left:
            break
        room, left = room + 1, left - size
    return belady_loads(fitting, dict.fromkeys(fitting, 1.0), float(room))


def _next_uses(uses: Sequence[str]) -> list[float]:
    after: dict[str, float] = {}
    result = [math.inf] * len(uses)
    for place in range(len(uses) - 1, -1, -1):
        result[place] = after.get(uses[place], math.inf)
        after[uses[place]] = float(place)
    return result
