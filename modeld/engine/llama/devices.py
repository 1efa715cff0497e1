# SPDX-License-Identifier: GPL-3.0-only
"""Which devices llama.cpp's library offers, and their memory, by ggml's device interface.

To ask a GPU for its memory is to begin to use it: its driver loads, a context of some hundred MiB is made,
and a driver that crashes ends the process. So `list_devices` is for a short process (`worker.device_look`),
and `other_backends` tells, without loading anything, whether there is anybody to ask.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
from pathlib import Path

from modeld.core.devices import Device, DeviceKind

_KINDS = (DeviceKind.CPU, DeviceKind.GPU, DeviceKind.IGPU, DeviceKind.ACCELERATOR)
"""By the number of ggml's enumeration."""
_LIBRARY = re.compile(r"(?:lib)?ggml-([a-z]+)[\w-]*\.(?:so|dylib|dll)")
_WITHOUT_MEMORY = frozenset({"base", "cpu", "blas", "rpc", "zdnn"})
"""Libraries of ggml without memory but the machine's; `rpc` has devices only where servers are named."""
_MOST_DEVICES = 64


def other_backends(folder: Path | None = None) -> tuple[str, ...]:
    """Return the backends beside the CPU that llama.cpp's library has here (`cuda`, `vulkan`, `metal`).

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


def list_devices() -> tuple[Device, ...]:
    """Ask every device for its memory, in llama.cpp's order.

    Of two that are the same card, offered by two backends, the first is told, as llama.cpp uses that one.
    The CPU reports all of its memory as free; who calls knows better.
    """
    from modeld.engine.llama.ggml import Props, base, registry  # noqa: PLC0415  # loads llama.cpp: for the child alone
    from modeld.engine.llama.library import initialise  # noqa: PLC0415  # loads llama.cpp: for the child alone

    initialise()
    devices: list[Device] = []
    for place in range(min(registry().ggml_backend_dev_count(), _MOST_DEVICES)):
        props = Props()
        base().ggml_backend_dev_get_props(registry().ggml_backend_dev_get(place), ctypes.byref(props))
        known = 0 <= props.type < len(_KINDS)
        devices.append(
            Device(
                name=_text(props.name),
                kind=_KINDS[props.type] if known else DeviceKind.OTHER,
                description=_text(props.description),
                free=props.free,
                total=props.total,
                id=_text(props.id),
            )
        )
    ids = [device.id for device in devices]
    return tuple(
        device for place, device in enumerate(devices) if not device.id or device.id not in ids[:place]
    )


def _text(raw: bytes | None) -> str:
    return (raw or b"").decode("utf-8", errors="replace")
