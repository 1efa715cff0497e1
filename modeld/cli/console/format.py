# SPDX-License-Identifier: GPL-3.0-only
"""Format sizes, durations, times and counts for people. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo

from rich.text import Text

from modeld.domain.daemon_events import FleetEvent

NOTHING = "-"
"""What a cell shows that has no value, so that each row has every column also when it is piped."""

_UNITS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))
_DECIMALS_BELOW = 10.0


def plain(text: str) -> str:
    """Return the text on one line, with nothing that a terminal would obey: names come from outside."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def line(*parts: str | tuple[str, str]) -> Text:
    """Return parts, each a text or a text and its style, as one line that a terminal cannot obey."""
    styled = ((it, "") if isinstance(it, str) else it for it in parts)
    return Text.assemble(*((plain(text), style) for text, style in styled))


def short(model_id: str) -> str:
    """Return the name of a model that is enough to type: its id without the ending."""
    return plain(model_id[:-5] if model_id.lower().endswith(".gguf") else model_id)


def mib(value: float | None) -> str:
    """Write MiB; the unit stands in the heading."""
    if value is None:
        return NOTHING
    return f"{value:.1f}" if abs(value) < 100 else f"{value:.0f}"


def size(size_bytes: int) -> str:
    """Write the size of a file as the field does, in units of 1000."""
    value = float(size_bytes)
    for unit in ("B", "KB", "MB"):
        if value < 999.5:
            return f"{value:.0f}{unit}" if unit == "B" or value >= _DECIMALS_BELOW else f"{value:.1f}{unit}"
        value /= 1000
    return f"{value:.1f}GB"


def count(value: int) -> str:
    """Write a large count short: 8192, 135M, 1.2B."""
    if value < 1_000_000:
        return str(value) if value else NOTHING
    millions = value / 1e6
    if millions < 999.5:
        return f"{millions:.0f}M"
    return f"{millions / 1000:.1f}B"


def span(seconds: float | None) -> str:
    """Write a duration in its two largest units: `0.42s`, `3.5s`, `42s`, `3m12s`, `2h5m`, `4d3h`."""
    if seconds is None:
        return NOTHING
    seconds = max(0.0, seconds)
    if seconds < 1:
        return f"{seconds:.2f}s"
    if seconds < _DECIMALS_BELOW:
        return f"{seconds:.1f}s"
    left = round(seconds)
    parts: list[str] = []
    for length, unit in _UNITS:
        amount, left = divmod(left, length)
        if amount:
            parts.append(f"{amount}{unit}")
        elif parts:
            break
    return "".join(parts[:2])


def share(part: float) -> str:
    """Write a fraction of 1 in percent."""
    return f"{100 * min(1.0, max(0.0, part)):.0f}%"


def clock(at_unix: float, zone: tzinfo | None = None) -> str:
    """Write the time of day, local where no zone is given."""
    return datetime.fromtimestamp(at_unix, UTC).astimezone(zone).strftime("%H:%M:%S")


# ----------------------------------------------------------------------
# How an event of the daemon is told in a line. Pure.

_STYLES = {
    "ready": "green",
    "loading": "cyan",
    "evicting": "yellow",
    "draining": "magenta",
    "refused": "red",
    "failed": "bold red",
    "breaker_opened": "bold red",
    "missed": "bold yellow",
}
_KIND_WIDTH = 17
"""The longest kinds."""


def told(event: FleetEvent, zone: tzinfo | None = None) -> Text:
    """Return its line: time, kind, model, who it is about, why, and the figures."""
    parts = [
        short(event.model),
        f"for {short(event.for_model)}" if event.for_model else "",
        f"request {event.ticket}" if event.ticket else "",
        f"operation {event.operation}" if event.operation else "",
        f"by {event.key}" if event.key else "",
        f"({event.cause})" if event.cause else "",
    ]
    about = " ".join(filter(None, parts))
    figures = " ".join(f"{name}={value:g}" for name, value in event.numbers.items())
    rest = "; ".join(filter(None, (event.reason, figures)))
    kind = (event.kind.ljust(_KIND_WIDTH), _STYLES.get(event.kind, ""))
    sentence = ": ".join(filter(None, (about, rest)))
    return line((clock(event.at_unix, zone), "dim"), "  ", kind, "  ", sentence)
