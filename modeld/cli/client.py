# SPDX-License-Identifier: GPL-3.0-only
"""Call the daemon over HTTP: one request and one JSON answer, or the lines of a stream.

Bodies are given as the daemon sent them, for `--json`; `answers.read` makes values of them.
"""

from __future__ import annotations

import ssl
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Self
from urllib.parse import quote

import httpx2
import msgspec

from modeld.cli.target import Target

NDJSON = "application/x-ndjson"

_CONNECT_S = 5.0
_ANSWER_S = 15.0
"""Everything but a wait is answered at once; a daemon that is silent for so long hangs."""
_LONGEST_LINE = 64 * 1024 * 1024
_BEHIND = frozenset({502, 503, 504})
"""What a proxy says when the daemon behind it is gone."""


class CannotConnect(Exception):
    """No daemon answers at the address. The message says why."""


class Broken(CannotConnect):
    """The connection ended before the answer was complete; `why` is the system's reason."""

    def __init__(self, why: str) -> None:
        super().__init__(f"the connection broke: {why}")
        self.why = why


class Refused(Exception):
    """The server answered with an error, or not as modeld does. The message is a sentence."""


class Denied(Refused):
    """The daemon answered with an error; `status` is its HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _Sentence(msgspec.Struct, frozen=True):
    """Of an error, what people are told."""

    error: str


class Api:
    """A daemon, over one kept connection.

    Proxies of the environment are not used: the daemon is on this machine or in this network.

    Raises:
      Refused: the file of authorities cannot be used.
    """

    def __init__(self, target: Target, *, answer_s: float = _ANSWER_S) -> None:
        self.target = target
        self._answer_s = answer_s
        self._client = httpx2.Client(
            transport=_transport_to(target),
            headers={**target.headers, "Accept": "application/json"},
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def get(self, path: str, *, wait_s: float = 0.0) -> bytes:
        """Return the body of an answer that the daemon gives at once, or within `wait_s`.

        Raises:
          CannotConnect: no daemon answers there.
          Refused: the daemon answered with an error (`Denied`), or something else answers there.
        """
        return self._ask("GET", path, None, wait_s)

    def post(self, path: str, body: Mapping[str, object] | None = None) -> bytes:
        """Post a JSON object; as `get` otherwise."""
        return self._ask("POST", path, body or {}, 0.0)

    def delete(self, path: str) -> bytes:
        """As `get`."""
        return self._ask("DELETE", path, None, 0.0)

    def _ask(self, method: str, path: str, body: Mapping[str, object] | None, wait_s: float) -> bytes:
        timeout = httpx2.Timeout(self._answer_s + wait_s, connect=_CONNECT_S)
        with self._told(self._answer_s + wait_s):
            response = self._client.request(method, self.target.url + path, json=body, timeout=timeout)
        if response.is_success and response.headers.get("Content-Type", "").startswith("application/json"):
            return response.content
        raise self._refusal(response, f"{method} {path.partition('?')[0]}")

    @contextmanager
    def lines(
        self, path: str, body: Mapping[str, object] | None = None, *, silent_s: float | None = None
    ) -> Generator[Iterator[bytes]]:
        """Give the lines of a stream, without line ends and empty lines. A body is posted.

        Leaving the block closes the connection, which cancels what the daemon does for it. A stream that is
        silent for `silent_s` is broken. Raises as `get`, also while its lines are read.
        """
        timeout = httpx2.Timeout(None, connect=_CONNECT_S, read=silent_s)
        method = "GET" if body is None else "POST"
        stream = self._client.stream(
            method, self.target.url + path, json=body, headers={"Accept": NDJSON}, timeout=timeout
        )
        with self._told(silent_s or 0.0), stream as response:
            if not response.is_success:
                response.read()
                raise self._refusal(response, f"{method} {path.partition('?')[0]}")
            yield _lines(response)

    @contextmanager
    def _told(self, seconds: float) -> Generator[None]:
        """Tell failures of the transport in sentences."""
        try:
            yield
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise CannotConnect(_reason(error)) from None
        except httpx2.ReadTimeout:
            raise CannotConnect(
                f"the connection was taken, but nothing came within {seconds:g} s: the daemon hangs"
            ) from None
        except httpx2.RequestError as error:
            raise Broken(_reason(error)) from None
        except httpx2.InvalidURL as error:
            raise Refused(f"{self.target.url} is no address of a daemon: {error}") from None

    def _refusal(self, response: httpx2.Response, asked: str) -> Exception:
        status = f"{response.status_code} {response.reason_phrase}".strip()
        try:
            text = msgspec.json.decode(response.content, type=_Sentence).error
        except (msgspec.DecodeError, UnicodeDecodeError):
            if response.status_code in _BEHIND:
                return CannotConnect(f"something else answers there: {status}")
            return Refused(
                f"what answers at {self.target.place} is no modeld: {asked} gave {status}; "
                "name the daemon's address with --addr"
            )
        wait = response.headers.get("Retry-After", "")
        if wait.isdigit():
            text = f"{text} (try again in {wait} s)"
        if response.status_code == 401:
            text = f"{text} (give a key with --api-key-file, or in MODELD_API_KEY)"
        return Denied(text, response.status_code)


def model_path(model: str, action: str = "") -> str:
    """Return the path of a model's routes; an id may hold slashes, and whatever a file system allows."""
    path = f"/models/{quote(model, safe='')}"
    return f"{path}/{action}" if action else path


def _transport_to(target: Target) -> httpx2.HTTPTransport:
    """Return what connects to the daemon: over TCP, with TLS for https, or to a Unix socket."""
    if target.socket_path is not None:
        return httpx2.HTTPTransport(uds=target.socket_path)
    if target.ca_file is None or not target.url.startswith("https:"):
        return httpx2.HTTPTransport()
    try:
        return httpx2.HTTPTransport(verify=ssl.create_default_context(cafile=target.ca_file))
    except (OSError, ssl.SSLError) as error:
        raise Refused(f"{target.ca_file} holds no certificates that can be used: {error}") from None


def _lines(response: httpx2.Response) -> Iterator[bytes]:
    rest = b""
    for data in response.iter_bytes():
        *whole, rest = (rest + data).split(b"\n")
        yield from (line for line in whole if line.strip())
        if len(rest) > _LONGEST_LINE:
            raise Refused("the server sent a line of more than 64 MiB")


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
