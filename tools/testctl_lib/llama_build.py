# SPDX-License-Identifier: GPL-3.0-only
"""Decide how llama.cpp is built for this CPU, and build its wheel once."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from testctl_lib.packages import install_command, locked_requirement, locked_version, pip
from testctl_lib.paths import VENV, cache, locked, scratch
from testctl_lib.steps import ToolError
from testctl_lib.terminal import say

BACKENDS: Mapping[str, tuple[str, ...]] = {
    "cpu": (),
    "cuda": ("-DGGML_CUDA=on",),
    "vulkan": ("-DGGML_VULKAN=on",),
    "metal": ("-DGGML_METAL=on",),
}
AMX_OFF = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"

AMX_PROBE = r"""
#define _GNU_SOURCE
#include <immintrin.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(void) {
    /* ARCH_REQ_XCOMP_PERM for XFEATURE_XTILEDATA: the kernel gives tiles only to those who ask. */
    if (syscall(SYS_arch_prctl, 0x1023, 18) != 0) return 1;
    unsigned char config[64];
    memset(config, 0, sizeof config);
    config[0] = 1;                 /* palette */
    config[16] = 64;               /* tile 0: bytes a row */
    config[48] = 16;               /* tile 0: rows */
    _tile_loadconfig(config);
    _tile_zero(0);
    _tile_release();
    return 0;
}
"""


def compiler(language: str = "c") -> str | None:
    """Return the C or C++ compiler that CMake would take, or None."""
    names = ("cc", "gcc", "clang") if language == "c" else ("c++", "g++", "clang++")
    wanted = os.environ.get("CC" if language == "c" else "CXX")
    return next((name for name in (wanted, *names) if name and shutil.which(name)), None)


def instruction_sets() -> tuple[str, ...]:
    """Return what `-march=native` turns on, as the compiler itself says it: `AVX2`, `AMX_TILE`, ...

    llama.cpp is built with that flag, so these names decide whether a wheel runs on this machine.

    Raises:
      ToolError: there is no C compiler.
    """
    found = compiler()
    if found is None:
        raise ToolError(f"no C compiler found; fix it with: {install_command('build-essential')}")

    def macros(*flags: str) -> set[str]:
        done = subprocess.run(
            [found, *flags, "-dM", "-E", "-x", "c", os.devnull], capture_output=True, text=True, check=False
        )
        return set(re.findall(r"^#define __([A-Z0-9_]+?)__ 1$", done.stdout, re.MULTILINE))

    extra = macros("-march=native") - macros()
    return tuple(sorted(extra)) or (platform.processor() or platform.machine(),)


def amx_works() -> bool:
    """Run one AMX instruction in a child: some virtual machines advertise AMX and die of it."""
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "amx.c"), Path(folder, "amx")
        source.write_text(AMX_PROBE)
        build = [compiler() or "cc", "-mamx-tile", "-o", str(program), str(source)]
        if subprocess.run(build, capture_output=True, check=False).returncode != 0:
            return False
        return subprocess.run([program], capture_output=True, check=False).returncode == 0


class Recipe(NamedTuple):
    """How llama-cpp-python is built here, and the key that its wheel is kept under."""

    version: str
    backend: str
    flags: tuple[str, ...]
    instruction_sets: tuple[str, ...]
    amx: str

    @property
    def key(self) -> str:
        """The folder's name: wheels with the same key are interchangeable.

        The wheel holds no Python extension (py3-none), so the version of Python is no part of it.
        """
        facts = json.dumps([self.flags, self.instruction_sets, platform.system(), platform.machine()])
        return f"{self.version}-{self.backend}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"


def recipe(backend: str) -> Recipe:
    """Decide how to build llama-cpp-python for this machine."""
    sets = instruction_sets()
    flags = list(BACKENDS[backend])
    amx = "absent"
    if "AMX_TILE" in sets:
        amx = "works" if amx_works() else "advertised, but broken: built without"
        if amx != "works":
            flags += [f"-DCMAKE_C_FLAGS={AMX_OFF}", f"-DCMAKE_CXX_FLAGS={AMX_OFF}"]
    flags += shlex.split(os.environ.get("CMAKE_ARGS", ""))
    return Recipe(locked_version("llama-cpp-python"), backend, tuple(flags), sets, amx)


def ensure_wheel(how: Recipe) -> Path:
    """Return the wheel of llama-cpp-python for this machine, built if the cache has none."""
    folder = cache("wheels", how.key)
    with locked(f"wheel-{how.key}"):
        wheels = sorted(folder.glob("*.whl"))
        if wheels:
            return wheels[0]
        require_toolchain()
        with scratch(folder) as part:
            requirement = part / "requirement.txt"
            requirement.write_text(locked_requirement("llama-cpp-python"))
            memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
            jobs = max(1, min(os.cpu_count() or 1, int(memory_gib / 1.5)))
            say(f"   llama.cpp is built for this CPU once, in about ten minutes on two cores; AMX {how.amx}")
            pip(
                f"build llama-cpp-python {how.version} ({how.backend})",
                VENV,
                *("wheel", "-v", "--no-deps", "--no-cache-dir", "--no-binary", "llama-cpp-python"),
                *("--require-hashes", "-r", requirement, "-w", part),
                CMAKE_ARGS=shlex.join(how.flags),
                CMAKE_BUILD_PARALLEL_LEVEL=str(jobs),
            )
            built = next(part.glob("*.whl"))
            (folder / "recipe.json").write_text(json.dumps(how._asdict(), indent=2) + "\n")
            return built.rename(folder / built.name)


def require_toolchain() -> None:
    """Stop with the remedy when something that the build needs is missing."""
    missing = [] if compiler("c++") else ["build-essential"]
    if not (shutil.which("make") or shutil.which("ninja")):
        missing.append("make")
    if missing:
        raise ToolError(f"building llama.cpp needs a C++ toolchain; fix it with: {install_command(*missing)}")
