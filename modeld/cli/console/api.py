# SPDX-License-Identifier: GPL-3.0-only
"""Call the daemon's state and control endpoints: one request, one JSON answer.

Bodies are kept as the daemon sent them, for `--json`; `read` makes values of them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote

import httpx2
import msgspec

from modeld.cli.client import CannotConnect, Refused, transport_to
from modeld.cli.target import Target

Value = TypeVar("Value")

_CONNECT_S = 5.0
_ANSWER_S = 15.0
"""Everything but a wait is answered at once; a daemon that is silent for so long hangs."""
_SILENT_S = 60.0
"""A stream carries an empty line every 15 s; one that is silent for so long is broken."""
_BEHIND = frozenset({502, 503, 504})
"""What a proxy says when the daemon behind it is gone."""


class Denied(Refused):
    """The daemon answered with an error; `status` is its HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _Error(msgspec.Struct, frozen=True):
    error: str
    code: int = 0
    type: str = ""


class Api:
    """A daemon, over one kept connection. Proxies of the environment are not used."""

    def __init__(self, target: Target, *, answer_s: float = _ANSWER_S) -> None:
        self.target = target
        self._answer_s = answer_s
        self._client = httpx2.Client(
            transport=transport_to(target),
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
        if response.is_success and _is_json(response):
            return response.content
        raise self._refusal(response, f"{method} {path.partition('?')[0]}")

    @contextmanager
    def lines(self, path: str, *, accept: str) -> Generator[Iterator[bytes]]:
        """Give the lines of an endless stream, without line ends and empty lines; raises as `get`.

        Also while its lines are read.
        """
        timeout = httpx2.Timeout(None, connect=_CONNECT_S, read=_SILENT_S)
        stream = self._client.stream(
            "GET", self.target.url + path, headers={"Accept": accept}, timeout=timeout
        )
        with self._told(_SILENT_S), stream as response:
            if not response.is_success:
                response.read()
                raise self._refusal(response, f"GET {path.partition('?')[0]}")
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
            raise CannotConnect(f"the connection broke: {_reason(error)}") from None
        except httpx2.InvalidURL as error:
            raise Refused(f"{self.target.url} is no address of a daemon: {error}") from None

    def _refusal(self, response: httpx2.Response, asked: str) -> Exception:
        status = f"{response.status_code} {response.reason_phrase}".strip()
        try:
            told = msgspec.json.decode(response.content, type=_Error)
        except (msgspec.DecodeError, UnicodeDecodeError):
            if response.status_code in _BEHIND:
                return CannotConnect(f"something else answers there: {status}")
            return Refused(
                f"what answers at {self.target.place} is no modeld: {asked} gave {status}; "
                "name the daemon's address with --addr"
            )
        text = told.error
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


def read(data: bytes, kind: type[Value]) -> Value:
    """Return the answer as a value. Keys that are not known are left out, so a newer daemon can be read.

    Raises:
      Refused: it is not of that kind.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(f"the daemon's answer cannot be read; it may be of another version: {error}") from None


def _is_json(response: httpx2.Response) -> bool:
    return response.headers.get("Content-Type", "").startswith("application/json")


def _lines(response: httpx2.Response) -> Iterator[bytes]:
    rest = b""
    for data in response.iter_bytes():
        *whole, rest = (rest + data).split(b"\n")
        yield from (line for line in whole if line.strip())


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


# ----------------------------------------------------------------------
# The daemon's answers, as far as people are shown them.
#
# Every key has a default, so that an older or newer daemon can be read. `docs/api.md` tells what
# they mean: `*_mb` is MiB, `*_unix` seconds since the epoch, `*_ms` milliseconds.


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """A model in `/status`."""

    model_id: str
    state: str = "stopped"
    last_used_unix: float = 0.0
    est_vram_mb: float = 0.0
    measured_mb: float | None = None
    queue_len: int = 0
    inflight: int = 0
    slots: int = 0
    busy_slots: int = 0
    pinned: bool = False
    ttl_s: float | None = None
    load_progress: float | None = None
    load_ms: float | None = None
    eta_ms: float | None = None
    tokens_per_second: float = 0.0
    restarts: int = 0
    last_error: str | None = None
    context_length: int = 0
    kv_cells: int = 0
    pid: int | None = None
    silent_s: float | None = None


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One of the scheduler's last decisions."""

    at_unix: float = 0.0
    action: str = ""
    model_id: str = ""
    reason: str = ""
    numbers: Mapping[str, float] = {}


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """Memory of one device."""

    name: str = ""
    total_mb: float = 0.0
    free_mb: float = 0.0
    kind: str = ""
    ours_mb: float = 0.0
    foreign_mb: float = 0.0
    effective_mb: float | None = None


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /status`."""

    state: str
    version: str = ""
    node_id: str = ""
    server_time_unix: float = 0.0
    uptime_seconds: float = 0.0
    instances: tuple[Instance, ...] = ()
    budget_mb: float = 0.0
    effective_budget_mb: float | None = None
    shortage: str | None = None
    used_est_mb: float = 0.0
    reserved_mb: float = 0.0
    unaccounted_mb: float = 0.0
    margin_mb: float = 0.0
    error: str | None = None
    last_error: str | None = None
    warnings: tuple[str, ...] = ()
    evictions_total: int = 0
    loads_total: int = 0
    queued_total: int = 0
    inflight_total: int = 0
    devices: tuple[Device, ...] = ()
    decisions: tuple[Decision, ...] = ()


class RawDecisions(msgspec.Struct, frozen=True):
    """The decisions of `GET /status`, as they are."""

    decisions: tuple[msgspec.Raw, ...] = ()


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `GET /models`."""

    id: str
    quant: str = ""
    family: str = ""
    size_bytes: int = 0
    context_length: int = 0
    parameters: int = 0
    state: str = "stopped"
    aliases: tuple[str, ...] = ()
    default: bool = False
    pinned: bool = False
    kv_cells: int = 0
    slots: int = 0
    est_vram_mb: float = 0.0
    error: str | None = None


class Models(msgspec.Struct, frozen=True):
    """`GET /models`."""

    models: tuple[Model, ...]


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """A load, an unload or a switch, and how far it is."""

    id: str
    kind: str = ""
    model: str = ""
    state: str = "running"
    """running, done, failed, cancelled."""
    phase: str = ""
    """queued, evicting, loading, draining, stopping, done."""
    progress: float = 0.0
    reason: str = ""
    evicted: tuple[str, ...] = ()
    created_unix: float = 0.0
    ended_unix: float | None = None
    error: str | None = None
    code: int | None = None
    key: str | None = None
    """Name of the key of who asked, where keys are in force."""

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.state != "running"


class Operations(msgspec.Struct, frozen=True):
    """`GET /operations`."""

    operations: tuple[Operation, ...] = ()


class Victim(msgspec.Struct, frozen=True):
    """Who would have to go."""

    model_id: str = ""
    mb: float = 0.0
    why: str = ""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /plan`."""

    model: str
    fits: bool
    verdict: str = ""
    needs_mb: float = 0.0
    free_mb: float | None = None
    budget_mb: float | None = None
    evicts: tuple[Victim, ...] = ()
    drains: tuple[Victim | str, ...] = ()
    wait_ms: float | None = None
    load_ms: float | None = None
    footprint: Mapping[str, float | str | bool | None] = {}
