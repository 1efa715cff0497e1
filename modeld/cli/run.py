# SPDX-License-Identifier: GPL-3.0-only
"""`modeld run`: ask a running daemon, and show the answer as it arrives.

Text goes to standard output; waiting, loading and figures go to standard error, when that is a
terminal. Leaving early (Ctrl-C, a closed pipe) closes the connection, which frees the slot.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import TypeVar
from urllib.parse import urlsplit

import click
from rich.console import Console
from rich.status import Status

from modeld.cli.client import CannotConnect, Line, Refused, infer, parse_line
from modeld.config.address import client_url, parse_address
from modeld.config.settings import Settings
from modeld.config.values import BadValue

Words = TypeVar("Words", str | None, tuple[str, ...])

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


def _utf8(_: click.Context, __: click.Parameter, value: Words) -> Words:
    """Refuse what the shell passed in another encoding: JSON cannot carry it."""
    for word in (value,) if isinstance(value, str) else value or ():
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise click.BadParameter(
                f"it is not UTF-8: character {error.start + 1} cannot be decoded; "
                "convert it, or set the locale to UTF-8"
            ) from None
    return value


def _number(_: click.Context, __: click.Parameter, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter("must be a finite number")
    return value


def _where(url: str | None, addr: str | None) -> tuple[str, str | None]:
    """Return the base URL and, for a Unix socket, its path."""
    if url is not None:
        if not _is_base_url(url):
            raise click.BadParameter("write it as http://host:port", param_hint="--url")
        return url, None
    text = addr or os.environ.get("MODELD_ADDR") or Settings().addr
    try:
        address = parse_address(text)
    except BadValue as error:
        raise click.BadParameter(str(error), param_hint="--addr") from None
    if address.fd is not None:
        raise click.BadParameter("a descriptor cannot be called; name the host and port", param_hint="--addr")
    return client_url(address), address.path


def _is_base_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


@contextmanager
def _leaving() -> Generator[None]:
    """Turn every way a run can fail into its exit code and one line."""
    try:
        yield
    except Refused as error:
        click.echo(f"modeld: {error}", err=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        click.echo("", err=True)
        raise SystemExit(130) from None


@click.command(short_help="Ask a running daemon.")
@click.argument("model", callback=_utf8)
@click.argument("prompt", nargs=-1, callback=_utf8)
@click.option(
    "--addr", metavar="ADDR", help="Address of the daemon. [env: MODELD_ADDR; default: 127.0.0.1:8080]"
)
@click.option("--url", metavar="URL", callback=_utf8, help="Its base URL, instead of an address.")
@click.option("--system", metavar="TEXT", callback=_utf8, help="System message.")
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
def run(  # noqa: PLR0917 -- click passes them by name
    model: str,
    prompt: tuple[str, ...],
    addr: str | None,
    url: str | None,
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
    base, socket_path = _where(url, addr)
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
    with _leaving():
        try:
            _stream(base, socket_path, body, _Screen(raw=as_json))
        except CannotConnect as error:
            place = socket_path or base
            click.echo(
                f"modeld: nothing answers at {place} ({error}); start the daemon with: modeld serve "
                "(or name its address with --addr)",
                err=True,
            )
            raise SystemExit(3) from None


def _stream(base: str, socket_path: str | None, body: dict[str, object], screen: _Screen) -> None:
    last: Line | None = None
    try:
        with infer(base, body, socket_path=socket_path) as lines:
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
