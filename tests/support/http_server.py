# SPDX-License-Identifier: GPL-3.0-only
"""The HTTP edge on a real socket of 127.0.0.1, with a scripted runtime behind it."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import h11
import httpx2
import msgspec
import trio
from support.backend import Script, ScriptedBackend, no_events

from modeld.config.settings import Settings
from modeld.http.app import ModeldApp, create_app
from modeld.http.auth import Authorizer
from modeld.http.limits import HttpLimits, http_limits
from modeld.http.server.listener import serve
from modeld.http.server.tls import Tls
from modeld.runtime.keys.keyring import Keyring
from modeld.runtime.ticket import Ticket
from modeld.telemetry.metrics import Metrics


def unverified() -> ssl.SSLContext:
    """A client's context that takes any certificate: whose it is and until when is not what is tested."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Served:
    """A running context, and clients for it."""

    def __init__(
        self, app: ModeldApp, backend: ScriptedBackend, metrics: Metrics, tls: Tls | None = None
    ) -> None:
        self.tls = tls
        self.app = app
        self.backend = backend
        self.metrics = metrics
        self.url = ""
        self.shutdown = trio.Event()
        self.ended = trio.Event()
        self.clients: list[Raw] = []

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def serve(self, *, grace_s: float | None, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            [self.url] = await nursery.start(self._serve, grace_s)
            task_status.started()
        self.ended.set()

    async def _serve(self, grace_s: float | None, *, task_status: trio.TaskStatus[list[str]]) -> None:
        await serve(
            self.app,
            ["127.0.0.1:0"],
            shutdown=self.shutdown,
            grace_s=grace_s,
            tls=self.tls,
            task_status=task_status,
        )

    def client(self, **options: Any) -> httpx2.AsyncClient:
        verify = True if self.tls is None else unverified()
        return httpx2.AsyncClient(base_url=self.url, timeout=10, trust_env=False, verify=verify, **options)

    async def connect(self) -> Raw:
        tcp = await trio.open_tcp_stream("127.0.0.1", self.port)
        raw = Raw(tcp if self.tls is None else trio.SSLStream(tcp, unverified()), tcp)
        self.clients.append(raw)
        return raw

    def sample(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


class Raw:
    """A client that says exactly what the test wants, and reads with h11."""

    def __init__(
        self,
        stream: trio.SocketStream | trio.SSLStream[trio.SocketStream],
        tcp: trio.SocketStream | None = None,
    ) -> None:
        self.stream = stream
        self.tcp = tcp or stream
        self.patience_s = 10.0
        self._h11 = h11.Connection(h11.CLIENT)

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def infer(self, **body: Any) -> None:
        """Send a request for text."""
        await self.send(infer_bytes(**body))

    async def read_some(self) -> bytes:
        """Read what is there; nothing is the end of the stream."""
        with trio.fail_after(self.patience_s):
            return bytes(await self.stream.receive_some(65536))

    async def read_to_end(self) -> bytes:
        data = b""
        while chunk := await self.read_some():
            data += chunk
        return data

    async def read_until(self, mark: bytes) -> bytes:
        data = b""
        while mark not in data:
            chunk = await self.read_some()
            assert chunk, f"the stream ended before {mark!r}: {data!r}"
            data += chunk
        return data

    async def answer(self, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        """Read one whole answer; a next one may follow on the same connection."""
        self._h11.send(h11.Request(method=method, target="/", headers=[("host", "localhost")]))
        self._h11.send(h11.EndOfMessage())
        body = b""
        status, headers = 0, {}
        while True:
            event = self._h11.next_event()
            match event:
                case h11.NEED_DATA:
                    self._h11.receive_data(await self.read_some())
                case h11.Response():
                    status = event.status_code
                    headers = {name.decode(): value.decode() for name, value in event.headers}
                case h11.Data():
                    body += event.data
                case h11.EndOfMessage():
                    break
                case _:
                    pass
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
        return status, headers, body


async def abandoned(served: Served, request: bytes, until: bytes = b"") -> Ticket:
    """Be a client that sends a request, reads as far as `until`, and is gone.

    Returns: the request's ticket, once the server has noticed.
    """
    raw = await served.connect()
    await raw.send(request)
    ticket = await served.backend.ticket()
    if until:
        await raw.read_until(until)
    raw.stream.socket.close()
    await served.backend.wait_closed()
    return ticket


def infer_bytes(*, headers: str = "", **body: Any) -> bytes:
    """A request for text, as bytes."""
    data = json.dumps({"prompt": "Hello", **body}).encode()
    head = f"POST /infer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def lines_of(body: bytes) -> list[dict[str, Any]]:
    """The JSON values of a stream, without its blank lines."""
    return [json.loads(line) for line in body.splitlines() if line]


@asynccontextmanager
async def serving(
    script: Script = no_events,
    *,
    settings: Settings | None = None,
    grace_s: float | None = None,
    keyring: Keyring | None = None,
    tls: Tls | None = None,
    **limits: Any,
) -> AsyncGenerator[Served]:
    """Serve while the block runs; then shut down, which has to succeed."""
    settings = settings or Settings()
    async with trio.open_nursery() as scripts:
        backend = ScriptedBackend(scripts, script)
        metrics = Metrics()
        metrics.watch_fleet(backend.status)
        bounds: HttpLimits = msgspec.structs.replace(http_limits(settings), **limits)
        app = create_app(backend, settings, metrics, limits=bounds, authorizer=Authorizer(keyring))
        served = Served(app, backend, metrics, tls)
        async with trio.open_nursery() as nursery:
            await nursery.start(_serve, served, grace_s)
            try:
                yield served
            finally:
                served.shutdown.set()
                with trio.CancelScope(shield=True), trio.fail_after(15):
                    await served.ended.wait()
                for raw in served.clients:
                    raw.tcp.socket.close()
        scripts.cancel_scope.cancel()


async def _serve(served: Served, grace_s: float | None, *, task_status: trio.TaskStatus[None]) -> None:
    await served.serve(grace_s=grace_s, task_status=task_status)
