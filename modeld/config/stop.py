# SPDX-License-Identifier: GPL-3.0-only
"""How the time of a stop is shared out: running requests, then their last lines, then the models. Pure."""

from __future__ import annotations

from modeld.config.settings import Settings

_FLEET_STOP_S = 0.5


def fleet_stop_s(settings: Settings) -> float:
    """Return what is left of `shutdown_timeout` for the end of the models, seconds: at most a fifth of it."""
    return min(_FLEET_STOP_S, settings.shutdown_timeout / 5)


def drain_patience(settings: Settings) -> float:
    """Return for how long requests may go on at a stop, seconds.

    That is `drain_timeout`, or what `shutdown_timeout` leaves for it: the clients' last lines need as much
    time as the end of the models.
    """
    return min(settings.drain_timeout, settings.shutdown_timeout - 2 * fleet_stop_s(settings))
