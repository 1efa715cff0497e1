# SPDX-License-Identifier: GPL-3.0-only
"""How large the body of a request says that it will be, as soon as it says so."""

from __future__ import annotations

import h11


class BodySize:
    """Adds up the chunks of one body, with what the one under way still has to bring.

    Attributes:
      too_large: that is more than any body may have.
    """

    def __init__(self, parser: h11.Connection, most: int) -> None:
        self._parser = parser
        self._most = most
        self._taken = 0
        self.too_large = False

    def grew(self, size: int) -> bool:
        """Note that so many bytes were parsed; True when the body turns out to be too large by it."""
        if self.too_large:
            return False
        self._taken += size
        # h11 tells nobody what a chunk still has to bring; without its reader a body is refused once it came.
        reader: object = getattr(self._parser, "_reader", None)
        self.too_large = self._taken + getattr(reader, "_bytes_in_chunk", 0) > self._most
        return self.too_large
