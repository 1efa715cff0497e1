# SPDX-License-Identifier: GPL-3.0-only
"""Talk to systemd: readiness, status, watchdog, and sockets passed in.

Outside systemd everything here does nothing. The protocol is a datagram of `KEY=value` lines to the
socket that `NOTIFY_SOCKET` names, and three environment variables for passed sockets
(sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3)).

Why no library: sdnotify 0.3.2 is from 2017 and its socket blocks; systemd-python 235 and cysystemd 2.0.5
compile against libsystemd's headers, and the protocol is one `sendto`. See docs/deployment.md.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, MutableMapping

import msgspec
import trio

_FIRST_FD = 3
"""SD_LISTEN_FDS_START: passed sockets begin after stdin, stdout and stderr."""

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


def compose(**fields: str) -> bytes:
    """Return the datagram for `fields`, keys in capitals; line ends in a value become spaces."""
    return "\n".join(
        f"{key.upper()}={' '.join(value.splitlines())}" for key, value in fields.items()
    ).encode()


def notify_address(environ: Mapping[str, str]) -> str | None:
    """Return the address for `sendto`; None when unset, or not a local socket (vsock of a VM)."""
    path = environ.get("NOTIFY_SOCKET", "")
    if path.startswith("@"):
        return "\0" + path[1:]
    return path if path.startswith("/") else None


def watchdog_interval(environ: Mapping[str, str], pid: int | None = None) -> float | None:
    """Return how many seconds to leave between pings: half of what systemd allows.

    None when there is no watchdog, or when it is meant for another process than `pid` (default: this one).
    """
    if not _is_for(environ.get("WATCHDOG_PID"), pid):
        return None
    microseconds = _number(environ.get("WATCHDOG_USEC"))
    return microseconds / 2e6 if microseconds > 0 else None


def listen_binds(environ: Mapping[str, str], pid: int | None = None) -> tuple[str, ...]:
    """Return the sockets systemd passed, as Hypercorn writes them (`fd://3`), in the unit's order."""
    if "LISTEN_PID" not in environ or not _is_for(environ["LISTEN_PID"], pid):
        return ()
    return tuple(f"fd://{_FIRST_FD + index}" for index in range(_number(environ.get("LISTEN_FDS"))))


class Notifier:
    """Sends messages to systemd. Never blocks, never raises: a lost message is worth no outage.

    Args:
      address: as `notify_address` returns it; None makes every method do nothing.

    Each method returns whether the message was handed over (False outside systemd, too).
    """

    def __init__(self, address: str | None) -> None:
        self._address = address
        self._socket: socket.socket | None = None
        if address is not None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)

    @property
    def enabled(self) -> bool:
        """Whether systemd listens at all."""
        return self._socket is not None

    def ready(self, status: str = "ready") -> bool:
        """Say that the start is complete."""
        return self._send(compose(ready="1", status=status))

    def stopping(self, status: str = "stopping") -> bool:
        """Say that an orderly stop has begun."""
        return self._send(compose(stopping="1", status=status))

    def status(self, text: str) -> bool:
        """Set the line that `systemctl status` shows."""
        return self._send(compose(status=text))

    def watchdog(self) -> bool:
        """Say that the daemon makes progress."""
        return self._send(compose(watchdog="1"))

    def close(self) -> None:
        """Close the socket; later calls do nothing. Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: bytes) -> bool:
        if self._socket is None or self._address is None:
            return False
        try:
            self._socket.sendto(message, self._address)
        except OSError:  # full, gone or forbidden: all the same to the daemon
            return False
        return True


class SystemdContext(msgspec.Struct, frozen=True):
    """What systemd asked of this process, taken from the environment once."""

    notifier: Notifier
    watchdog_s: float | None
    """Seconds between pings; None without a watchdog."""
    binds: tuple[str, ...]
    """Sockets to serve on instead of `addr`; empty without socket activation."""


def take_systemd_context(environ: MutableMapping[str, str]) -> SystemdContext:
    """Read systemd's variables and remove them, so that no child process takes them for its own.

    Passed sockets are marked to close in children, for the same reason.
    """
    supervision = SystemdContext(
        notifier=Notifier(notify_address(environ)),
        watchdog_s=watchdog_interval(environ),
        binds=listen_binds(environ),
    )
    for bind in supervision.binds:
        os.set_inheritable(int(bind.removeprefix("fd://")), False)
    for name in _VARIABLES:
        environ.pop(name, None)
    return supervision


async def feed_watchdog(notifier: Notifier, interval_s: float, healthy: Callable[[], str | None]) -> None:
    """Ping the watchdog every `interval_s` seconds while all is well; runs until cancelled.

    Args:
      notifier: where the pings go.
      interval_s: from `watchdog_interval`.
      healthy: returns None while the daemon makes progress, else the reason why not. Then no ping is
        sent, the reason becomes the status line, and systemd restarts the daemon unless it recovers.
    """
    shown: str | None = None
    while True:
        reason = healthy()
        if reason is None:
            notifier.watchdog()
        if reason != shown:
            notifier.status("recovered" if reason is None else f"no watchdog ping: {reason}")
            shown = reason
        await trio.sleep(interval_s)


def _is_for(wanted: str | None, pid: int | None) -> bool:
    return wanted is None or _number(wanted) == (os.getpid() if pid is None else pid)


def _number(text: str | None) -> int:
    """Return the number in `text`, 0 when there is none: systemd writes plain decimals."""
    return int(text) if text is not None and text.isascii() and text.isdigit() else 0
