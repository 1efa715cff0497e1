# SPDX-License-Identifier: GPL-3.0-only
"""Run the checkers: ruff, flake8-async, mypy, pyright, import-linter, licence lines, reasons."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path

from testctl_lib.environment import ensure_installed
from testctl_lib.packages import locked_requirement
from testctl_lib.paths import DEV_LOCK, ROOT, VENV, Command, cache
from testctl_lib.terminal import Progress, coloured, heading, say

PROGRAM = ROOT / "tools" / "testctl"
HEADER = "SPDX-License-Identifier: GPL-3.0-only"
HEADER_SUFFIXES = {".py", ".pyi", ".sh", ".toml", ".yml", ".yaml", ".service", ".socket", ".conf"}

SUPPRESSION = re.compile(
    r"#\s*(?:(?:ruff|flake8):\s*)?(?:noqa|nosec|pragma|(?:type|pyright|mypy):\s*ignore)\b"
)
REASONED = re.compile(
    r"#(?: ruff:)? (?:noqa: [A-Z]+\d+(?:, [A-Z]+\d+)*|(?:type|pyright): ignore\[[\w, -]+\])(?:  #| -+) \S.{9}"
)
"""A suppression that names its rules, and gives a reason of ten characters or more."""
CATCHES_ALL = re.compile(r"except (?:\* )?(?:\( )?(?:Base)?Exception\b|except(?: \*)? :")


def missing_headers() -> list[str]:
    """Return the source files without a licence line among their first three lines."""
    command = [shutil.which("git") or "false", "ls-files", "-co", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    names = listing.stdout.splitlines()
    if listing.returncode != 0:  # no git, or an unpacked archive
        parts = ("modeld", "tests", "tools", "contrib")
        names = [str(path.relative_to(ROOT)) for part in parts for path in (ROOT / part).rglob("*")]
    missing: list[str] = []
    for name in names:
        path = ROOT / name
        if not path.is_file() or "fixtures" in Path(name).parts or path.stat().st_size == 0:
            continue
        with path.open("rb") as file:
            head = b"".join(file.readline(500) for _ in range(3))
        if (path.suffix in HEADER_SUFFIXES or head.startswith(b"#!")) and HEADER.encode() not in head:
            missing.append(name)
    return missing


def check_headers() -> int:
    """Print the files without a licence line."""
    missing = missing_headers()
    for name in missing:
        say(f"{name}: no line '# {HEADER}' at its top")
    return 1 if missing else 0


def unreasoned(source: str) -> Iterator[tuple[int, str]]:
    """Find lines of Python that silence a checker, catch everything or sleep, and give no reason.

    Yields the number of each and what it lacks.
    """
    words: dict[int, list[str]] = {}
    comments: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line = token.start[0]
        if token.type == tokenize.COMMENT:
            comments[line] = token.string
        elif token.type in {tokenize.NAME, tokenize.OP}:
            words.setdefault(line, []).append(token.string)
    for line, comment in comments.items():
        if SUPPRESSION.search(comment) and not REASONED.search(comment):
            yield line, "a suppression needs its rule and a reason: `# noqa: X123  # why`"
    for line, spelled in words.items():
        text = " ".join(spelled)
        if line not in comments and CATCHES_ALL.search(text):
            yield line, "what catches everything needs the reason in a comment on its line"
        if line not in comments and "time . sleep (" in text:
            yield line, "time.sleep needs a comment on its line: why no event can be waited for"
        if "raise NotImplementedError" in text:
            yield line, "NotImplementedError: use an abstract method, which no instance can lack"


def check_reasons() -> int:
    """Print the lines that lack a reason."""
    parts = ("modeld", "tests", "tools", "contrib")
    paths = [path for part in parts for path in sorted((ROOT / part).rglob("*.py*"))]
    found = False
    for path in (*(path for path in paths if path.suffix in {".py", ".pyi"}), PROGRAM):
        for line, complaint in unreasoned(path.read_text(encoding="utf-8")):
            found = True
            say(f"{path.relative_to(ROOT)}:{line}: {complaint}")
    return 1 if found else 0


def async_files() -> list[str]:
    """Return the Python files that have async code."""
    names = [path for part in ("modeld", "tests") for path in sorted((ROOT / part).rglob("*.py"))]
    word = re.compile(r"\b(async|await|trio)\b")
    return [str(path.relative_to(ROOT)) for path in names if word.search(path.read_text())]


def lint_commands() -> dict[str, Command]:
    """Return every checker and its command, but for flake8-async."""
    tool = VENV / "bin"
    return {
        "ruff check": [tool / "ruff", "check", "--quiet"],
        "ruff format": [tool / "ruff", "format", "--check", "--quiet"],
        "mypy": [tool / "mypy"],
        "mypy testctl": [tool / "mypy", "tools/testctl"],
        "pyright": [tool / "pyright"],
        "import-linter": [tool / "lint-imports", "--no-logo"],
        "licence headers": [sys.executable, PROGRAM, "headers"],
        "reasons": [sys.executable, PROGRAM, "reasons"],
    }


def lint_environment() -> dict[str, str]:
    """Return an environment in which the tools find each other and keep what they fetch in the cache."""
    return {
        **os.environ,
        "PATH": f"{VENV / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYRIGHT_PYTHON_CACHE_DIR": str(cache("pyright")),
        "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1",
    }


def run_checker(name: str, command: Sequence[str | Path]) -> tuple[bool, str]:
    """Run one checker, print its outcome and what it found, and return both."""
    progress = Progress(name)
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=lint_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output = None
    while output is None:
        progress.update()
        with contextlib.suppress(subprocess.TimeoutExpired):
            output = process.communicate(timeout=0.1)[0]
    progress.end("ok" if process.returncode == 0 else "FAILED")
    if process.returncode != 0:
        for line in output.splitlines():
            say(f"   {line}")
    return process.returncode == 0, output


def lint_async() -> bool:
    """Run flake8-async over the files that changed since they passed: it takes a second for each.

    Its rules look at one file at a time, so a file that passed passes until it, the rules or the tool change.
    """
    rules = (ROOT / ".flake8").read_bytes() + locked_requirement("flake8-async", DEV_LOCK).encode()
    passed = cache("lint", "flake8-async")
    keys = {name: hashlib.sha256(rules + (ROOT / name).read_bytes()).hexdigest() for name in async_files()}
    todo = [name for name, key in keys.items() if not (passed / key).exists()]
    title = f"flake8-async ({len(todo)} of {len(keys)} files are new)"
    good, output = run_checker(title, [VENV / "bin" / "flake8", *todo] if todo else ["true"])
    complaints = {line.split(":", 1)[0].removeprefix("./") for line in output.splitlines()}
    for name in todo:
        if good or (complaints <= keys.keys() and name not in complaints):
            (passed / keys[name]).touch()
    return good


def run_lint() -> int:
    """Run every checker, each to its end, and return 1 when one complained."""
    failed = [name for name, command in lint_commands().items() if not run_checker(name, command)[0]]
    if not lint_async():
        failed.append("flake8-async")
    if failed:
        say(coloured("31", f"lint: {', '.join(failed)} failed; see above"))
    return 1 if failed else 0


def lint(_arguments: argparse.Namespace) -> int:
    """Run every checker; see `testctl lint --help`."""
    ensure_installed()
    heading("lint")
    return run_lint()
