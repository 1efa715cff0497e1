# SPDX-License-Identifier: GPL-3.0-only
"""Build llama.cpp's own server once, from the sources that llama-cpp-python carries, and start it.

It is built with the flags of our wheel and runs on the wheel's own shared libraries, so that both
servers call the very same code.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sysconfig
import tarfile
from collections.abc import Generator
from pathlib import Path

from testctl_lib.environment import stamp
from testctl_lib.llama_build import Recipe, recipe, require_toolchain
from testctl_lib.packages import ensure_venv, locked_requirement, pip
from testctl_lib.paths import VENV, cache, locked, scratch
from testctl_lib.steps import ToolError, run_step

from benchmark.daemon import BenchError, Server, environment, wait_for
from benchmark.systems import HttpSystem, Setup

OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DCMAKE_SKIP_BUILD_RPATH=ON",
    "-DLLAMA_BUILD_COMMON=ON",
    "-DLLAMA_BUILD_TOOLS=ON",
    "-DLLAMA_BUILD_SERVER=ON",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_CURL=OFF",
)


def ensure_built() -> Path:
    """Return the program, built if the cache has none (some ten minutes on two cores).

    Raises: BenchError.
    """
    try:
        return _ensure_built(recipe(stamp().get("backend", "cpu")))
    except ToolError as error:
        raise BenchError(str(error)) from None


def _ensure_built(how: Recipe) -> Path:
    folder = cache("llama-server", how.key)
    program = folder / "llama-server"
    with locked(f"llama-server-{how.key}"):
        if program.exists():
            return program
        require_toolchain()
        cmake = _cmake()
        with scratch(folder) as part:
            source = _fetch(part)
            build = part / "build"
            run_step("configure llama-server", [cmake, "-S", source, "-B", build, *OPTIONS, *how.flags])
            jobs = str(os.cpu_count() or 1)
            run_step("build llama-server", [cmake, "--build", build, "--target", "llama-server", "-j", jobs])
            for library in (build / "bin").glob("*.so*"):
                shutil.copy2(library, folder / library.name)
            shutil.copy2(build / "bin" / "llama-server", program)
    return program


def _cmake() -> Path:
    found = shutil.which("cmake")
    if found:
        return Path(found)
    venv = cache("tools") / "cmake"
    if not (venv / "bin" / "cmake").exists():
        ensure_venv(venv)
        pip("install cmake", venv, "install", "-q", "cmake")
    return venv / "bin" / "cmake"


def _fetch(part: Path) -> Path:
    """Fetch llama-cpp-python's own source package, hash checked, and unpack llama.cpp out of it."""
    requirement = part / "requirement.txt"
    requirement.write_text(locked_requirement("llama-cpp-python"))
    words = ("download", "--no-deps", "--no-cache-dir", "--no-binary", "llama-cpp-python", "--require-hashes")
    pip("fetch llama-cpp-python's sources", VENV, *words, "-r", requirement, "-d", part)
    with tarfile.open(next(part.glob("*.tar.gz"))) as archive:
        archive.extractall(part, filter="data")
    return next(part.glob("llama_cpp_python-*")) / "vendor" / "llama.cpp"


@contextlib.contextmanager
def llama_server(program: Path, setup: Setup) -> Generator[HttpSystem]:
    """Start it with as many slots, cells and threads as modeld has, and defaults for the rest.

    Flash attention is off, as it is for modeld on a CPU. Its cache of old prompts in RAM is off: here no
    prompt comes twice, and copying them out of the KV cache would only cost it time.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = str(setup.threads)
    command = [str(program), "--model", str(setup.model), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--parallel", str(setup.slots), "--ctx-size", str(setup.ctx), "--threads", threads]
    command += ["--threads-batch", threads, "--ubatch-size", str(setup.ubatch), "--flash-attn", "off"]
    command += ["--cache-ram", "0"]
    own = Path(sysconfig.get_path("platlib")) / "llama_cpp" / "lib"
    env = environment()
    env["LD_LIBRARY_PATH"] = os.pathsep.join([str(own), str(program.parent)])
    server = Server(command, r"listening on \S*:(\d+)", env)
    try:
        server.wait()
        wait_for(server.port, "/health", server)
        pid, path, model = server.process.pid, "/v1/completions", setup.model.name
        yield HttpSystem("llama-server", "openai", port=server.port, path=path, model=model, pids=[pid])
    finally:
        server.stop()
