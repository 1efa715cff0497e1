# SPDX-License-Identifier: GPL-3.0-only
"""Declare an endpoint: everything that is known of it, in one place.

Routing, authorisation, the error format, `/openapi.json` and the reference in docs/api.md follow from it.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import GenericAlias

from quart import Response
from werkzeug.routing import BaseConverter

from modeld.config.values import did_you_mean
from modeld.errors import InvalidRequest
from modeld.http.context import HttpRequest
from modeld.http.errors import NATIVE, ErrorFormat
from modeld.quotas.client import Scope

View = Callable[..., Response] | Callable[..., Awaitable[Response]]
"""Takes the context of the app, the request, and what is variable in the path, by name."""
Json = dict[str, object]
"""A JSON object."""

OPEN: frozenset[Scope] = frozenset()
"""No key is needed: probes ask it, or it is in the source for everybody to read."""
INFER = frozenset({Scope.INFER})
ADMIN = frozenset({Scope.ADMIN})
READ = frozenset({Scope.METRICS, Scope.ADMIN})
ANY = frozenset(Scope)

_PARAMETER = re.compile(r"<(?:\w+:)?(\w+)>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A parameter in the path, the query or a header."""

    name: str
    place: str = "query"
    meaning: str
    schema: Json = field(default_factory=lambda: {"type": "string"})
    example: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """What a request carries: JSON of this type."""

    type: type
    examples: Mapping[str, Json]
    required: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Success:
    """What comes of success.

    Attributes:
      type: of the JSON, or of each line of a stream (several: one of them); a JSON schema where it is no
        type of modeld's.
      media_type: content type.
      status: answers with the same status are alternatives.
      meaning: in a few words; the endpoint's summary by default.
      example: a value, or the text of a stream.
      headers: names of further headers, and what they tell.
    """

    type: type | GenericAlias | tuple[type, ...] | Json
    media_type: str = "application/json"
    status: int = 200
    meaning: str = ""
    example: object = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One thing that clients can ask for.

    Attributes:
      method: HEAD comes with GET, OPTIONS with all.
      path: as Werkzeug's rules write it.
      view: answers the request.
      scopes: a key needs one of these; none at all: no key is needed.
      summary: one line without a full stop.
      errors: the format of its errors.
      description: what else a client should know.
      parameters: in the path, the query and headers; a query parameter that is not named is passed over,
        unless the view refuses it.
      body: None where it takes none.
      answers: of success.
      refusals: what the statuses of errors mean here; those of keys, origins and hosts are added.
      also: other paths of the same endpoint, for old clients.
      any_host: served by whatever name a client calls the daemon, as balancers do.
    """

    method: str
    path: str
    view: View
    scopes: frozenset[Scope]
    summary: str
    errors: ErrorFormat = NATIVE
    description: str = ""
    parameters: tuple[Parameter, ...] = ()
    body: Body | None = None
    answers: tuple[Success, ...] = ()
    refusals: Mapping[int, str] = field(default_factory=dict[int, str])
    also: tuple[str, ...] = ()
    any_host: bool = False

    @property
    def tolerant(self) -> bool:
        """Whether bodies may have keys without effect: those of other APIs, unless `strict_bodies`."""
        return self.errors is not NATIVE

    @property
    def name(self) -> str:
        """What routing calls it."""
        return f"{self.method} {self.path}"

    @property
    def template(self) -> str:
        """The path as OpenAPI and the pages write it: `/models/{model}/load`."""
        return _PARAMETER.sub(r"{\1}", self.path)


# ----------------------------------------------------------------------
# What several endpoints share.

SSE_EVENT: Json = {
    "type": "object",
    "description": "One event of the stream",
    "properties": {
        "event": {"type": "string"},
        "data": {"type": "string", "description": "JSON, or [DONE]"},
        "id": {"type": "string"},
    },
    "required": ["data"],
}
"""What each event of a stream is. (OpenAPI 3.1 has no word for the items of a stream; tools read it so.)"""

MODEL_IN_PATH = Parameter(
    name="model", place="path", meaning="Id or alias of the model", example="tinyllama-q4"
)

READING = {
    400: "The body is not JSON, or a key, type or value in it is wrong",
    404: "There is no such model",
    408: "The body did not arrive in time",
    413: "The body has more than `max_body_bytes` bytes",
    415: "`Content-Type` is not application/json",
}
"""Refusals of a body that names a model."""
GENERATING = {
    **READING,
    400: f"{READING[400]}; or the prompt exceeds the context",
    408: f"{READING[408]}. In the last line of a stream only: its reader fell too far behind",
    422: "The grammar or schema cannot be compiled",
    429: "The queue is full, or the request waited longer than `max_wait`",
    500: "A defect of modeld or of the engine",
    503: (
        "The daemon is shutting down, the model failed and is tried again later, or the request's time "
        "will be over before its turn comes"
    ),
    504: "The request's time was over before its first token",
    507: "The model does not fit in the memory budget",
}
"""Refusals of a request that waits for a slot of a model."""
EMBEDDING = {status: meaning for status, meaning in GENERATING.items() if status != 422}
"""Refusals of a request that waits for a model, and brings no grammar."""


# ----------------------------------------------------------------------
# Routing.


class AnyPath(BaseConverter):
    """`<path:...>` in a rule: whatever a model may be called, slashes and line ends included.

    Werkzeug's own takes no line ends, nor a slash at the beginning. A slash at the end is no part of a name.
    """

    part_isolating = False
    regex = "(?s:.*?[^/])"
    weight = 200


_EVERYWHERE = ("log",)
"""What every endpoint takes, see `http.request_log`."""


def refuse_unknown(request: HttpRequest, known: Sequence[str]) -> None:
    """Raise InvalidRequest, which names it, if there is a query parameter but these."""
    if not request.query_string:
        return
    for key in request.args:
        if key not in known and key not in _EVERYWHERE:
            raise InvalidRequest(f'unknown parameter "{key[:40]}"{did_you_mean(key, known)}')
