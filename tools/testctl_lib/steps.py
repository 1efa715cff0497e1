# SPDX-License-Identifier: GPL-3.0-only
"""Run long commands with their progress on the terminal and their output in a log file."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from testctl_lib.paths import ROOT, cache
from testctl_lib.terminal import Progress


class ToolError(Exception):
    """Something that a person has to fix; the message says what and how."""


def build_percentage(log_tail: str) -> str:
    """Return how far a build is by the last `[ 12%]` or `[34/56]` in its log, or nothing."""
    found = re.findall(r"\[ *(?:(\d+)%|(\d+)/(\d+))\]", log_tail)
    if not found:
        return ""
    percent, step, steps = found[-1]
    return f"{percent} %" if percent else f"{int(step) * 100 // max(1, int(steps))} %"


def tail(path: Path, size: int = 4000) -> str:
    """Return the last `size` bytes of a file as text."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        return file.read().decode(errors="replace")


def run_step(title: str, command: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> str:
    """Run a long command with its output in a log file, and return that output.

    Raises:
      ToolError: it failed; the message holds the end of its output and the log's place.
    """
    logs = cache("logs")
    log = logs / (re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") + f"-{os.getpid()}.log")
    progress = Progress(title)
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=dict(env) if env is not None else None,
            cwd=ROOT,
        )
        try:
            while process.poll() is None:
                progress.update(build_percentage(tail(log)))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
        except BaseException:  # Ctrl-C, too: the child must not go on alone
            process.terminate()
            process.wait()
            raise
    output = log.read_text(errors="replace")
    if process.returncode == 0:
        progress.end()
        log.unlink()
        return output
    progress.end("FAILED")
    end = "\n".join(f"   | {line}" for line in output.splitlines()[-30:])
    raise ToolError(
        f"{title} failed: {ended_how(process.returncode)}. The end of {log}:\n{end}\n"
        f"The command was: {shlex.join(str(part) for part in command)}"
    )


def ended_how(returncode: int) -> str:
    """Return how a process ended, in words."""
    if returncode >= 0:
        return f"exit code {returncode}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-returncode).name}"
    return f"killed by signal {-returncode}"
