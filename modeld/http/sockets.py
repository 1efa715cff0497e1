# SPDX-License-Identifier: GPL-3.0-only
"""Listening sockets: opened from addresses, inherited, closed again when one of them fails."""

from __future__ import annotations

import socket
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import trio

from modeld.config.address import Address, parse_address

BACKLOG = 1024


class SocketFile(msgspec.Struct, frozen=True):
    """The file of a socket that was bound here."""

    path: Path
    device: int
    inode: int

    def remove(self) -> None:
        """Remove it, unless it was replaced meanwhile. Idempotent."""
        with suppress(OSError):  # Gone, or a folder that may not be written to any more: nothing to be done.
            info = self.path.lstat()
            if (info.st_dev, info.st_ino) == (self.device, self.inode):
                self.path.unlink()


class Listeners:
    """Listening sockets, in the order of their addresses, and the files that go with them.

    Attributes:
      sockets: the listeners.
    """

    def __init__(self) -> None:
        self.sockets: list[trio.SocketListener] = []
        self._files: list[SocketFile] = []

    def open(self, address: Address) -> None:
        """Open one more. Raises: OSError."""
        sock = _open(address)
        try:
            if address.path is not None:
                info = Path(address.path).lstat()
                self._files.append(SocketFile(Path(address.path), info.st_dev, info.st_ino))
            sock.setblocking(False)
            sock.listen(BACKLOG)
            self.sockets.append(trio.SocketListener(trio.socket.from_stdlib_socket(sock)))
        except BaseException:  # whatever it is: the socket does not leak
            sock.close()
            raise

    def close(self) -> None:
        """Close them and remove their files; who waits for a connection is told. Idempotent.

        The files go first: as long as a socket listens, no other daemon takes its file for a dead one's.
        """
        for file in self._files:
            file.remove()
        self._files.clear()
        for listener in self.sockets:
            listener.socket.close()


def open_listeners(binds: Sequence[str]) -> Listeners:
    """Return a listener for each of `binds` (`host:port`, `[v6]:port`, `unix:/path`, `fd://N`).

    Raises: OSError when one cannot be had; then none is left open. BadValue for what is no address.
    """
    listeners = Listeners()
    try:
        for bind in binds:
            listeners.open(parse_address(bind))
    except BaseException:  # whatever it is: none is left open
        listeners.close()
        raise
    return listeners


def _open(address: Address) -> socket.socket:
    if address.fd is not None:
        return socket.socket(fileno=address.fd)
    if address.path is not None:
        _make_way(Path(address.path))
        return _bound(socket.AF_UNIX, address.path)
    family, _, _, _, name = socket.getaddrinfo(
        address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    return _bound(family, name)


def _make_way(path: Path) -> None:
    """Remove a socket that a dead daemon left behind; one that somebody serves stays, and binding fails."""
    with suppress(FileNotFoundError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if stat.S_ISSOCK(path.stat().st_mode):
            probe.setblocking(False)  # A daemon that has no place left to queue us would let us wait.
            try:
                probe.connect(str(path))
            except BlockingIOError:
                return
            except ConnectionRefusedError:
                path.unlink()


def _bound(family: int, name: tuple[object, ...] | str) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(name)
    except BaseException:  # whatever it is: the socket does not leak
        sock.close()
        raise
    return sock


def url_of(listener: trio.SocketListener, *, encrypted: bool = False) -> str:
    """Return where a listener can be reached, with the port it really has."""
    sock = listener.socket
    if sock.family == socket.AF_UNIX:
        return f"unix:{sock.getsockname()}"
    scheme = "https" if encrypted else "http"
    host, port, *_ = sock.getsockname()
    return f"{scheme}://[{host}]:{port}" if sock.family == socket.AF_INET6 else f"{scheme}://{host}:{port}"
