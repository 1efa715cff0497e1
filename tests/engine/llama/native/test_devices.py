# SPDX-License-Identifier: GPL-3.0-only
"""ggml's device interface: what this machine's library says, and what is told without asking it."""

from __future__ import annotations

from pathlib import Path

import pytest

from modeld.domain.model import LoadOptions
from modeld.engine.llama.native.backends import other_backends
from modeld.engine.llama.native.devices import list_devices
from modeld.engine.llama.native.library import lib
from modeld.engine.llama.native.model import Model
from modeld.engine.llama.native.params import model_params
from modeld.engine.protocol import LoadSpec
from modeld.memory.devices import DeviceKind


@pytest.mark.llama
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


@pytest.mark.llama
def test_llama_cpp_is_told_the_place() -> None:
    """Shares for all GPUs in its order, or one GPU, or none; without a word of it everything is its own."""
    shares = model_params(LoadOptions(tensor_split=(4.0, 0.0, 7.0)))
    assert [shares.tensor_split[place] for place in range(4)] == [4.0, 0.0, 7.0, 0.0]
    assert shares.split_mode == lib.LLAMA_SPLIT_MODE_LAYER
    none = model_params(LoadOptions(gpu_layers=0, main_gpu=-1))
    assert (none.split_mode, none.main_gpu, none.n_gpu_layers) == (lib.LLAMA_SPLIT_MODE_NONE, -1, 0)
    free = model_params(LoadOptions())
    assert not free.tensor_split
    assert (free.split_mode, free.n_gpu_layers) == (lib.LLAMA_SPLIT_MODE_LAYER, -1)


@pytest.mark.parametrize(
    "options", [{"tensor_split": (1.0,)}, {"main_gpu": -1, "gpu_layers": 0}, {"main_gpu": 0}]
)
def test_a_place_is_no_harm_on_a_machine_without_gpus(tiny_path: Path, options: dict[str, object]) -> None:
    """The same config serves a machine whose GPU is gone."""
    load = LoadSpec(model_id="tiny", path=str(tiny_path), options=LoadOptions(ctx=256, slots=1, **options))
    model = Model(load, lambda _fraction: True)
    assert model.cells >= 256
    model.close()
