# SPDX-License-Identifier: GPL-3.0-only
"""A tiny HTTP server in a thread that answers every request with prepared bytes, over a real socket."""

import json
import socketserver
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

Say = Callable[[bytes], None]


class Exchange:
    """What the server saw of the last request, and whether its client left."""

    def __init__(self) -> None:
        self.body: dict[str, object] = {}
        self.path = ""
        self.headers: dict[str, str] = {}
        self.client_left = threading.Event()
        self.first_sent = threading.Event()
        self.url = ""
        self.port = 0

    def wait_until_client_leaves(self, handler: BaseHTTPRequestHandler) -> None:
        """Return when the client closed its side; fails the test after 20 s."""
        handler.connection.settimeout(20)
        try:
            gone = handler.connection.recv(1) == b""
        except ConnectionError:
            gone = True
        if gone:
            self.client_left.set()


def line(**fields: object) -> bytes:
    """One NDJSON line, with text as it is (not as ASCII)."""
    return json.dumps(fields, ensure_ascii=False).encode() + b"\n"


@contextmanager
def ndjson_server(
    answer: Callable[[Exchange, BaseHTTPRequestHandler, Say], None], *, status: int = 200, **headers: str
) -> Generator[Exchange]:
    """Serve on a free port of 127.0.0.1; `answer` writes the body through `say`, chunked.

    Where several ask at once, each one's body is that of its handler.
    """
    exchange = Exchange()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", "0"))
            self.body = exchange.body = json.loads(self.rfile.read(length)) if length else {}
            exchange.path = self.path
            exchange.headers = {name.lower(): value for name, value in self.headers.items()}
            self.send_response(status)
            if "Content_Type" not in headers:
                self.send_header("Content-Type", "application/x-ndjson")
            self.send_header("Transfer-Encoding", "chunked")
            self.send_header("Connection", "close")  # As it does: nobody may ask again on this connection.
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()

            def say(data: bytes) -> None:
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                self.wfile.flush()
                exchange.first_sent.set()

            try:
                answer(exchange, self, say)
                self.wfile.write(b"0\r\n\r\n")
            except ConnectionError:
                exchange.client_left.set()
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name
            """Stay quiet."""

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = False
        block_on_close = True

    with Server(("127.0.0.1", 0), Handler) as server:
        exchange.port = server.server_address[1]
        exchange.url = f"http://127.0.0.1:{exchange.port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield exchange
        finally:
            server.shutdown()
            thread.join()
