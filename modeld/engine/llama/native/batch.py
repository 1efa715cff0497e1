# SPDX-License-Identifier: GPL-3.0-only
"""The one batch of a context, refilled for each decode without allocating.

`llama_batch` is a struct of parallel arrays. They are owned here, as ctypes arrays for single tokens
and as numpy views of the same memory for chunks; `n_seq_id` never changes, and `seq_id` holds addresses
of one number a slot.
"""

from __future__ import annotations

import ctypes

import numpy as np

from modeld.engine.llama.native.library import lib
from modeld.engine.llama.native.vocab import TokenArray


class Batch:
    """Tokens of several slots for one `llama_decode`.

    Attributes:
      struct: what llama.cpp is given.
      capacity: most tokens it holds.
      size: tokens written since `clear`.
    """

    def __init__(self, capacity: int, slots: int) -> None:
        self.capacity = capacity
        self.size = 0
        self._tokens = (ctypes.c_int32 * capacity)()
        self._positions = (ctypes.c_int32 * capacity)()
        self._counts = (ctypes.c_int32 * capacity)(*([1] * capacity))
        self._slots = (ctypes.c_size_t * capacity)()
        self._wanted = (ctypes.c_int8 * capacity)()
        self._token_view = np.frombuffer(memoryview(self._tokens), dtype=np.int32)
        self._position_view = np.frombuffer(memoryview(self._positions), dtype=np.int32)
        self._slot_view = np.frombuffer(memoryview(self._slots), dtype=np.uintp)
        self._wanted_view = np.frombuffer(memoryview(self._wanted), dtype=np.int8)
        self._arange = np.arange(capacity, dtype=np.int32)
        self.reach(slots)
        int32_p, int8_p = ctypes.POINTER(ctypes.c_int32), ctypes.POINTER(ctypes.c_int8)
        self.struct = lib.llama_batch()
        self.struct.token = ctypes.cast(self._tokens, int32_p)
        self.struct.pos = ctypes.cast(self._positions, int32_p)
        self.struct.n_seq_id = ctypes.cast(self._counts, int32_p)
        self.struct.seq_id = ctypes.cast(self._slots, ctypes.POINTER(int32_p))
        self.struct.logits = ctypes.cast(self._wanted, int8_p)

    def reach(self, slots: int) -> None:
        """Make it good for the slots 0 to `slots` - 1. Between `clear` and the first token only."""
        self._numbers = (ctypes.c_int32 * slots)(*range(slots))
        base, size = ctypes.addressof(self._numbers), ctypes.sizeof(ctypes.c_int32)
        self._addresses = [base + slot * size for slot in range(slots)]

    def clear(self) -> None:
        """Begin a new batch."""
        self.size = self.struct.n_tokens = 0

    def want_all(self) -> None:
        """Ask for the output of every token."""
        self._wanted_view[: self.size] = 1

    def add_token(self, token: int, position: int, slot: int) -> int:
        """Add the next token of a running slot and ask for its logits; return its row."""
        row = self.size
        self._tokens[row] = token
        self._positions[row] = position
        self._slots[row] = self._addresses[slot]
        self._wanted[row] = 1
        self.size = self.struct.n_tokens = row + 1
        return row

    def add_chunk(self, tokens: TokenArray, position: int, slot: int, *, wants_logits: bool) -> int:
        """Add consecutive prompt tokens of a slot; return the row of the last one."""
        begin, end = self.size, self.size + len(tokens)
        self._token_view[begin:end] = tokens
        self._position_view[begin:end] = self._arange[: len(tokens)]
        self._position_view[begin:end] += position
        self._slot_view[begin:end] = self._addresses[slot]
        self._wanted_view[begin:end] = 0
        self._wanted[end - 1] = wants_logits
        self.size = self.struct.n_tokens = end
        return end - 1
