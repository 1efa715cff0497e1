# SPDX-License-Identifier: GPL-3.0-only
"""Render messages and try grammars in a process of its own, so that neither can hold up the engine.

A template can loop, and one expression of it can keep the interpreter busy for minutes or fill the
memory; nothing within a process stops that. Here it costs the client who asked at most
`render_child.CPU_S` seconds of a core, and nobody else anything: the engine goes on decoding meanwhile.
A prompt of a usual template takes 0.3 ms; the first one waits for the process, some 0.3 s. A grammar that
llguidance would not finish is refused after `guidance.TRY_CPU_S`.
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
from modeld.engine.llama.constraints.guidance import TRY_CPU_S, Trial
from modeld.engine.llama.prompts.render_child import CPU_S, LENGTH
from modeld.engine.llama.prompts.template import MAX_PROMPT, template_fault
from modeld.engine.llama.prompts.tool_form import form_of
from modeld.errors import EngineFailed, InvalidGrammar, InvalidRequest

PATIENCE_S = 30.0
"""Seconds after which a process that neither answers nor ends is given up: the machine does not run it."""
_MOST_BYTES = 8 * MAX_PROMPT
"""A longer answer is none: a character has six bytes in JSON at most."""
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
_TEMPLATE = "the model's chat template"
_SCHEMA = "the JSON schema"


class StillRendering(Exception):
    """The answer is not there yet: ask again, with the same messages or grammars."""


class PromptRenderer:
    """The chat template of one model. Use it from one thread.

    The process starts with the first messages, and ends with `close` or with this process. It may
    be started again at any time: it has no state.

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
        known = source if self._fault is None else None
        self._setup = {"source": known, "bos": bos, "eos": eos, "controls": list(controls)}
        self._child: _Child | None = None
        self._asked: object = None
        """What the process has not answered yet, if anything."""
        self.patience_s = 0.0
        """Seconds that `render` and `try_grammars` wait before they say that there is no answer yet."""

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
        try:
            reply = self._ask(messages, {"messages": messages, "tools": tools}, _TEMPLATE, CPU_S)
        except ChildProcessError as error:
            raise InvalidRequest(f"{error}; send `prompt` instead of `messages`") from error
        if "error" in reply:
            raise InvalidRequest(str(reply["error"]))
        return [str(part) for part in reply["parts"]]

    def try_grammars(self, grammars: Sequence[str]) -> Trial:
        """Return which of these Lark grammars is the first that compiles.

        Raises: StillRendering; InvalidGrammar when one takes too much time or memory; EngineFailed if the
          process cannot be run.
        """
        try:
            return msgspec.convert(self._ask(grammars, {"grammars": grammars}, _SCHEMA, TRY_CPU_S), Trial)
        except ChildProcessError as error:
            raise InvalidGrammar(f"{error}; simplify the schema") from error

    def close(self) -> None:
        """End the process. Idempotent."""
        child, self._child, self._asked = self._child, None, None
        if child is not None:
            child.close()

    def _ask(self, key: object, question: object, what: str, cpu_s: float) -> dict[str, Any]:
        """Return the answer to a question, which is the one under way if it has the same key.

        Raises: StillRendering, ChildProcessError, EngineFailed.
        """
        if self._asked is not key:
            self._begin(question, what, cpu_s)
            self._asked = key
        child = self._child
        try:
            reply = child.poll(self.patience_s) if child is not None else None
        except ChildProcessError:
            self.close()
            raise
        if reply is None:
            raise StillRendering
        self._asked = None
        return reply

    def _begin(self, question: object, what: str, cpu_s: float) -> None:
        if self._asked is not None:  # Whoever wanted that has left; it may go on for a second.
            self.close()
        if self._child is not None and not self._child.alive:
            self.close()
        if self._child is None:
            try:
                self._child = _Child(self._setup)
            except OSError as error:
                raise EngineFailed(f"the process for chat templates cannot be started ({error})") from error
        self._child.ask(msgspec.to_builtins(question), what, cpu_s)


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
        self._what, self._cpu_s = "", 0.0
        self.ask(setup, _TEMPLATE, CPU_S)

    @property
    def alive(self) -> bool:
        """Whether it runs, so far as is known without asking it."""
        return self._process.poll() is None

    def ask(self, value: object, what: str, cpu_s: float) -> None:
        """Send it something; the answer comes by `poll`. `what` may take so much CPU time."""
        self._what, self._cpu_s = what, cpu_s
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
            if reply is not None and not self._ready:
                self._ready = True
                reply = self._take()  # Both answers may have come together: nothing more would wake us.
            if reply is not None:
                return reply
            now = time.monotonic()
            if now > self._deadline:
                raise ChildProcessError(f"{self._what} gave no answer for {PATIENCE_S:g} s")
            if now >= until:
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
            raise ChildProcessError(f"{self._what} gave an answer that is too long")
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
            return f"the process for {self._what} closed its output"
        if code == -signal.SIGPROF:
            return f"{self._what} took more than {self._cpu_s:g} s and was stopped"
        cause = f"signal {-code}" if code < 0 else f"code {code}"
        return f"the process for {self._what} ended with {cause}"
