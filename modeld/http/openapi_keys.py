# SPDX-License-Identifier: GPL-3.0-only
"""What the OpenAPI document says of access: keys and their scopes, pages of other origins, hosts. Pure."""

from __future__ import annotations

from modeld.http.auth import scopes_for
from modeld.http.openapi_parts import Json, error_schema, refusal
from modeld.http.origin_checks import ANY_HOST, READING

SECURITY_SCHEMES: Json = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key, where keys are in force"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}

_DENIALS: dict[int, str] = {
    401: "Keys are in force, and the request has none that is known",
    403: "The key may not do this",
    429: "A limit of the key is reached, or too many new keys wait to be checked",
}
"""What whoever needs a key may be told instead of anything else."""
_OTHER_ORIGIN = "The request comes from a web page whose origin `cors_allowed_origins` does not list"
_OTHER_HOST = "No keys are in force, and `Host` is a name that `allowed_hosts` does not list"


def with_access(document: Json) -> Json:
    """Add to each operation which keys it takes, and the refusals that come before it is looked at.

    No key at all is always right where no keys are in force.
    """
    for path, operations in document["paths"].items():
        scopes = sorted(scopes_for(path))
        for method, operation in operations.items():
            operation["security"] = [{"bearer": []}, {"apiKey": []}, {}] if scopes else []
            denials = dict(_DENIALS) if scopes else {}
            if scopes:
                operation["x-scopes"] = scopes
            if method.upper() not in READING:
                denials[403] = f"{denials[403]}. Or: {_OTHER_ORIGIN}" if scopes else _OTHER_ORIGIN
            if path not in ANY_HOST:
                denials[421] = _OTHER_HOST
            for status, text in denials.items():
                operation["responses"].setdefault(str(status), refusal(status, text, error_schema(path)))
    return document
