# SPDX-License-Identifier: GPL-3.0-only
"""Build commands whose flags are the settings, grouped in the help."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

import click

from modeld.cli.stderr import say
from modeld.config.kinds import BOOL
from modeld.config.load import ConfigError, LoadedSettings, load_settings
from modeld.config.setting import Setting, flag_of
from modeld.config.settings import LEGACY, SETTINGS
from modeld.config.values import BadValue

_LEGACY_SWITCHES = frozenset({"real_infer", "spawn_llama", "llama_use_openai"})
_HELP_COLUMN = 28


class SettingsCommand(click.Command):
    """A command that takes every setting as a flag, besides its own `params`.

    Its callback gets the settings as typed, by name, and None for those not given. Flags of the Go
    program are accepted as Go's flag package reads them: with one dash or two, `--switch=false`.
    """

    def __init__(
        self,
        name: str,
        *,
        callback: Callable[..., object],
        about: str,
        short_help: str,
        params: Sequence[click.Parameter] = (),
    ) -> None:
        self._settings = [*map(_option, SETTINGS.values()), *map(_legacy, LEGACY)]
        options = [*params, *self._settings]
        super().__init__(name, params=options, callback=callback, help=about, short_help=short_help)
        self._flags = {flag for option in options for flag in (*option.opts, *option.secondary_opts)}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, with `-addr` read as `--addr`."""
        return super().parse_args(ctx, [self._two_dashes(arg) for arg in args])

    def _two_dashes(self, arg: str) -> str:
        name = arg.partition("=")[0]
        return f"-{arg}" if name.startswith("-") and f"-{name}" in self._flags else arg

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the settings under the heading of their section."""
        rows: dict[str, list[tuple[str, str]]] = {}
        for setting in SETTINGS.values():
            row = _spelling(setting), _explained(setting, setting.shown_default)
            rows.setdefault(setting.section, []).append(row)
        for section, lines in rows.items():
            with formatter.section(section):
                formatter.write_dl(lines, col_max=_HELP_COLUMN)
        others = (param for param in self.get_params(ctx) if param not in self._settings)
        records = [record for param in others if (record := param.get_help_record(ctx)) is not None]
        with formatter.section("Other"):
            formatter.write_dl(records, col_max=_HELP_COLUMN)


def _option(setting: Setting) -> click.Option:
    names = [setting.flag, *setting.flags, setting.name]
    if setting.kind is BOOL:
        return click.Option(names, is_flag=False, flag_value="true", default=None, type=str)
    return click.Option(names, default=None, type=str)


def _legacy(name: str) -> click.Option:
    names = [flag_of(name), name]
    if name in _LEGACY_SWITCHES:
        return click.Option(names, is_flag=False, flag_value="true", default=None, type=str, hidden=True)
    return click.Option(names, default=None, type=str, hidden=True)


def _spelling(setting: Setting) -> str:
    flags = ", ".join((setting.flag, *setting.flags))
    return f"{flags}[=BOOL]" if setting.kind is BOOL else f"{flags} {setting.kind.metavar}"


def _explained(setting: Setting, default: str) -> str:
    text = setting.help.replace("`", "")
    return f"{text} [default: {default}]" if default else text


def load_or_exit(flags: Mapping[str, object]) -> LoadedSettings:
    """Return the settings; on problems print each on its line and exit with 2."""
    try:
        loaded = load_settings(flags=flags, environ=os.environ)
    except ConfigError as error:
        for warning in error.warnings:
            say(f"modeld: warning: {warning}")
        for problem in error.problems:
            say(f"modeld: {problem}")
        raise SystemExit(2) from None
    for warning in loaded.warnings:
        say(f"modeld: warning: {warning}")
    return loaded


# ----------------------------------------------------------------------
# Settings as flags of commands that take a few of them, and start no daemon.


def setting_option(name: str, *, short: str | None = None, default: str | None = None) -> click.Option:
    """Return the option of a setting: its flag, and a shorter one where `short` gives it.

    `default` is what the help says of it, where it is not the daemon's.
    """
    setting = SETTINGS[name]
    flags = [setting.flag] if short in {None, setting.flag} else [str(short), setting.flag]
    text = _explained(setting, setting.shown_default if default is None else default)
    return click.Option([*flags, name], type=str, metavar=setting.kind.metavar, help=text)


def typed_settings(flags: Mapping[str, str | None], spelled: Mapping[str, str]) -> dict[str, object]:
    """Return the values of those that were given, by name; `spelled` is the flag that complaints name.

    Raises:
      click.BadParameter: one of them cannot be read.
    """
    chosen: dict[str, object] = {}
    for name, raw in flags.items():
        if raw is None:
            continue
        try:
            chosen[name] = SETTINGS[name].kind.parse(raw)
        except BadValue as error:
            raise click.BadParameter(str(error.problems[0][1]), param_hint=spelled[name]) from None
    return chosen
