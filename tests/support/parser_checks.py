# SPDX-License-Identifier: GPL-3.0-only
"""What parsers make of bodies that nobody would send."""

from __future__ import annotations

import json
from collections.abc import Callable

from hypothesis import strategies as st

from modeld.errors import InvalidRequest

VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
"""Any JSON value, and NaN and infinities, which are none."""


def is_taken_or_refused(parse: Callable[[bytes], object], body: object, *kinds: type | None) -> bool:
    """Whether a parser makes one of these kinds of it (None: no value), or refuses it with a sentence."""
    try:
        taken = parse(json.dumps(body).encode())
    except InvalidRequest as error:
        return bool(error.message)
    return any(taken is None if kind is None else isinstance(taken, kind) for kind in kinds)
