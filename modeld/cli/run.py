# SPDX-License-Identifier: GPL-3.0-only
"""`modeld run`: send a prompt to a running daemon and print the answer as it arrives.

Text goes to standard output; waiting, loading and figures go to standard error, when that is a
terminal. Leaving early (Ctrl-C, a closed pipe) closes the connection, which frees the slot.
"""

from __future__ import annotations

import math
import sys

import click
from rich.console import Console
from rich.status import Status

from modeld.cli.client import Line, Refused, infer, parse_line
from modeld.cli.console.commands.completion import complete_models
from modeld.cli.console.exit_codes import leaving
from modeld.cli.target import Target, current_target, target_options, utf8

_SHOWN_CONTROLS = frozenset("\n\t")


class _Screen:
    """Where the answer goes."""

    def __init__(self, *, raw: bool) -> None:
        self._raw = raw
        self._console = Console(stderr=True, highlight=False)
        self._status: Status | None = None
        self._text_ended_line = True
        self._safe = sys.stdout.isatty()

    def line(self, data: bytes, line: Line) -> None:
        """Show one line of the stream."""
        if self._raw:
            self._write(data.decode("utf-8", "replace") + "\n")
        elif line.event is not None:
            self._wait(line)
        elif line.token:
            self.settle()
            self._write(_harmless(line.token) if self._safe else line.token)
        elif line.done:
            self.settle()
            self.end_line()
            self._figures(line)

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

    def _wait(self, line: Line) -> None:
        if not self._console.is_terminal:
            return
        text = _progress(line)
        if self._status is None:
            self._status = self._console.status(text)
            self._status.start()
        else:
            self._status.update(text)

    def _figures(self, line: Line) -> None:
        if not self._console.is_terminal or line.error is not None:
            return
        stats, parts = line.stats, [f"{line.usage.completion_tokens} tokens"]
        if stats.tokens_per_second:
            parts.append(f"{stats.tokens_per_second:.1f} tokens/s")
        if stats.ttft_ms is not None:
            parts.append(f"first after {stats.ttft_ms:.0f} ms")
        if stats.load_ms:
            parts.append(f"loaded in {stats.load_ms / 1000:.1f} s")
        if line.finish_reason not in {None, "stop"}:
            parts.append(f"ended by {line.finish_reason}")
        self._console.print(", ".join(parts), style="dim", markup=False)


def _progress(line: Line) -> str:
    if line.event == "loading":
        progress = line.progress or 0
        return f"loading the model {100 * progress:.0f} %" if progress < 1 else "reading the prompt"
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


def _stream(target: Target, body: dict[str, object], screen: _Screen) -> None:
    last: Line | None = None
    try:
        with infer(target, body) as lines:
            for data in lines:
                line = parse_line(data)
                screen.line(data, line)
                if line.done:
                    last = line
    finally:
        screen.settle()
        screen.end_line()
    if last is None:
        raise Refused("the connection ended before the answer was complete")
    if last.error is not None:
        raise Refused(last.error)
    if last.finish_reason not in {"stop", "length"}:
        raise Refused(f"the answer was cut: {last.finish_reason}")
