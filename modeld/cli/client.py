# SPDX-License-Identifier: GPL-3.0-only
"""Send one `POST /infer` and read its lines as they arrive."""

from __future__ import annotations

import ssl
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager

import httpx2
import msgspec

from modeld.cli.target import Target

_CONNECT_S = 5.0
_LONGEST_LINE = 64 * 1024 * 1024


class Usage(msgspec.Struct, frozen=True):
    """Token counts of a last line."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class Stats(msgspec.Struct, frozen=True):
    """Durations of a last line, milliseconds."""

    duration_ms: float = 0
    queue_ms: float = 0
    load_ms: float = 0
    ttft_ms: float | None = None
    tokens_per_second: float = 0


class Line(msgspec.Struct, frozen=True):
    """One line of the stream: an event, text, or (with `done`) the last one."""

    event: str | None = None
    position: int | None = None
    eta_ms: float | None = None
    progress: float | None = None
    token: str | None = None
    done: bool = False
    finish_reason: str | None = None
    error: str | None = None
    usage: Usage = Usage()
    stats: Stats = Stats()


class CannotConnect(Exception):
    """Nothing answers at the address."""


class Refused(Exception):
    """The server answered with an error, or not as modeld does. The message is a sentence."""


def transport_to(target: Target) -> httpx2.HTTPTransport:
    """Return what connects to the daemon: over TCP, with TLS for https, or to a Unix socket.

    Raises:
      Refused: the file of authorities cannot be used.
    """
    if target.socket_path is not None:
        return httpx2.HTTPTransport(uds=target.socket_path)
    if target.ca_file is None or not target.url.startswith("https:"):
        return httpx2.HTTPTransport()
    try:
        return httpx2.HTTPTransport(verify=ssl.create_default_context(cafile=target.ca_file))
    except (OSError, ssl.SSLError) as error:
        raise Refused(f"{target.ca_file} holds no certificates that can be used: {error}") from None


@contextmanager
def infer(target: Target, body: Mapping[str, object]) -> Generator[Iterator[bytes]]:
    """Post `body` to the daemon and give its lines, without line ends and keep-alives.

    Leaving the block closes the connection, which cancels the generation. Proxies of the
    environment are not used: the daemon is on this machine or in this network.

    Raises:
      CannotConnect: no connection came about.
      Refused: the status is not 200, the answer is no NDJSON, or the connection broke.
    """
    timeout = httpx2.Timeout(None, connect=_CONNECT_S)
    try:
        with (
            httpx2.Client(
                transport=transport_to(target), timeout=timeout, trust_env=False, headers=target.headers
            ) as client,
            client.stream("POST", f"{target.url}/infer", json=body) as response,
        ):
            if not response.is_success:
                raise Refused(_refusal(response))
            yield _lines(response)
    except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
        raise CannotConnect(str(error) or type(error).__name__) from None
    except (httpx2.RequestError, httpx2.InvalidURL) as error:
        raise Refused(f"the connection broke before the answer was complete: {error}") from None


def _lines(response: httpx2.Response) -> Iterator[bytes]:
    rest = b""
    for data in response.iter_bytes():
        *whole, rest = (rest + data).split(b"\n")
        yield from (line for line in whole if line.strip())
        if len(rest) > _LONGEST_LINE:
            raise Refused("the server sent a line of more than 64 MiB")
    if rest.strip():
        yield rest


def parse_line(line: bytes) -> Line:
    """Return the line as a value.

    Raises:
      Refused: it is not what modeld sends.
    """
    try:
        return msgspec.json.decode(line, type=Line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Refused("what answers there does not speak modeld's protocol") from None


def _refusal(response: httpx2.Response) -> str:
    response.read()
    try:
        sentence = msgspec.json.decode(response.content, type=Line).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        sentence = None
    text = sentence or f"the server answered {response.status_code} {response.reason_phrase}"
    wait = response.headers.get("Retry-After", "")
    return f"{text} (try again in {wait} s)" if wait.isdigit() else text
