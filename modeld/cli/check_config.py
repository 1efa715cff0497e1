# SPDX-License-Identifier: GPL-3.0-only
"""`modeld check-config`: show the settings that would apply, and where each comes from."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import click

from modeld.cli.keys import keyring_or_exit
from modeld.cli.options import SettingsCommand, load_or_exit
from modeld.config.address import parse_address
from modeld.config.load import LoadedSettings
from modeld.config.machine import own_names
from modeld.config.model_settings import ModelSettings
from modeld.config.settings import MODEL_SETTINGS, SETTINGS, Settings
from modeld.domain.model import EngineKind
from modeld.http.origin_checks import AllowedHosts
from modeld.runtime.catalog.adapters import adapter_problems
from modeld.telemetry.log import printable

_HELP = """Check the settings without starting anything, and print what would run.

Takes the flags of serve. Prints what differs from the defaults and where it comes from. Exits with
0 when the settings can be used, and with 2 and one line for each problem when they cannot.
"""


def _check_config(*, show_all: bool, **flags: object) -> None:
    loaded = load_or_exit(flags)
    keyring_or_exit(loaded.settings)
    problems = adapter_problems(loaded.settings) if loaded.settings.engine is EngineKind.LLAMA else []
    for problem in problems:
        click.echo(f"modeld: {printable(problem)}", err=True)
    if problems:
        raise SystemExit(2)
    for line in summary(loaded, show_all=show_all):
        click.echo(line)


def summary(loaded: LoadedSettings, *, show_all: bool) -> Iterator[str]:
    """Yield the lines that tell the settings: all, or those that differ from the defaults."""
    settings = loaded.settings
    yield f"modeld would listen on {settings.addr} and serve {settings.models_dir}"
    yield _memory(loaded)
    yield _access(settings)
    rows = [
        (name, setting.kind.show(getattr(settings, name)), loaded.sources.get(name))
        for name, setting in SETTINGS.items()
        if name != "models" and (show_all or name in loaded.sources)
    ]
    if rows:
        yield ""
        widths = [max(len(row[0]) for row in rows), min(40, max(len(row[1]) for row in rows))]
        for name, value, source in rows:
            yield f"  {name:<{widths[0]}}  {value:<{widths[1]}}  {source or 'default'}".rstrip()
    for name, model in settings.models.items():
        yield ""
        yield f"  model {name}  ({loaded.sources.get('models', 'default')})"
        yield from (f"    {line}" for line in _model(model))
    yield ""
    yield "the settings can be used"


def _memory(loaded: LoadedSettings) -> str:
    budget, margin = loaded.settings.vram_budget_mb, loaded.settings.vram_margin_mb
    if budget is None:
        return f"memory for models: nine tenths of what is free at the start, less a margin of {margin} MiB"
    if budget == 0:
        return "memory for models: unlimited"
    return f"memory for models: {budget - margin} MiB ({budget} MiB less a margin of {margin} MiB)"


def _access(settings: Settings) -> str:
    if settings.keys_file is not None:
        return f"access: with a key of {settings.keys_file}"
    names = ", ".join(AllowedHosts.of(settings, own_names(socket.gethostname())).shown)
    if parse_address(settings.addr).is_local:
        return f"access: no keys; requests may name an address, or {names}"
    return (
        f"access: NO KEYS, so any client that reaches {settings.addr} may use, load and unload every model; "
        f"requests may name an address, or {names} (allowed_hosts)"
    )


def _model(model: ModelSettings) -> Iterator[str]:
    for name, option in MODEL_SETTINGS.items():
        value = getattr(model, name)
        if value != option.default:
            yield f"{name}: {option.kind.show(value)}"


check_config = SettingsCommand(
    "check-config",
    callback=_check_config,
    about=_HELP,
    short_help="Check the settings without starting.",
    params=[
        click.Option(
            ["--all", "show_all"], is_flag=True, help="Print every setting, also those at their defaults."
        )
    ],
)
