# SPDX-License-Identifier: GPL-3.0-only
"""Exit codes of the commands, and the one line printed with each.

0: done. 1: the daemon refused, or what it did failed. 2: a wrong command line (click's).
3: no daemon answers. 130: Ctrl-C.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager

import click

from modeld.cli.client import CannotConnect, Refused
from modeld.cli.console.format import plain
from modeld.cli.target import Target

FAILED = 1
NOT_REACHABLE = 3
INTERRUPTED = 130

_ERRNO = re.compile(r"^\[Errno -?\d+\] ")


@contextmanager
def leaving(target: Target) -> Generator[None]:
    """Turn every way in which talking to the daemon can fail into its exit code and one line."""
    try:
        yield
    except Refused as error:
        complain(str(error))
        raise SystemExit(FAILED) from None
    except CannotConnect as error:
        complain(not_reachable(target, error))
        raise SystemExit(NOT_REACHABLE) from None
    except KeyboardInterrupt:
        click.echo("", err=True)
        raise SystemExit(INTERRUPTED) from None


def complain(sentence: str) -> None:
    """Write a line to standard error; what the daemon said in it cannot steer the terminal."""
    click.echo(f"modeld: {plain(sentence)}", err=True)


def not_reachable(target: Target, error: CannotConnect) -> str:
    """Say which address was tried, why there is no daemon, and what to do."""
    why = _ERRNO.sub("", str(error))
    remedy = "start the daemon with: modeld serve (or name its address with --addr)"
    if "Permission denied" in why:
        remedy = "become a user that may write to the socket"
    if "CERTIFICATE_VERIFY_FAILED" in why:
        remedy = "name the authority of its certificate with --ca-file"
    return f"nothing answers at {target.told}: {why[:1].lower()}{why[1:]}; {remedy}"
