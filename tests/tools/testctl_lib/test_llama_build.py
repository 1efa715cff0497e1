# SPDX-License-Identifier: GPL-3.0-only
"""How llama.cpp is built for a machine, and the key of its wheel."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from testctl_lib import llama_build
from testctl_lib.llama_build import Recipe
from testctl_lib.packages import locked_requirement, locked_version
from testctl_lib.steps import ToolError, build_percentage


def test_wheels_are_told_apart_by_all_that_matters() -> None:
    """Version, backend, flags and instruction sets each change the key; how AMX was found does not."""
    plain = Recipe("1.0", "cpu", (), ("AVX2",), "absent")
    others = [
        plain._replace(version="1.1"),
        plain._replace(backend="cuda"),
        plain._replace(flags=("-DX=1",)),
        plain._replace(instruction_sets=("AVX2", "AVX512F")),
    ]
    assert len({plain.key, *(other.key for other in others)}) == 5
    assert plain._replace(amx="works").key == plain.key


def test_broken_amx_is_built_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Advertised and working AMX is used; advertised and broken AMX is turned off for C and C++."""
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    monkeypatch.setattr(llama_build, "instruction_sets", lambda: ("AMX_TILE", "AVX2"))
    monkeypatch.setattr(llama_build, "amx_works", lambda: True)
    assert llama_build.recipe("cpu").flags == ()
    monkeypatch.setattr(llama_build, "amx_works", lambda: False)
    c_flags, cxx_flags = llama_build.recipe("cpu").flags
    assert c_flags == "-DCMAKE_C_FLAGS=-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
    assert cxx_flags.startswith("-DCMAKE_CXX_FLAGS=")


def test_flags_of_the_user_join_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """CMAKE_ARGS is taken as a shell would split it, after the backend's own flags."""
    monkeypatch.setattr(llama_build, "instruction_sets", lambda: ("AVX2",))
    monkeypatch.setenv("CMAKE_ARGS", "-DA=1 '-DB=2 3'")
    assert llama_build.recipe("vulkan").flags == ("-DGGML_VULKAN=on", "-DA=1", "-DB=2 3")


@pytest.mark.process
def test_the_compiler_says_what_this_cpu_can() -> None:
    """The names are those of macros, without tuning and versions, and the same each time."""
    sets = llama_build.instruction_sets()
    assert sets == llama_build.instruction_sets()
    assert sets
    assert all("tune" not in name for name in sets)


@pytest.mark.process
def test_the_amx_probe_is_a_program() -> None:
    """It compiles and answers, whatever this CPU can do."""
    assert llama_build.amx_works() in {True, False}
    if "AMX_TILE" not in llama_build.instruction_sets() and sys.platform == "linux":
        assert llama_build.amx_works() is False


def test_progress_of_a_build_is_read_from_its_log() -> None:
    """Both of CMake's generators are understood, and a log without either says nothing."""
    assert build_percentage("[  3%] Building\n  [ 47%] Building CXX object") == "47 %"
    assert build_percentage("[12/48] Building CXX object") == "25 %"
    assert build_percentage("Collecting llama-cpp-python") == ""


def test_a_pin_is_read_with_its_hashes(tmp_path: Path) -> None:
    """A requirement ends where the next one, or its comment, begins; what is not pinned is an error."""
    lock = tmp_path / "requirements.lock"
    lock.write_text(
        "a==1 \\\n    --hash=sha256:11 \\\n    --hash=sha256:22\n    # via b\nb==2 \\\n    --hash=sha256:33\n"
    )
    assert locked_version("a", lock) == "1"
    assert locked_requirement("a", lock) == "a==1 \\\n    --hash=sha256:11 \\\n    --hash=sha256:22\n"
    with pytest.raises(ToolError, match="does not pin c; run: tools/testctl lock"):
        locked_version("c", lock)
