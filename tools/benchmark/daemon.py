# SPDX-License-Identifier: GPL-3.0-only
"""Start a server process, wait until it listens, and stop it. Loopback only."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import IO

START_S = 60.0
STOP_S = 15.0
SPIN = "2000"
"""GOMP_SPINCOUNT for every system alike, unless the environment says otherwise; modeld's own default."""


class BenchError(Exception):
    """Something that a person has to fix; the message says what and how."""


def environment() -> dict[str, str]:
    """Return the environment of all that is measured: no settings of modeld, the same spin for all."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MODELD_")}
    if "OMP_WAIT_POLICY" not in env:
        env.setdefault("GOMP_SPINCOUNT", SPIN)
    return env


def loopback(host: str) -> str:
    """Return the address of a host on this machine.

    Raises:
      BenchError: it is elsewhere. This program sends load to its own machine only.
    """
    try:
        address = str(socket.getaddrinfo(host, None, socket.AF_INET)[0][4][0])
    except OSError as error:
        raise BenchError(f"{host} has no address: {error}") from None
    if not address.startswith("127."):
        raise BenchError(f"{host} is {address}; the bench sends load to 127.0.0.1 only")
    return address


class Server:
    """A running server process.

    Attributes:
      port: where it listens on 127.0.0.1.
      log: the last lines it wrote.
    """

    def __init__(self, command: Sequence[str], listens: str, env: dict[str, str]) -> None:
        self.command = list(command)
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=env,
        )
        self.port = 0
        self.log: list[str] = []
        self._listens = re.compile(listens)
        self._known = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait(self) -> None:
        """Wait until it says where it listens. Raises: BenchError with the end of its log."""
        if not self._known.wait(START_S) or not self.port:
            self.stop()
            end = "".join(self.log[-15:])
            raise BenchError(f"{shlex.join(self.command)} did not start:\n{end}")

    def stop(self) -> None:
        """Stop it: SIGTERM, and SIGKILL when that does not help."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                print(f"{self.command[0]} did not stop within {STOP_S:g} s and was killed", file=sys.stderr)
        self._reader.join(5)

    def _read(self) -> None:
        with piped(self.process.stderr) as lines:
            for line in lines:
                self.log.append(line)
                del self.log[:-200]
                found = None if self.port else re.search(self._listens, line)
                if found:
                    self.port = int(found[1])
                    self._known.set()
        self._known.set()


@contextlib.contextmanager
def listening(command: Sequence[str]) -> Generator[Server]:
    """Run a program that says on standard error where it listens."""
    server = Server(command, r"listens on \S+:(\d+)", environment())
    try:
        server.wait()
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def modeld(*flags: str, models_dir: Path, program: Sequence[str] = ("-m", "modeld")) -> Generator[Server]:
    """Run `modeld serve` of this Python on a free port; `program` may be another that does so."""
    with tempfile.TemporaryDirectory(prefix="modeld-bench-") as state:
        command = [sys.executable, *program, "serve", "--addr", "127.0.0.1:0"]
        command += ["--state-dir", state, "--models-dir", str(models_dir), "--dry-runs=false", *flags]
        with listening(command) as server:
            yield server


def piped(stream: IO[str] | None) -> IO[str]:
    """Return the end of a pipe that a process was started with."""
    if stream is None:
        raise BenchError("a process was started without the pipe that it is read by; this is a defect")
    return stream


def get(port: int, path: str) -> str:
    """Return the body of a GET. Raises: BenchError when its status is not 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
    finally:
        connection.close()
    if answer.status != 200:
        raise BenchError(f"GET {path} of port {port} said {answer.status}: {text[:300]}")
    return text


def wait_for(port: int, path: str, server: Server) -> None:
    """Wait until a GET says 200: llama-server listens before its model is loaded."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            get(port, path)
        except (BenchError, OSError) as error:
            if time.monotonic() > deadline or server.process.poll() is not None:
                raise BenchError(f"no 200 from {path}: {error}\n{''.join(server.log[-15:])}") from None
            time.sleep(0.05)  # nothing tells when it answers
        else:
            return


def post(port: int, path: str, body: dict[str, object], headers: str = "") -> str:
    """Return a POST request as text, ready for a socket; each of `headers` ends with a line end."""
    data = json.dumps(body)
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n{headers}"
    return f"{head}Content-Length: {len(data.encode())}\r\n\r\n{data}"
