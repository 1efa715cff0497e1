# SPDX-License-Identifier: GPL-3.0-only
"""`modeld run`: send a prompt to a running daemon and print the answer as it arrives.

Text goes to standard output; waiting, loading and figures go to standard error, when that is a
terminal. Leaving early (Ctrl-C, a closed pipe) closes the connection, which frees the slot.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping

import click
import msgspec
from rich.console import Console
from rich.status import Status

from modeld.cli.answers import read
from modeld.cli.client import Api, Broken, Refused
from modeld.cli.console.commands.completion import complete_models
from modeld.cli.console.exit_codes import leaving
from modeld.cli.target import Target, current_target, target_options, utf8
from modeld.dialects.native.wire import FinalLine, LoadingLine, QueuedLine, TokenLine
from modeld.domain.request_events import FinishReason

Line = TokenLine | QueuedLine | LoadingLine | FinalLine

_SHOWN_CONTROLS = frozenset("\n\t")
_EVENTS: Mapping[str, type[QueuedLine | LoadingLine]] = {"queued": QueuedLine, "loading": LoadingLine}


class _Head(msgspec.Struct, frozen=True):
    """What tells the kinds of lines apart."""

    event: str | None = None
    done: bool = False


def parse_line(data: bytes) -> Line | None:
    """Return the line as a value; None for an event that only a newer daemon has.

    Raises:
      Refused: it is not what modeld sends.
    """
    try:
        head = read(data, _Head)
        if head.event is not None:
            return read(data, _EVENTS[head.event]) if head.event in _EVENTS else None
        return read(data, FinalLine) if head.done else read(data, TokenLine)
    except Refused:
        raise Refused("what answers there does not speak modeld's protocol") from None


class _Screen:
    """Where the answer goes."""

    def __init__(self, *, raw: bool) -> None:
        self._raw = raw
        self._console = Console(stderr=True, highlight=False)
        self._status: Status | None = None
        self._text_ended_line = True
        self._safe = sys.stdout.isatty()

    def line(self, data: bytes, line: Line | None) -> None:
        """Show one line of the stream."""
        if self._raw:
            self._write(data.decode("utf-8", "replace") + "\n")
            return
        match line:
            case QueuedLine() | LoadingLine():
                self._wait(line)
            case TokenLine(token=token) if token:
                self.settle()
                self._write(_harmless(token) if self._safe else token)
            case FinalLine():
                self.settle()
                self.end_line()
                self._figures(line)
            case _:
                pass

    def settle(self) -> None:
        """Take the progress away."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def end_line(self) -> None:
        """Let what follows begin on a line of its own."""
        if not self._text_ended_line:
            self._write("\n")

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
        self._text_ended_line = text.endswith("\n")

    def _wait(self, line: QueuedLine | LoadingLine) -> None:
        if not self._console.is_terminal:
            return
        text = _progress(line)
        if self._status is None:
            self._status = self._console.status(text)
            self._status.start()
        else:
            self._status.update(text)

    def _figures(self, line: FinalLine) -> None:
        if not self._console.is_terminal or line.error:
            return
        stats, parts = line.stats, [f"{line.usage.completion_tokens} tokens"]
        if stats.tokens_per_second:
            parts.append(f"{stats.tokens_per_second:.1f} tokens/s")
        if stats.ttft_ms is not None:
            parts.append(f"first after {stats.ttft_ms:.0f} ms")
        if stats.load_ms:
            parts.append(f"loaded in {stats.load_ms / 1000:.1f} s")
        if line.finish_reason not in {"", FinishReason.STOP}:
            parts.append(f"ended by {line.finish_reason}")
        self._console.print(", ".join(parts), style="dim", markup=False)


def _progress(line: QueuedLine | LoadingLine) -> str:
    if isinstance(line, LoadingLine):
        return f"loading the model {100 * line.progress:.0f} %" if line.progress < 1 else "reading the prompt"
    eta = f", about {line.eta_ms / 1000:.0f} s" if line.eta_ms is not None else ""
    return f"waiting, position {line.position or '?'}{eta}"


def _harmless(text: str) -> str:
    """Return `text` without control characters: a model must not steer the terminal."""
    return "".join(char for char in text if char.isprintable() or char in _SHOWN_CONTROLS)


def _prompt(words: tuple[str, ...]) -> str:
    if words == ("-",) or (not words and not sys.stdin.isatty()):
        text = sys.stdin.buffer.read().decode("utf-8", "replace")
    else:
        text = " ".join(words)
    if not text.strip():
        raise click.UsageError('a prompt is missing: modeld run MODEL "prompt", or - to read it from stdin')
    return text


def _number(_: click.Context, __: click.Parameter, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter("must be a finite number")
    return value


@click.command(short_help="Ask a running daemon.")
@click.argument("model", callback=utf8, shell_complete=complete_models)
@click.argument("prompt", nargs=-1, callback=utf8)
@target_options
@click.option("--system", metavar="TEXT", callback=utf8, help="System message.")
@click.option("--raw", is_flag=True, help="Send the prompt as it is, without the model's chat template.")
@click.option("--max-tokens", type=click.IntRange(1), metavar="N", help="Most tokens of the answer.")
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    metavar="T",
    callback=_number,
    help="0 is the most probable text.",
)
@click.option("--seed", type=int, metavar="N", help="The same number gives the same text.")
@click.option("--json", "as_json", is_flag=True, help="Print the lines of the stream as they are.")
def run(
    *,
    model: str,
    prompt: tuple[str, ...],
    system: str | None,
    raw: bool,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    as_json: bool,
) -> None:
    """Send PROMPT to MODEL on a running daemon, and print the answer as it arrives.

    A PROMPT of - is read from standard input. Ctrl-C cancels.

    Exits with 0 after an answer, 1 when the daemon refuses or fails, 2 for a wrong command line,
    3 when nothing answers, 130 after Ctrl-C.
    """
    target = current_target()
    if raw and system is not None:
        raise click.UsageError("--raw and --system cannot be used together")
    text = _prompt(prompt)
    body: dict[str, object] = {"model": model, "stream": True, "events": True}
    if raw:
        body["prompt"] = text
    else:
        turns = [{"role": "system", "content": system}] if system is not None else []
        body["messages"] = [*turns, {"role": "user", "content": text}]
    options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    body |= {name: value for name, value in options.items() if value is not None}
    with leaving(target):
        _stream(target, body, _Screen(raw=as_json))


def _stream(target: Target, body: Mapping[str, object], screen: _Screen) -> None:
    last: FinalLine | None = None
    try:
        with Api(target) as api, api.lines("/infer", body) as lines:
            for data in lines:
                line = parse_line(data)
                screen.line(data, line)
                last = line if isinstance(line, FinalLine) else last
    except Broken as error:
        raise Refused(f"the connection broke before the answer was complete: {error.why}") from None
    finally:
        screen.settle()
        screen.end_line()
    if last is None:
        raise Refused("the connection ended before the answer was complete")
    if last.error:
        raise Refused(last.error)
    if last.finish_reason not in {FinishReason.STOP, FinishReason.LENGTH}:
        raise Refused(f"the answer was cut: {last.finish_reason}")
