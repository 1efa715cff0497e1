# SPDX-License-Identifier: GPL-3.0-only
"""List the backends of llama.cpp's library other than the CPU's.

Only the names of its files are looked at, and nothing is loaded, so this is for the daemon. `devices` asks.
"""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

_LIBRARY = re.compile(r"(?:lib)?ggml-([a-z]+)[\w-]*\.(?:so|dylib|dll)")
_WITHOUT_MEMORY = frozenset({"base", "cpu", "blas", "rpc", "zdnn"})
"""Libraries of ggml without memory but the machine's; `rpc` has devices only where servers are named."""


def other_backends(folder: Path | None = None) -> tuple[str, ...]:
    """Return the backends alongside the CPU that llama.cpp's library has here (`cuda`, `vulkan`, `metal`).

    Only file names are looked at. `folder`: where the library is (default: where the bindings find it).
    """
    place = _library_folder() if folder is None else folder
    if place is None:
        return ()
    try:
        names = [path.name for path in place.iterdir()]
    except OSError:
        return ()
    found = {match[1] for name in names if (match := _LIBRARY.match(name))}
    return tuple(sorted(found - _WITHOUT_MEMORY))


def _library_folder() -> Path | None:
    given = os.environ.get("LLAMA_CPP_LIB_PATH")
    if given:
        return Path(given)
    spec = importlib.util.find_spec("llama_cpp")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "lib"
