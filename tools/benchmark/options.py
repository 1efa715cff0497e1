# SPDX-License-Identifier: GPL-3.0-only
"""What the command lines of all modes have in common."""

from __future__ import annotations

import argparse
import contextlib
import shlex
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

from benchmark.daemon import BenchError
from benchmark.llama_server import ensure_built, llama_server
from benchmark.systems import HttpSystem, Setup, own_modeld


class Mode(NamedTuple):
    """One measurement: what its help says, its options, and what runs it (returns the exit code)."""

    text: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def whole(low: int, high: int) -> Callable[[str], int]:
    """Return a parser of whole numbers within bounds: a benchmark must end."""

    def number(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is not from {low} to {high}")
        return value

    return number


def counts(text: str) -> list[int]:
    """Parse `1,4,8,16`."""
    return sorted({whole(1, 64)(part) for part in text.split(",")})


def chosen(noun: str, given: str, known: Sequence[str]) -> list[str]:
    """Return the words of a list with commas. Raises: BenchError for one that is not known."""
    words = given.split(",")
    unknown = set(words) - set(known)
    if unknown:
        raise BenchError(f"there is no {noun} {min(unknown)}; there are {', '.join(known)}")
    return words


def modeld_flags(options: argparse.Namespace) -> list[str]:
    """Return the flags for `modeld serve` that the command line has added."""
    fake = [] if options.fake is None else ["--engine", "fake", "--fake", options.fake]
    return [*shlex.split(options.modeld), *fake]


def add_llama_server(mode: argparse.ArgumentParser) -> None:
    """Add the option that measures llama.cpp's own server too."""
    text = "measure llama.cpp's own server too, with equal settings (built once into the cache)"
    mode.add_argument("--with-llama-server", action="store_true", help=text)


@contextlib.contextmanager
def servers(options: argparse.Namespace, setup: Setup) -> Generator[list[HttpSystem]]:
    """Start modeld and, if it was asked for, llama.cpp's own server."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(own_modeld(setup, modeld_flags(options)))]
        if options.with_llama_server:
            found.append(stack.enter_context(llama_server(ensure_built(), setup)))
        yield found
