# SPDX-License-Identifier: GPL-3.0-only
"""Serve a real model, stream a haiku from it, and stop."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Generator, Mapping
from pathlib import Path

from testctl_lib.environment import ensure_installed
from testctl_lib.models import MODEL_DEMO, MODEL_STEM, ensure_models
from testctl_lib.paths import ROOT, VENV, cache
from testctl_lib.steps import ToolError, ended_how, tail
from testctl_lib.terminal import Progress, coloured, duration, heading, say

THREE_LINES = r"""
root ::= line line line
line ::= first (" " word){3,5} [,.] "\n"
first ::= [A-Z] [a-z]{0,8}
word ::= [a-z]{1,9}
"""
"""The grammar of the demo: a model this small counts no lines by itself."""


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def get(port: int, path: str, timeout: float = 5) -> tuple[int, str]:
    """Return status and text of a GET."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    finally:
        connection.close()


@contextlib.contextmanager
def daemon(port: int, models: Path) -> Generator[subprocess.Popen[bytes]]:
    """Run `modeld serve`; on the way out it is stopped if it still runs. Its log is kept if it failed."""
    log = cache("logs") / f"demo-{os.getpid()}.log"
    env = {name: value for name, value in os.environ.items() if not name.startswith("MODELD_")}
    words = ["serve", "--addr", f"127.0.0.1:{port}", "--models-dir", str(models)]
    say(coloured("2", f"$ modeld {' '.join(words)}"))
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [VENV / "bin" / "modeld", *words],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=ROOT,
            start_new_session=True,
        )
    try:
        wait_until_healthy(process, port, log)
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                say(f"the daemon did not stop within 15 s and was killed; its log: {log}")
        if process.returncode == 0:
            log.unlink()


def wait_until_healthy(process: subprocess.Popen[bytes], port: int, log: Path, limit_s: float = 60) -> None:
    """Wait for `GET /healthz` to say 200.

    Raises:
      ToolError: the daemon ended, or said nothing for `limit_s` seconds.
    """
    progress = Progress("start the daemon")
    while process.poll() is None and progress.elapsed < limit_s:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if get(port, "/healthz")[0] == 200:
                progress.end()
                return
        progress.update()
        time.sleep(0.05)  # nothing tells when it answers
    progress.end("FAILED")
    state = process.poll()
    why = f"it ended with {ended_how(state)}" if state is not None else f"no answer within {limit_s:.0f} s"
    raise ToolError(f"modeld did not start: {why}. The end of its log {log}:\n{tail(log)}")


def stream(port: int, request: Mapping[str, object]) -> dict[str, object]:
    """Print the text of `POST /infer` as it arrives, and return the last line.

    Raises:
      ToolError: the daemon refused, or the stream ended without its last line.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    progress: Progress | None = Progress("wait for the model")
    try:
        connection.request("POST", "/infer", json.dumps(request), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise ToolError(f"POST /infer said {response.status}: {response.read().decode(errors='replace')}")
        for line in iter(response.readline, b""):
            if not line.strip():
                continue
            part: dict[str, object] = json.loads(line)
            if "event" in part and progress:
                progress.update(describe_event(part))
                continue
            if progress:
                progress.end()
                progress = None
            if part.get("done"):
                say()
                if "error" in part:
                    raise ToolError(f"the stream failed: {part['error']}")
                return part
            print(part.get("token", ""), end="", flush=True)
    finally:
        connection.close()
    raise ToolError("the stream ended without its last line; that is a defect of modeld")


def describe_event(part: Mapping[str, object]) -> str:
    """Return a few words about a waiting event of the stream."""
    if part["event"] == "loading":
        done = part.get("progress")
        return f"loading {float(done) * 100:.0f} %" if isinstance(done, int | float) else "loading"
    if part["event"] == "queued":
        return f"queued at position {part.get('position', '?')}"
    return str(part["event"])


def show_status(port: int) -> None:
    """Print `GET /status` as a short table."""
    status = json.loads(get(port, "/status")[1])
    rows = [["model", "state", "MiB", "inflight", "queue", "tokens/s"]]
    for item in status.get("instances", []):
        numbers = [f"{item['est_vram_mb']:.0f}", str(item["inflight"]), str(item["queue_len"])]
        rate = item.get("tokens_per_second") or 0
        rows.append([item["model_id"], item["state"], *numbers, f"{rate:.1f}"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        say("   " + "  ".join(field.ljust(width) for field, width in zip(row, widths, strict=True)).rstrip())
    budget = f"budget {status['budget_mb']:.0f} MiB" if status.get("budget_mb") else "no budget"
    say(
        f"   {budget}, used {status['used_est_mb']:.0f} MiB, loads {status['loads_total']}, "
        f"evictions {status['evictions_total']}, up {status['uptime_seconds']:.0f} s"
    )


def demo(arguments: argparse.Namespace) -> int:
    """Stream a haiku from a real model; see `testctl demo --help`."""
    started = time.monotonic()
    heading("set up")
    models = ensure_models(ensure_installed())
    say(f"ok everything is there ({duration(time.monotonic() - started)})")
    heading("modeld serve")
    port = free_port()
    with daemon(port, models) as process:
        heading(f"POST /infer ({MODEL_DEMO})")
        haiku = "Write a haiku about the sea at night."
        request = {
            "model": MODEL_DEMO,
            "messages": [{"role": "user", "content": haiku}],
            "max_tokens": 64,
            "temperature": 0.4,
            "seed": 4,
            "grammar": THREE_LINES,
            "events": True,
        }
        say(coloured("2", f"> {haiku}"))
        last = stream(port, request)
        stats, usage = last.get("stats"), last.get("usage")
        if isinstance(stats, dict) and isinstance(usage, dict):
            say(f"   {usage['completion_tokens']} tokens, {stats['tokens_per_second']:.1f} tokens/s")
            say(f"   first token after {stats['ttft_ms']} ms, of which {stats['load_ms']} ms loading")
            say(f"   ended by {last['finish_reason']}")
        heading("GET /status")
        show_status(port)
        if arguments.keep:
            keep(process, port)
        heading("SIGTERM")
        progress = Progress("stop the daemon")
        process.terminate()
        try:
            code = process.wait(15)
        except subprocess.TimeoutExpired:
            raise ToolError("the daemon did not stop within 15 s of SIGTERM") from None
        if code != 0:
            raise ToolError(f"the daemon was told to stop and ended with {ended_how(code)} instead of 0")
        progress.end(detail="exit code 0")
    say(f"done in {duration(time.monotonic() - started)}")
    return 0


def keep(process: subprocess.Popen[bytes], port: int) -> None:
    """Leave the daemon running until Ctrl-C, with commands to try."""
    body = json.dumps({"prompt": "The sea is", "model": MODEL_STEM + ".Q8_0.gguf", "max_tokens": 48})
    heading("still running; try these in another terminal, and end it here with Ctrl-C")
    for path in ("/models", "/status", "/metrics"):
        say(f"   curl -s http://127.0.0.1:{port}{path}")
    say(f"   curl -sN http://127.0.0.1:{port}/infer -H 'Content-Type: application/json' -d '{body}'")
    say(f"   open http://127.0.0.1:{port}/docs in a browser")
    try:
        process.wait()
    except KeyboardInterrupt:
        say()
        return
    raise ToolError(f"the daemon ended by itself with {ended_how(process.returncode)}")
