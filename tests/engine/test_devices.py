# SPDX-License-Identifier: GPL-3.0-only
"""ggml's device interface: what this machine's library says, and what is told without asking it."""

from __future__ import annotations

from pathlib import Path

import pytest

from modeld.core.devices import DeviceKind
from modeld.engine.llama.devices import list_devices, other_backends


def test_the_cpu_is_a_device_with_the_memory_of_the_machine() -> None:
    """It comes with a name and a description, and says that all is free: ggml cannot know better."""
    cpu = next(device for device in list_devices() if device.kind is DeviceKind.CPU)
    assert cpu.name == "CPU"
    assert cpu.description
    assert cpu.total > 2**28
    assert 0 < cpu.free <= cpu.total


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("libggml-base.so", "libggml-cpu.so", "libggml.so", "libllama.so"), ()),
        (("libggml-cpu-haswell.so", "libggml-blas.so", "libggml-rpc.so"), ()),
        (("libggml-base.so.0", "libggml-cuda.so.0", "libggml-cuda.so"), ("cuda",)),
        (("libggml-vulkan.so", "libggml-hip.so"), ("hip", "vulkan")),
        (("libggml-metal.dylib", "libggml-base.dylib"), ("metal",)),
        (("ggml-cuda.dll", "ggml-base.dll", "readme.txt"), ("cuda",)),
    ],
)
def test_backends_are_known_by_the_names_of_their_libraries(
    tmp_path: Path, names: tuple[str, ...], found: tuple[str, ...]
) -> None:
    """Nothing is loaded for it: a folder of empty files will do."""
    for name in names:
        (tmp_path / name).touch()
    assert other_backends(tmp_path) == found


def test_a_library_elsewhere_is_looked_for_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the bindings do; a folder that is not there has no backends."""
    (tmp_path / "libggml-cuda.so").touch()
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    assert other_backends() == ("cuda",)
    assert other_backends(tmp_path / "nowhere") == ()
