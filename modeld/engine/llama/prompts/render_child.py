# SPDX-License-Identifier: GPL-3.0-only
"""The confined process that renders chat templates and tries grammars; it may fail in any way.

    to it     the template, once; then messages and tools, or grammars, as often as it likes
    from it   an empty object when it is ready; then the parts of the prompt, a `Trial`, or an error

Each is a JSON value behind its length (4 bytes). Templates and grammars come from strangers, so the kernel
holds this process to its limits: CPU time for each question (the process ends when it is over), memory, and
no file or process that it does not have already. It ends when its input ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from modeld.domain.request import Message, Tool
from modeld.engine.llama.constraints.guidance import HEAD, TRY_CPU_S, try_grammars
from modeld.engine.llama.prompts.template import ChatTemplate
from modeld.errors import ModeldError

CPU_S = 1.0
"""CPU seconds that one prompt may take."""
MEMORY_BYTES = 512 * 1024 * 1024
"""Address space of this process; it has some 30 MiB before its first prompt."""
LENGTH = struct.Struct("<I")


def main() -> None:
    """Serve until the input ends."""
    incoming, outgoing = sys.stdin.buffer, sys.stdout.buffer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's interrupt is the daemon's to handle
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    setup = _read(incoming)
    template = ChatTemplate(**setup) if setup["source"] is not None else None
    _warm_up()
    _confine()
    _write(outgoing, {})
    while True:
        question = _read(incoming)
        signal.setitimer(signal.ITIMER_PROF, TRY_CPU_S if "grammars" in question else CPU_S)
        reply = _answer(template, question)
        _write(outgoing, reply)
        signal.setitimer(signal.ITIMER_PROF, 0)


def _answer(template: ChatTemplate | None, question: dict[str, Any]) -> dict[str, Any]:
    if template is None or "grammars" in question:
        return dict(msgspec.to_builtins(try_grammars(question["grammars"])))
    try:
        messages = msgspec.convert(question["messages"], list[Message])
        tools = msgspec.convert(question["tools"], list[Tool])
        return {"parts": template.render(messages, tools)}
    except ModeldError as error:
        return {"error": error.message}
    except MemoryError:
        return {
            "error": f"the model's chat template needs more than {MEMORY_BYTES >> 20} MiB for these messages"
        }


def _warm_up() -> None:
    """Have everything read from files that is read at its first use: modules, the time zone."""
    message = Message(role="user", content="x")
    for source in ("{{ raise_exception(strftime_now('%Y')) }}", "{{ [1][2].x }}", "{{ messages | tojson }}"):
        with contextlib.suppress(ModeldError):
            ChatTemplate(source, bos="", eos="", controls=()).render([message])
    try_grammars([f"{HEAD}start: %json {{}}\n"])


def _confine() -> None:
    """Give up what rendering does not need. What the system does not know is left out."""
    limits = [
        ("RLIMIT_AS", MEMORY_BYTES),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_FSIZE", 0),
        ("RLIMIT_NPROC", 0),
        ("RLIMIT_NOFILE", 3),
    ]
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    for name, value in limits:
        kind = getattr(resource, name, None)
        if kind is not None:
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(kind, (value, value))


def _read(stream: BinaryIO) -> Any:
    head = stream.read(LENGTH.size)
    data = stream.read(LENGTH.unpack(head)[0]) if len(head) == LENGTH.size else b""
    if not data:
        sys.stdout.flush()
        os._exit(0)
    return json.loads(data)


def _write(stream: BinaryIO, value: Any) -> None:
    data = json.dumps(value).encode()
    stream.write(LENGTH.pack(len(data)) + data)
    stream.flush()
