# SPDX-License-Identifier: GPL-3.0-only
"""The stream of `testctl demo`, from a server that answers as the test wants."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from typing import ClassVar

import pytest
from testctl_lib.demo import stream
from testctl_lib.steps import ToolError


class Daemon(http.server.BaseHTTPRequestHandler):
    """Answers as modeld does, with lines that the test chose."""

    protocol_version = "HTTP/1.1"
    lines: ClassVar[list[str]] = []
    status: ClassVar[int] = 200

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.status)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in self.lines:
            data = line.encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        """Say nothing: the test reads what testctl prints."""


@pytest.fixture
def port() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Daemon)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_stream_is_printed_and_its_last_line_returned(
    port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Events, blank keep-alive lines and tokens are each treated as what they are."""
    last = {"done": True, "content": "a bé", "finish_reason": "stop"}
    Daemon.status, Daemon.lines = 200, [
        '{"event":"queued","position":1}',
        '{"event":"loading","progress":0.5}',
        '{"token":"a ","done":false}',
        "",
        '{"token":"bé","done":false}',
        json.dumps(last),
    ]  # fmt: skip
    assert stream(port, {"prompt": "x"}) == last
    assert "a bé\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("status", "lines", "message"),
    [
        (404, ['{"error":"no such model","code":404}'], "POST /infer said 404: .*no such model"),
        (200, ['{"token":"a","done":false}'], "ended without its last line"),
        (200, ['{"done":true,"error":"the engine died","code":500}'], "the stream failed: the engine died"),
    ],
)
def test_a_stream_that_went_wrong_is_an_error(port: int, status: int, lines: list[str], message: str) -> None:
    """A refusal, a cut and a failure in the stream are told apart, and none passes for success."""
    Daemon.status, Daemon.lines = status, lines
    with pytest.raises(ToolError, match=message):
        stream(port, {"prompt": "x"})
