# SPDX-License-Identifier: GPL-3.0-only
"""What the pages say of the command line is what the command line has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

from modeld.cli.console.exit_codes import FAILED, INTERRUPTED, NOT_REACHABLE
from modeld.cli.main import modeld

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def test_commands_and_options_of_the_pages_exist() -> None:
    """A command line in an example is one that can be typed, and the page of the commands has all of them."""
    commands = dict(_commands(modeld, click.Context(modeld), ""))
    for page in PAGES:
        for line in re.findall(r"^ {4,}(?:\$ )?modeld (?!would )([a-z].*)$", page.read_text(), re.MULTILINE):
            for words in re.split(r" && modeld ", line.partition(" # ")[0]):
                name = max(
                    (name for name in commands if f"{words} ".startswith(f"{name} ")), key=len, default=""
                )
                assert name, f"{page.name}: modeld {words}"
                unknown = set(re.findall(r"(?<!\S)--?[a-z][\w-]*", words)) - commands[name]
                assert not unknown, f"{page.name}: modeld {words}"
    text = (ROOT / "docs" / "cli.md").read_text()
    for name in commands:
        assert re.search(rf"[`\s]{name.split()[0]}[`\s]", text), name


def test_exit_codes_of_the_page_are_those_of_the_commands() -> None:
    """0 and 2 are click's own."""
    section = (ROOT / "docs" / "cli.md").read_text().split("## Exit codes")[1].split("\n## ")[0]
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)}
    assert codes == {0, FAILED, click.UsageError.exit_code, NOT_REACHABLE, INTERRUPTED}


def _commands(command: click.Command, context: click.Context, name: str) -> Iterator[tuple[str, set[str]]]:
    """Yield each command's name, words and all, and the options that it takes."""
    if not isinstance(command, click.Group):
        yield name, {word for param in command.get_params(context) for word in param.opts}
        return
    for word in command.list_commands(context):
        below = command.get_command(context, word)
        assert below is not None
        yield from _commands(
            below, click.Context(below, parent=context, info_name=word), f"{name} {word}".strip()
        )
