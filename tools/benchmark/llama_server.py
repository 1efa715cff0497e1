# SPDX-License-Identifier: GPL-3.0-only
"""llama.cpp's own server, from the sources that llama-cpp-python carries: built once, then started.

It is built with the flags of our wheel and runs on the wheel's own shared libraries, so that both
servers call the very same code.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import os
import shutil
import socket
import sys
import sysconfig
import tarfile
from collections.abc import Generator, Sequence
from pathlib import Path
from types import ModuleType

from benchmark.daemon import BenchError, Server, environment, wait_for
from benchmark.systems import Http, Setup

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


def testctl() -> ModuleType:
    """Return tools/testctl as a module: it knows the cache, the flags and how long steps are shown."""
    program = Path(__file__).resolve().parents[1] / "testctl"
    loader = importlib.machinery.SourceFileLoader("testctl", str(program))
    spec = importlib.util.spec_from_loader("testctl", loader)
    if spec is None:
        raise BenchError(f"{program} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


def ensure_built() -> Path:
    """Return the program, built if the cache has none (some ten minutes on two cores).

    Raises: BenchError, or testctl's error, which tells of the same.
    """
    ctl = testctl()
    how = ctl.recipe(ctl.stamp().get("backend", "cpu"))
    folder = Path(ctl.cache("llama-server", how.key))
    program = folder / "llama-server"
    with ctl.locked(f"llama-server-{how.key}"):
        if program.exists():
            return program
        ctl.require_toolchain()
        cmake = _cmake(ctl)
        with ctl.scratch(folder) as part:
            source = _fetch(ctl, part)
            build = part / "build"
            command = [cmake, "-S", source, "-B", build, *OPTIONS, *how.flags]
            ctl.run_step("configure llama-server", command)
            command = [cmake, "--build", build, "--target", "llama-server", "-j", str(os.cpu_count() or 1)]
            ctl.run_step("build llama-server", command)
            for library in (build / "bin").glob("*.so*"):
                shutil.copy2(library, folder / library.name)
            shutil.copy2(build / "bin" / "llama-server", program)
    return program


def _cmake(ctl: ModuleType) -> Path:
    found = shutil.which("cmake")
    if found:
        return Path(found)
    venv = Path(ctl.cache("tools")) / "cmake"
    if not (venv / "bin" / "cmake").exists():
        ctl.ensure_venv(venv)
        pip = [venv / "bin" / "python", "-m", "pip", "install", "-q", "cmake"]
        ctl.run_step("install cmake", pip, env=ctl.pip_environment())
    return venv / "bin" / "cmake"


def _fetch(ctl: ModuleType, part: Path) -> Path:
    """Fetch llama-cpp-python's own source package, hash checked, and unpack llama.cpp out of it."""
    requirement = part / "requirement.txt"
    requirement.write_text(ctl.locked_requirement("llama-cpp-python"))
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir"]
    pip += ["--no-binary", "llama-cpp-python", "--require-hashes", "-r", str(requirement), "-d", str(part)]
    ctl.run_step("fetch llama-cpp-python's sources", pip, env=ctl.pip_environment())
    with tarfile.open(next(part.glob("*.tar.gz"))) as archive:
        archive.extractall(part, filter="data")
    return next(part.glob("llama_cpp_python-*")) / "vendor" / "llama.cpp"


@contextlib.contextmanager
def llama_server(program: Path, setup: Setup, extra: Sequence[str] = ()) -> Generator[Http]:
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
    command += ["--cache-ram", "0", *extra]
    own = Path(sysconfig.get_path("platlib")) / "llama_cpp" / "lib"
    env = environment()
    env["LD_LIBRARY_PATH"] = os.pathsep.join([str(own), str(program.parent)])
    server = Server(command, r"listening on \S*:(\d+)", env)
    try:
        server.wait()
        wait_for(server.port, "/health", server)
        yield Http(
            "llama-server",
            "openai",
            port=server.port,
            path="/v1/completions",
            model=setup.model.name,
            pids=[server.process.pid],
        )
    finally:
        server.stop()
