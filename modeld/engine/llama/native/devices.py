# SPDX-License-Identifier: GPL-3.0-only
"""List the devices of llama.cpp's library and their memory, through ggml's device interface.

To ask a GPU for its memory is to begin to use it: its driver loads, a context of some hundred MiB is made,
and a driver that crashes ends the process. So this is for a short process of its own (`worker.device_child`).
"""

from __future__ import annotations

import ctypes

from modeld.engine.llama.native.ggml import Props, base, registry
from modeld.engine.llama.native.library import initialise
from modeld.memory.devices import Device, DeviceKind

_KINDS = (DeviceKind.CPU, DeviceKind.GPU, DeviceKind.IGPU, DeviceKind.ACCELERATOR)
"""By the number of ggml's enumeration."""
_MOST_DEVICES = 64


def list_devices() -> tuple[Device, ...]:
    """Ask every device for its memory, in llama.cpp's order.

    Of two that are the same card, offered by two backends, the first is told, as llama.cpp uses that one.
    The CPU reports all of its memory as free; who calls knows better.
    """
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
