# SPDX-License-Identifier: GPL-3.0-only
"""`modeld serve`: load settings, run the preflight checks, start logging, run the daemon."""

from __future__ import annotations

from modeld.cli.keys import keyring_or_exit
from modeld.cli.options import SettingsCommand, load_or_exit
from modeld.cli.preflight import run_preflight
from modeld.cli.stderr import say
from modeld.telemetry.log import logging_to_stderr

_HELP = """Start the daemon, and serve until SIGTERM or SIGINT.

Exits with 0 after a stop, 1 when the preflight or the daemon fails, 2 when a setting is wrong.
"""


def _serve(**flags: object) -> None:
    raise SystemExit(run_serve(flags))


def run_serve(flags: dict[str, object]) -> int:
    """Serve with these flags; return the exit code.

    Raises:
      SystemExit: with 2, when a setting is wrong.
    """
    loaded = load_or_exit(flags)
    keyring = keyring_or_exit(loaded.settings)
    try:
        passed = run_preflight(loaded, say)
    except KeyboardInterrupt:
        return 130
    if not passed:
        say("modeld: preflight failed; mend what is NOT OK and start again")
        return 1
    from modeld.cli.compose import serve_forever  # noqa: PLC0415  # loads the HTTP server: not for `modeld --help`, nor for a preflight that fails

    with logging_to_stderr(loaded.settings.log_level, loaded.settings.log_format):
        return serve_forever(loaded.settings, keyring)


serve = SettingsCommand("serve", callback=_serve, about=_HELP, short_help="Start the daemon.")
