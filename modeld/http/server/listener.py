# SPDX-License-Identifier: GPL-3.0-only
"""Open sockets, accept connections, and stop without waiting on any client.

It does what `hypercorn.trio.serve` does, without its gaps: the app's start-up raises here instead of
being swallowed, running out of file descriptors is waited out quietly, and connections are
`modeld.http.server.connection.Connection`s.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import resource
import socket
import ssl
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext

from modeld.config.address import Address, parse_address
from modeld.http.app import ModeldApp
from modeld.http.limits import HttpLimits
from modeld.http.server.connection import Connection
from modeld.http.server.tls import Tls
from modeld.telemetry.log import get_logger

# ----------------------------------------------------------------------
# Listening sockets: opened from addresses, inherited, closed again when one of them fails.

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


# ----------------------------------------------------------------------

log = get_logger("modeld.http")

_OVERLOAD = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
_RETRY_S = 0.1
_FILES_LEFT = 128
_COMPLAIN_EVERY_S = 10.0


async def serve(
    app: ModeldApp,
    binds: Sequence[str],
    *,
    shutdown: trio.Event,
    grace_s: float | None = None,
    tls: Tls | None = None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the app on `binds` (`host:port`, `unix:/path`, `fd://N`) until `shutdown` is set.

    Then: nothing more is accepted, idle connections close at once, busy ones may end their request
    within `grace_s` seconds (default: `shutdown_timeout`), and what is left is cut. Returns after that.
    With `tls`, HTTPS is spoken on all of them.

    The file of a `unix:/path` is removed with the end of accepting, if it is still the one bound here.

    `task_status.started` gets the URLs that are really bound.

    Raises: OSError when an address cannot be bound, before `started`.
    Cancellation: everything is cut at once.
    """
    limits = app.context.limits
    config = _config(limits)
    server = _Server(app, config, limits, None if tls is None else tls.context)
    listeners = open_listeners(binds)
    try:
        await app.startup()
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                for listener in listeners.sockets:
                    accepting.start_soon(server.accept, listener, connections)
                urls = [url_of(listener, encrypted=tls is not None) for listener in listeners.sockets]
                app.authorizer.listens_on(urls)
                task_status.started(urls)
                await shutdown.wait()
                accepting.cancel_scope.cancel()
            listeners.close()
            await server.stop(limits.shutdown_timeout_s if grace_s is None else grace_s)
            connections.cancel_scope.cancel()
    finally:
        listeners.close()


def _config(limits: HttpLimits) -> Config:
    config = Config()
    config.errorlog = logging.getLogger("modeld.http")
    config.accesslog = None
    config.include_server_header = False
    config.h11_max_incomplete_size = limits.max_header_bytes
    config.keep_alive_max_requests = 1_000_000
    # The app takes every part of a body at once and drops what is too much, so this never fills;
    # with Hypercorn's 10, an app that ended early could leave its connection waiting for ever.
    config.max_app_queue_size = 2**31
    return config


def connection_bound(wanted: int) -> int:
    """Return how many connections there may be: `wanted`, but some files must be left to open models."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if files == resource.RLIM_INFINITY else min(wanted, max(files - _FILES_LEFT, files // 2))


class _Server:
    """All connections of one listener."""

    def __init__(
        self, app: ModeldApp, config: Config, limits: HttpLimits, tls: ssl.SSLContext | None
    ) -> None:
        self._tls = tls
        self._app = ASGIWrapper(app)
        self._config = config
        self._limits = limits
        self._bound = connection_bound(limits.max_connections)
        self._on_refusal = app.context.metrics.http.refused
        self._context = WorkerContext(None)
        self._connections: set[Connection] = set()
        self._one_ended = trio.Event()
        self._complained = -math.inf

    async def accept(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        """Accept connections until cancelled."""
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                if error.errno not in _OVERLOAD:
                    raise
                self._complain(error)
                await trio.sleep(_RETRY_S)
            else:
                try:
                    await self._make_room()  # Only now: nobody has to go before somebody comes.
                except BaseException:  # a cancellation, too: the client is not left hanging
                    stream.socket.close()
                    raise
                connection = Connection(
                    stream,
                    app=self._app,
                    config=self._config,
                    context=self._context,
                    limits=self._limits,
                    on_refusal=self._on_refusal,
                    tls=self._tls,
                )
                self._connections.add(connection)
                nursery.start_soon(self._serve_one, connection)

    async def _serve_one(self, connection: Connection) -> None:
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)
            self._one_ended.set()
            self._one_ended = trio.Event()

    async def _make_room(self) -> None:
        """Keep within the bound: the connection that is idle for longest goes; if none is, wait for one."""
        while len(self._connections) >= self._bound:
            idle = [(it.idle_since, id(it), it) for it in self._connections if it.idle_since is not None]
            if idle:
                min(idle)[2].leave()
            with trio.move_on_after(_RETRY_S):  # Busy ones may have become idle by then.
                await self._one_ended.wait()

    def _complain(self, error: OSError) -> None:
        now = trio.current_time()
        if now - self._complained >= _COMPLAIN_EVERY_S:
            self._complained = now
            log.error(
                "no connection can be accepted now; raise the limit of open files (LimitNOFILE, ulimit -n)",
                reason=os.strerror(error.errno or 0),
                connections=len(self._connections),
            )

    async def stop(self, grace_s: float) -> None:
        """Let busy connections end, close the others, cut what is left after `grace_s` seconds."""
        await self._context.terminated.set()
        for connection in tuple(self._connections):
            connection.stop()
        with trio.move_on_after(grace_s):
            while self._connections:
                await self._one_ended.wait()
        for connection in tuple(self._connections):
            connection.cut()
