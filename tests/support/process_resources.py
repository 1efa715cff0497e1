# SPDX-License-Identifier: GPL-3.0-only
"""What a process holds: memory, threads, open files, and samplers of llama.cpp."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from pathlib import Path

from modeld.engine.llama.native.library import lib

PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    """Return the resident set of this process in bytes, after everybody gave back what he could."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE


def thread_count() -> int:
    """Return how many threads this process has, those of C included."""
    return len(list(Path("/proc/self/task").iterdir()))


def descriptor_count() -> int:
    """Return how many files this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


class Samplers:
    """Follows each sampler that C makes until it is freed, by itself or with the chain that owns it.

    Attributes:
      live: those that were made and not freed.
      made: how many there ever were.
    """

    def __init__(self, monkeypatch) -> None:
        self.live: set[int] = set()
        self.made = 0
        for name in dir(lib):
            if name.startswith("llama_sampler_init") or name == "llama_sampler_chain_init":
                monkeypatch.setattr(lib, name, self._making(getattr(lib, name)))
        self._add, self._free = lib.llama_sampler_chain_add, lib.llama_sampler_free
        monkeypatch.setattr(lib, "llama_sampler_chain_add", self._adding)
        monkeypatch.setattr(lib, "llama_sampler_free", self._freeing)

    def _making(self, make):
        def made(*arguments):
            sampler = make(*arguments)
            if sampler:
                self.made += 1
                self.live.add(_address(sampler))
            return sampler

        return made

    def _adding(self, chain, sampler):
        assert _address(chain) in self.live
        self.live.remove(_address(sampler))
        self._add(chain, sampler)

    def _freeing(self, sampler):
        self.live.remove(_address(sampler))
        self._free(sampler)


def _address(pointer) -> int:
    return pointer if isinstance(pointer, int) else ctypes.cast(pointer, ctypes.c_void_p).value
