# SPDX-License-Identifier: GPL-3.0-only
"""Derive the OpenAPI 3.1 document from the endpoints' declarations. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from modeld import __version__
from modeld.errors import ERRORS, ModelNotFound
from modeld.http.endpoint import Endpoint, Parameter, Success
from modeld.http.errors import NATIVE
from modeld.http.origin_checks import READING_METHODS

Json = dict[str, Any]
"""A JSON object."""

_SCHEMAS = "#/components/schemas/"
_ABOUT = (
    "Every answer carries `X-Request-ID` (yours, if it is sane, else a new one) and "
    "`X-Content-Type-Options: nosniff`. JSON is compressed when asked for; streams are not. "
    "HEAD works where GET does. Leaving (close, reset, half-close) ends a request at once, "
    "also while it waits. Durations are written `30s`, `1m30s`, `500ms`; `*_mb` is MiB."
)
_HEADERS: Json = {
    "X-Request-ID": {"description": "The request's id, as in the log", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds until it is worth trying again", "schema": {"type": "integer"}},
}
_SECURITY_SCHEMES: Json = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key, where keys are in force"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
_DENIALS: Mapping[int, str] = {
    401: "Keys are in force, and the request has none that is known",
    403: "The key may not do this",
    429: "A limit of the key is reached, or too many new keys wait to be checked",
}
"""What a client that needs a key may be told instead of anything else."""
_OTHER_ORIGIN = "The request comes from a web page whose origin `cors_allowed_origins` does not list"
_OTHER_HOST = "No keys are in force, and `Host` is a name that `allowed_hosts` does not list"


def openapi_document(endpoints: Sequence[Endpoint]) -> Json:
    """Return the document."""
    types: list[object] = [it.body.type for it in endpoints if it.body is not None]
    for endpoint in endpoints:
        for answer in endpoint.answers:
            types += _types(answer)
        types.append(endpoint.errors.body)
    schemas, components = msgspec.json.schema_components(types, ref_template=_SCHEMAS + "{name}")
    known = {repr(type_): schema for type_, schema in zip(types, schemas, strict=True)}
    paths: Json = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.template, {})[endpoint.method.lower()] = _operation(endpoint, known)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "modeld",
            "version": __version__,
            "summary": "Many llama.cpp models from one machine, inside a memory budget",
            "description": _ABOUT,
            "license": {"name": "GPL-3.0-only", "identifier": "GPL-3.0-only"},
        },
        "paths": paths,
        "components": {"schemas": components, "headers": _HEADERS, "securitySchemes": _SECURITY_SCHEMES},
    }


def _operation(it: Endpoint, schemas: Mapping[str, Json]) -> Json:
    also = f"Also at {', '.join(f'`{path}`' for path in it.also)}." if it.also else ""
    found: Json = {
        "summary": it.summary,
        "description": " ".join(filter(None, (it.description, also))),
        "security": [{"bearer": []}, {"apiKey": []}, {}] if it.scopes else [],
    }
    if it.scopes:
        found["x-scopes"] = sorted(it.scopes)
    if it.parameters:
        found["parameters"] = [_parameter(parameter) for parameter in it.parameters]
    if it.body is not None:
        examples = {name: {"value": value} for name, value in it.body.examples.items()}
        content = {"schema": schemas[repr(it.body.type)], "examples": examples}
        found["requestBody"] = {"required": it.body.required, "content": {"application/json": content}}
    responses: Json = {}
    for answer in it.answers:
        _add_answer(responses, answer, it.summary, schemas)
    for status, meaning in {**_denials(it), **it.refusals}.items():
        responses.setdefault(str(status), _refusal(it, status, meaning, schemas[repr(it.errors.body)]))
    found["responses"] = responses
    return found


def _parameter(it: Parameter) -> Json:
    found: Json = {"name": it.name, "in": it.place, "description": it.meaning, "schema": it.schema}
    if it.place == "path":
        found["required"] = True
    if it.example is not None:
        found["example"] = it.example
    return found


def _add_answer(responses: Json, answer: Success, summary: str, schemas: Mapping[str, Json]) -> None:
    """Add an answer to those of its status, which it is an alternative to."""
    response = responses.setdefault(
        str(answer.status), {"description": answer.meaning or summary, "content": {}}
    )
    of_types = [schemas[repr(type_)] for type_ in _types(answer)]
    schema = {"oneOf": of_types} if len(of_types) > 1 else of_types[0] if of_types else answer.type
    response["content"][answer.media_type] = {"schema": schema}
    if answer.example is not None:
        response["content"][answer.media_type]["example"] = answer.example
    if answer.headers:
        response["headers"] = {
            name: {"description": meaning, "schema": {"type": "string"}}
            for name, meaning in answer.headers.items()
        }


def _types(answer: Success) -> Sequence[object]:
    """Return the types of an answer; none where it has a schema of its own."""
    if isinstance(answer.type, dict):
        return ()
    return answer.type if isinstance(answer.type, tuple) else (answer.type,)


def _denials(it: Endpoint) -> Mapping[int, str]:
    """Return the refusals that come before an endpoint is entered: of keys, origins and hosts.

    No key at all is always right where no keys are in force.
    """
    denials = dict(_DENIALS) if it.scopes else {}
    if it.method not in READING_METHODS:
        denials[403] = f"{denials[403]}. Or: {_OTHER_ORIGIN}" if it.scopes else _OTHER_ORIGIN
    if not it.any_host:
        denials[421] = _OTHER_HOST
    return denials


def _refusal(it: Endpoint, status: int, meaning: str, schema: Json) -> Json:
    """Return the answer of an error, with the kinds of it that there are."""
    kinds = sorted(kind for kind, error in ERRORS.items() if error.status == status)
    answer: Json = {
        "description": f"{meaning}. `type`: {', '.join(kinds)}" if kinds else meaning,
        "content": {"application/json": {"schema": schema}},
    }
    if status == ModelNotFound.status and it.errors is NATIVE:
        example = {
            "error": "no model is called llama; see GET /models",
            "code": 404,
            "type": "model_not_found",
        }
        answer["content"]["application/json"]["example"] = example
    if not kinds or any(ERRORS[kind].default_retry_after_s is not None for kind in kinds):
        answer["headers"] = {"Retry-After": {"$ref": "#/components/headers/Retry-After"}}
    return answer
