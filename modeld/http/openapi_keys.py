# SPDX-License-Identifier: GPL-3.0-only
"""What the OpenAPI document says of keys: how to send one, and which scopes open a path. Pure."""

from __future__ import annotations

from modeld.http.auth import scopes_for
from modeld.http.openapi_parts import Json, error_schema, refusal

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


def with_keys(document: Json) -> Json:
    """Say of each operation which keys it takes: none at all is always right where no keys are in force."""
    for path, operations in document["paths"].items():
        scopes = sorted(scopes_for(path))
        for operation in operations.values():
            operation["security"] = [{"bearer": []}, {"apiKey": []}, {}] if scopes else []
            if scopes:
                operation["x-scopes"] = scopes
                for status, text in _DENIALS.items():
                    operation["responses"].setdefault(str(status), refusal(status, text, error_schema(path)))
    return document
