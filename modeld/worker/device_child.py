# SPDX-License-Identifier: GPL-3.0-only
"""The one-shot process that lists devices: `python -m modeld.worker.device_child FD DAEMON NAME`.

Started by `runtime.memory.device_watch` alone. It loads the drivers of GPUs, which take memory there and may
crash.
What its own context takes is gone with it, but was counted as taken when it looked.
"""

from __future__ import annotations

import sys

import msgspec

from modeld.worker.oneshot_child import answer, confined
from modeld.worker.sandbox import limit_resources

_CPU_S = 20
_MEMORY_BYTES = 8 << 30
"""Of address space that drivers may write to; they reserve much, and touch little of it."""

if __name__ == "__main__":
    sock = confined(sys.argv[1:])
    limit_resources(memory=_MEMORY_BYTES, cpu_s=_CPU_S)
    from modeld.engine.llama.native.devices import list_devices

    answer(sock, msgspec.json.encode(list_devices()))
