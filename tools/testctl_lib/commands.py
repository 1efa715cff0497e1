# SPDX-License-Identifier: GPL-3.0-only
"""Parse the command line and run one command."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence

from testctl_lib.demo import demo
from testctl_lib.doctor import doctor
from testctl_lib.environment import install, lock
from testctl_lib.lint import check_headers, check_reasons, lint
from testctl_lib.llama_build import BACKENDS
from testctl_lib.steps import ToolError
from testctl_lib.suites import measure, test
from testctl_lib.terminal import coloured, say

DESCRIPTION = (
    "Set up, demonstrate, check and measure modeld, on a machine with Python 3.11 and a C++ toolchain."
)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = argparse.ArgumentParser(prog="testctl", description=DESCRIPTION)
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(run=run, program=name)
        return made

    made = command("demo", demo, "set up everything, stream a haiku from a real model, stop cleanly")
    made.add_argument("--keep", action="store_true", help="leave the daemon running until Ctrl-C")
    made = command("install", install, "set up .venv, llama.cpp for this machine, and the test models")
    made.add_argument("--backend", choices=sorted(BACKENDS), help="what llama.cpp computes on (default: cpu)")
    made.add_argument("--into", metavar="DIR", help="also make a virtual environment for production there")
    made = command("test", test, "set up what is missing, then run all checks and tests, or one suite")
    text = "all (default), fast, extended, lint, unit, real, e2e, or a folder of tests/"
    made.add_argument("suite", nargs="?", default="all", help=text)
    made.epilog = "What follows -- goes to pytest: testctl test scheduler -- -k evict"
    text = "run ruff, flake8-async, mypy, pyright, import-linter; find missing licence lines and reasons"
    command("lint", lint, text)
    made = command("bench", measure, "measure: throughput (default), cancel, storm ...; docs/performance.md")
    made.epilog = "What follows is its mode and options; see: testctl bench throughput --help"
    text = "inject every fault for --minutes N, and check that everything comes back"
    made = command("soak", measure, text)
    made.epilog = "What follows are its options; see: testctl soak -- --help"
    command("doctor", doctor, "say what is missing on this machine, and the command that fixes it")
    made = command("lock", lock, "write requirements*.lock from pyproject.toml")
    made.add_argument("--upgrade", action="store_true", help="take the newest versions allowed")
    command("headers", lambda _: check_headers(), "find source files without a licence line")
    command("reasons", lambda _: check_reasons(), "find suppressions, catch-alls and sleeps without a reason")
    return top


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Return the command and its arguments; `rest` is what another program gets, unchanged.

    That is what follows `--`, and everything that follows `bench` or `soak` except a request for help.
    """
    end = list(words).index("--") if "--" in words else len(words)
    rest = list(words[end + 1 :])
    if words[:1] in (["bench"], ["soak"]) and words[1:2] not in (["-h"], ["--help"]):
        rest, end = [*words[1:end], *rest], 1
    arguments = parser().parse_args(words[:end])
    arguments.rest = rest
    return arguments


def main() -> int:
    """Run one command; returns the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    arguments = parse(sys.argv[1:])
    try:
        code: int = arguments.run(arguments)
    except ToolError as error:
        say(coloured("31", f"testctl: {error}"))
        return 1
    except KeyboardInterrupt:
        say("\ntestctl: interrupted")
        return 130
    return code
