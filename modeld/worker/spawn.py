# SPDX-License-Identifier: GPL-3.0-only
"""Start a worker process with a minimal environment.

It gets one socket, /dev/null as input, and a pipe for what it writes; no other descriptor, and of the
environment only what llama.cpp, its backends and the C library read. It has a session of its own,
so that Ctrl-C on the daemon's terminal does not reach it.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import trio

import modeld
from modeld.engine.llama.footprint import KEPT_BYTES

CHUNK = 65536
"""Bytes that are read at once, at most."""
GONE_S = 5.0
"""How long a cleanup waits for a process that it killed: a driver or a disk can hold one for ever."""
_POLL_S = 0.01
_PASSED = re.compile(
    r"PATH|HOME|USER|TMPDIR|TZ|LANG|LANGUAGE|LC_[A-Z]+|XDG_CACHE_HOME|XDG_RUNTIME_DIR"
    r"|LD_LIBRARY_PATH|LD_PRELOAD|DYLD_[A-Z_]+|MALLOC_[A-Z_]+|GLIBC_TUNABLES"
    r"|(LLAMA|GGML|GOMP|OMP|KMP|OPENBLAS|MKL|CUDA|NVIDIA|NCCL|HIP|HSA|ROCR|ROCM|AMD|GPU|VK|MESA|RADV"
    r"|ONEAPI|SYCL|ZE|ZES|UR|METAL|MTL)_[A-Z0-9_]+"
)
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL")


class Spawned:
    """A process that was started, and the daemon's ends of what joins the two. Owns both descriptors.

    Attributes:
      process: the process; nobody has waited for it.
      sock: messages, both ways; does not block.
      log_fd: what it writes to standard output and error.
    """

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket, log_fd: int) -> None:
        self.process = process
        self.sock = sock
        self.log_fd = log_fd

    async def receive(self) -> bytes:
        """Wait for the next bytes of its messages; none when the child has closed its end, or is gone."""
        while True:
            await trio.lowlevel.wait_readable(self.sock)
            try:
                return self.sock.recv(CHUNK)
            except BlockingIOError:
                continue
            except OSError:
                return b""

    def close(self) -> None:
        """Close both descriptors. The child ends itself when it notices."""
        self.sock.close()
        os.close(self.log_fd)


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what a worker process may know of the daemon's environment.

    The places Python imports from are those of this process, so that both run the same code.
    """
    env = {
        name: value for name, value in environ.items() if _PASSED.fullmatch(name) and not _SECRET.search(name)
    }
    env["GGML_NO_BACKTRACE"] = "1"  # An abort would first start a debugger.
    env.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy only looks at arrays here.
    # By default glibc keeps up to 64 MiB of what was freed, the more the larger it was: what llama.cpp
    # replaces (a work area that grows with depth) would stay resident, and no estimate would hold.
    env.setdefault("MALLOC_MMAP_THRESHOLD_", str(KEPT_BYTES))
    env.setdefault("MALLOC_TRIM_THRESHOLD_", str(8 << 20))
    own = str(Path(modeld.__file__).resolve().parents[1])
    env["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([own, *(path for path in sys.path if path)]))
    return env


def spawn(model_id: str, module: str = "modeld.worker.child") -> Spawned:
    """Start a worker process, or another program of this package that is told the same.

    Takes a few ms, until the new program runs.

    To be called from the main thread: Linux ties a child to the thread that started it
    (`PR_SET_PDEATHSIG`), and one of another thread is only told by the end of its socket.
    Raises: OSError when there can be no more processes or descriptors.
    """
    ours, theirs = socket.socketpair()
    reader = writer = -1
    try:
        reader, writer = os.pipe()
        tied_to = os.getpid() if threading.current_thread() is threading.main_thread() else 0
        command = [sys.executable, "-P", "-S", "-m", module]
        process = subprocess.Popen(  # noqa: S603  # this interpreter runs a module of modeld; a name is only shown, and passes through no shell
            [*command, str(theirs.fileno()), str(tied_to), model_id],
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=writer,
            pass_fds=(theirs.fileno(),),
            env=child_environment(os.environ),
            cwd="/",
            start_new_session=True,
        )
    except BaseException:  # whatever it is: no descriptor leaks
        ours.close()
        if reader >= 0:
            os.close(reader)
        raise
    finally:
        theirs.close()
        if writer >= 0:
            os.close(writer)
    ours.setblocking(False)
    os.set_blocking(reader, False)
    return Spawned(process, ours, reader)


async def wait_until_gone(process: subprocess.Popen[bytes]) -> None:
    """Wait until a process has ended, and take its exit code."""
    while process.poll() is None:
        try:
            descriptor = os.pidfd_open(process.pid)
        except (AttributeError, OSError):  # Not on this system, or no descriptor is left.
            await trio.sleep(_POLL_S)
            continue
        try:
            await trio.lowlevel.wait_readable(descriptor)
        finally:
            os.close(descriptor)
    await trio.lowlevel.checkpoint()
