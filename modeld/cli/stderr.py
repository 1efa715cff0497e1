# SPDX-License-Identifier: GPL-3.0-only
"""Print the daemon's start-up messages, before logging runs."""

from __future__ import annotations

import contextlib

import click


def say(text: str) -> None:
    """Write a line to standard error, if it can be written: a full disk is no reason not to serve."""
    with contextlib.suppress(OSError):
        click.echo(text, err=True)
