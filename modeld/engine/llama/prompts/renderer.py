# SPDX-License-Identifier: GPL-3.0-only
"""Has messages rendered by a process of its own, so that no template can hold up whoever asks.

A template can loop, and one expression of it can keep the interpreter busy for minutes or fill the
memory; nothing within a process stops that. Here it costs the client who asked at the most
`render_child.CPU_S` seconds of a core, and nobody else anything: the engine goes on decoding meanwhile.
A prompt of a usual template takes 0.3 ms; the first one waits for the process, some 0.3 s.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import msgspec

from modeld.domain.request import Message, Tool
from modeld.engine.llama.prompts.render_child import CPU_S, LENGTH
from modeld.engine.llama.prompts.template import MAX_PROMPT, template_fault
from modeld.engine.llama.prompts.tool_form import form_of
from modeld.errors import EngineFailed, InvalidRequest

PATIENCE_S = 30.0
"""Seconds after which a process that neither answers nor ends is given up: the machine does not run it."""
_MOST_BYTES = 8 * MAX_PROMPT
"""A longer answer is none: a character has six bytes in JSON at the most."""
_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from modeld.engine.llama.prompts.render_child import main
main()
"""
_ROOT = str(Path(__file__).resolve().parents[3])
_ENVIRONMENT = ("LD_LIBRARY_PATH", "TZ")
"""What the process is told of our environment: nothing that could be a secret."""
_CHUNK = 256 * 1024


class StillRendering(Exception):
    """The prompt is not there yet: ask again, with the same messages."""


class PromptRenderer:
    """The chat template of one model. Use it from one thread.

    The process starts with the first messages, and ends with `close` or with this process. It may
    be started anew at any time: it has no state.

    Args:
      source: the template, None when the file has none.
      bos, eos: the texts of those tokens, for templates that write them.
      controls: the texts of all control tokens.

    Attributes:
      form: how the template teaches to write calls; None: not as anything known here.
    """

    def __init__(self, source: str | None, *, bos: str, eos: str, controls: Collection[str]) -> None:
        self._fault = template_fault(source)
        self.form = form_of(source) if self._fault is None else None
        self._setup = {"source": source, "bos": bos, "eos": eos, "controls": list(controls)}
        self._child: _Child | None = None
        self._rendering: Sequence[Message] | None = None
        self.patience_s = 0.0
        """How long `render` waits for a prompt before it says that it is not there yet."""

    @property
    def usable(self) -> bool:
        """Whether messages can be rendered."""
        return self._fault is None

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[str]:
        """Return the prompt in parts; no control token may form across two of them.

        Other messages than those that it was still rendering replace them.

        Raises: StillRendering; InvalidRequest if there is no template, or with what the template objects to,
          also when it takes too much time or memory; EngineFailed if the process cannot be run.
        """
        if self._fault is not None:
            raise InvalidRequest(f"{self._fault}; send `prompt` instead of `messages`")
        if self._rendering is not messages:
            self._begin(messages, tools)
        child = self._child
        try:
            reply = child.poll(self.patience_s) if child is not None else None
        except ChildProcessError as error:
            self.close()
            raise InvalidRequest(f"{error}; send `prompt` instead of `messages`") from error
        if reply is None:
            raise StillRendering
        self._rendering = None
        if "error" in reply:
            raise InvalidRequest(str(reply["error"]))
        return [str(part) for part in reply["parts"]]

    def close(self) -> None:
        """End the process. Idempotent."""
        child, self._child, self._rendering = self._child, None, None
        if child is not None:
            child.close()

    def _begin(self, messages: Sequence[Message], tools: Sequence[Tool]) -> None:
        if self._rendering is not None:  # Whoever wanted that has left; it may go on for a second.
            self.close()
        if self._child is not None and not self._child.alive:
            self.close()
        if self._child is None:
            try:
                self._child = _Child(self._setup)
            except OSError as error:
                raise EngineFailed(f"the process for chat templates cannot be started ({error})") from error
        self._child.ask(msgspec.to_builtins({"messages": messages, "tools": tools}))
        self._rendering = messages


class _Child:
    """The process, and what is on its way to it and from it."""

    def __init__(self, setup: object) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(  # noqa: S603  # this interpreter runs a program from this file: nothing of the command is input
                    [sys.executable, "-I", "-S", "-c", _PROGRAM, json.dumps([*sys.path, _ROOT])],
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=subprocess.DEVNULL,
                    env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                    start_new_session=True,
                )
            except BaseException:  # whatever it is: the socket does not leak
                ours.close()
                raise
        ours.setblocking(False)
        self._socket = ours
        self._outgoing = bytearray()
        self._incoming = bytearray()
        self._ready = False
        self._deadline = 0.0
        self.ask(setup)

    @property
    def alive(self) -> bool:
        """Whether it runs, so far as is known without asking it."""
        return self._process.poll() is None

    def ask(self, value: object) -> None:
        """Send it something; the answer comes by `poll`."""
        data = json.dumps(value).encode()
        self._outgoing += LENGTH.pack(len(data)) + data
        self._deadline = time.monotonic() + PATIENCE_S

    def poll(self, seconds: float) -> dict[str, Any] | None:
        """Return the answer to the last question, or None if it does not come within `seconds`.

        Raises: ChildProcessError, a sentence, when the process ended or was given up.
        """
        until = time.monotonic() + seconds
        while True:
            self._pump(max(0.0, until - time.monotonic()))
            reply = self._take()
            if reply is not None and self._ready:
                return reply
            self._ready = self._ready or reply is not None
            now = time.monotonic()
            if now > self._deadline:
                raise ChildProcessError(f"the model's chat template gave no prompt for {PATIENCE_S:g} s")
            if now >= until and reply is None:
                return None

    def close(self) -> None:
        """Kill it and wait until it is gone."""
        self._process.kill()
        self._process.wait()
        self._socket.close()

    def _pump(self, seconds: float) -> None:
        poller = select.poll()
        poller.register(self._socket, select.POLLIN | (select.POLLOUT if self._outgoing else 0))
        for _, events in poller.poll(seconds * 1000):
            with contextlib.suppress(BlockingIOError, ConnectionError):
                if self._outgoing and events & select.POLLOUT:
                    del self._outgoing[: self._socket.send(self._outgoing[:_CHUNK])]
            if events & ~select.POLLOUT:
                self._receive()

    def _receive(self) -> None:
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            raise ChildProcessError(self._why_ended())
        self._incoming += data

    def _take(self) -> dict[str, Any] | None:
        if len(self._incoming) < LENGTH.size:
            return None
        (length,) = LENGTH.unpack_from(self._incoming)
        if length > _MOST_BYTES:
            raise ChildProcessError("the model's chat template gave an answer that is too long")
        end = LENGTH.size + length
        if len(self._incoming) < end:
            return None
        reply: dict[str, Any] = json.loads(self._incoming[LENGTH.size : end])
        del self._incoming[:end]
        return reply

    def _why_ended(self) -> str:
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "the process that renders the model's chat template closed its output"
        if code == -signal.SIGPROF:
            return f"the model's chat template took more than {CPU_S:g} s for these messages and was stopped"
        cause = f"signal {-code}" if code < 0 else f"code {code}"
        return f"the process that renders the model's chat template ended with {cause}"
