# SPDX-License-Identifier: GPL-3.0-only
"""The rules of a scheduling step: one list, in the order in which they run, with one number each."""

from __future__ import annotations

import re
from importlib import import_module

from modeld.scheduler import step

_LISTED = re.compile(r"^    (\d+)\. `(\w+)\.(\w+)`: \w", re.MULTILINE)


def _listed():
    assert step.__doc__ is not None
    return [(int(number), module, function) for number, module, function in _LISTED.findall(step.__doc__)]


def test_the_list_has_the_rules_in_the_order_in_which_they_run():
    """Rule 4 runs again behind rule 5; every other rule runs once."""
    listed = [getattr(import_module(f"modeld.scheduler.{module}"), name) for _, module, name in _listed()]
    assert [number for number, _, _ in _listed()] == list(range(1, len(listed) + 1))
    assert list(step.RULES) == [*listed[:5], listed[3], *listed[5:]]


def test_each_function_of_a_rule_carries_its_number():
    for number, module, name in _listed():
        function = getattr(import_module(f"modeld.scheduler.{module}"), name)
        assert function.__doc__.startswith(f"Rule {number}: "), name
