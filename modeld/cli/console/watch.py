# SPDX-License-Identifier: GPL-3.0-only
"""`--watch`: redraw a view until Ctrl-C, and wait for a daemon that restarts.

On a terminal the picture is redrawn in place, on the alternate screen as `top` does, and the last
one stays when the command ends. Into a pipe each picture follows the one before, after an empty line;
with `--json` each answer is a line.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

import click
import msgspec
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from modeld.cli.client import CannotConnect, Denied
from modeld.cli.console.exit_codes import complain
from modeld.cli.console.follow import pause
from modeld.cli.console.format import clock, line, span
from modeld.cli.console.screen import Screen
from modeld.cli.target import Target

Parts = Sequence[RenderableType]
Ask = Callable[[], bytes]
View = Callable[[bytes, int | None], Parts]
"""An answer and the width of the terminal become what is shown."""

PASSING = frozenset({429, 500, 502, 503, 504})
"""What a daemon says that starts, stops or is too busy: no reason to give up."""
_LEAST_S = 0.1


class Seconds(click.ParamType[float]):
    """The pause of `--watch`."""

    name = "seconds"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds; `2` and `2s` are the same."""
        try:
            seconds = float(str(value).removesuffix("s"))
        except ValueError:
            seconds = -1.0
        if not _LEAST_S <= seconds <= 86400:
            self.fail(f"{value!r} must be seconds, from {_LEAST_S} to 86400", param, ctx)
        return seconds


watch_option = click.option(
    "--watch", "-w", "watch_s", is_flag=False, flag_value="2", type=Seconds(), metavar="[SECONDS]",
    help="Show it again every so many seconds (2), until Ctrl-C.",
)  # fmt: skip


class Outage(msgspec.Struct):
    """Since when the daemon does not answer, and how often it was tried."""

    since: float
    why: str
    tries: int = 1

    def told(self, target: Target, now: float) -> str:
        """Say it in a sentence; `now` and `since` are seconds since the epoch."""
        return (
            f"{target.place} does not answer since {clock(self.since)} ({span(now - self.since)}, "
            f"{self.tries} tries): {self.why}; what is shown is from before"
        )


def show(
    screen: Screen, target: Target, ask: Ask, view: View, *, as_json: bool, watch_s: float | None
) -> bytes:
    """Show an answer of the daemon: once, or with `watch_s` until Ctrl-C, which is its regular end.

    The first answer must come; later ones may be missing. Returns the first.

    Raises: as `Api.get`, of the first try; later only for what will not pass.
    """
    first = ask()
    if watch_s is None:
        _print(screen, first, view, as_json=as_json)
        return first
    with suppress(KeyboardInterrupt), _ended_by_sigterm():
        if screen.is_terminal and not as_json:
            _redraw(screen, target, first, ask, view, watch_s=watch_s)
        else:
            _repeat(screen, target, first, ask, view, as_json=as_json, watch_s=watch_s)
    return first


def _print(screen: Screen, answer: bytes, view: View, *, as_json: bool) -> None:
    if as_json:
        screen.json(answer)
    else:
        screen.show(view(answer, screen.width))


def _redraw(screen: Screen, target: Target, first: bytes, ask: Ask, view: View, *, watch_s: float) -> None:
    answer = first
    outage: Outage | None = None
    back = ""
    try:
        with Live(console=screen.console, screen=True, auto_refresh=False) as live:
            while True:
                notice = _notice(target, outage, back, watch_s)
                live.update(Group(notice, *view(answer, screen.width)), refresh=True)
                pause(watch_s)
                was = outage
                fresh, outage = _try(ask, was)
                answer = fresh or answer
                if was is not None and outage is None:
                    back = f"; it did not answer from {clock(was.since)} to {clock(time.time())}"
    finally:
        screen.show(view(answer, screen.width))


def _notice(target: Target, outage: Outage | None, back: str, watch_s: float) -> Text:
    if outage is not None:
        return line((outage.told(target, time.time()), "bold red"))
    return line((f"{clock(time.time())}, every {watch_s:g} s until Ctrl-C{back}", "dim"))


def _repeat(
    screen: Screen,
    target: Target,
    first: bytes,
    ask: Ask,
    view: View,
    *,
    as_json: bool,
    watch_s: float,
) -> None:
    answer: bytes | None = first
    outage: Outage | None = None
    while True:
        if answer is not None:
            _print(screen, answer, view, as_json=as_json)
            if not as_json:
                screen.show([""])
        pause(watch_s)
        was = outage
        answer, outage = _try(ask, was)
        if was is None and outage is not None:
            complain(f"{target.place} does not answer: {outage.why}; trying again every {watch_s:g} s")
        elif was is not None and outage is None:
            complain(f"{target.place} answers again, after {span(time.time() - was.since)}")


def _try(ask: Ask, outage: Outage | None) -> tuple[bytes | None, Outage | None]:
    """Ask once; what may pass is an outage."""
    try:
        return ask(), None
    except CannotConnect as error:
        why = str(error)
    except Denied as error:
        if error.status not in PASSING:
            raise
        why = str(error)
    if outage is None:
        return None, Outage(time.time(), why)
    return None, Outage(outage.since, why, outage.tries + 1)


@contextmanager
def _ended_by_sigterm() -> Generator[None]:
    """Let SIGTERM and SIGHUP end the block as exceptions do, so that the terminal is put right."""

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
