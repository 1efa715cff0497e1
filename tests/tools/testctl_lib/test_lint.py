# SPDX-License-Identifier: GPL-3.0-only
"""What `testctl lint` finds by itself: lines that need a reason and give none."""

from __future__ import annotations

import pytest
from testctl_lib.lint import unreasoned


@pytest.mark.parametrize(
    ("line", "lacks"),
    [
        ("import os  # noqa: F401  # this module is imported for its side effects", ""),
        ("import os  # noqa: F401", "reason"),
        ("import os  # noqa", "rule"),
        ("import os  # noqa: F401  # why", "reason"),
        ("x = f()  # type: ignore[misc]  # the stub is wrong about it", ""),
        ("x = f()  # type: ignore[misc]", "reason"),
        ("x = f()  # pyright: ignore", "rule"),
        ("x = '# noqa'", ""),
        ("x = f()  # nobody ignores a noqa in the middle", ""),
        ("try: f()\nexcept Exception: pass", "catches everything"),
        ("try: f()\nexcept (Exception, OSError): pass", "catches everything"),
        ("try: f()\nexcept: pass", "catches everything"),
        ("try: f()\nexcept* Exception as group: pass", "catches everything"),
        ("try: f()\nexcept BaseException:  # closed, whatever it is\n  raise", ""),
        ("try: f()\nexcept OSError: pass", ""),
        ("time.sleep(1)", "time.sleep"),
        ("time.sleep(1)  # nothing tells when it is there", ""),
        ("raise NotImplementedError", "abstract"),
        ("raise NotImplementedError('x')", "abstract"),
    ],
)
def test_what_is_silenced_needs_a_reason(line: str, lacks: str) -> None:
    """A suppression, a handler of everything and a blind wait are found when their line does not say why."""
    found = [complaint for _, complaint in unreasoned(line + "\n")]
    assert len(found) == bool(lacks)
    assert all(lacks in complaint for complaint in found)
