# SPDX-License-Identifier: GPL-3.0-only
"""Who may do what: keys, scopes and models, asked of the edge over a socket."""

from __future__ import annotations

import httpx2
import pytest
from support.backend import DAMAGED, TINY, text_events
from support.http_server import serving
from support.keys import bearer, cheap_key, ring

from modeld.config.settings import Settings
from modeld.domain.request import Priority
from modeld.http.auth import beyond_loopback
from modeld.http.endpoints import ENDPOINTS
from modeld.http.openapi.document import openapi_document
from modeld.quotas.client import Scope

ASK = {"prompt": "Hello", "stream": False}
OPEN = ["/healthz", "/readyz", "/openapi.json", "/docs"]


async def test_without_keys_everybody_may_do_everything() -> None:
    """No key is asked for, and one that is sent harms nothing."""
    async with serving(text_events("a")) as served, served.client() as client:
        assert (await client.post("/infer", json=ASK)).status_code == 200
        assert (await client.post("/infer", json=ASK, headers=bearer("anything"))).status_code == 200
        assert (await client.get("/status")).json()["keys"] is None


async def test_a_key_is_taken_from_either_header() -> None:
    """Bearer in any case, or X-API-Key; a scheme that is not Bearer leaves it to the latter."""
    keyring, texts = ring(alice={})
    alice = texts["alice"]
    async with serving(text_events("a"), keyring=keyring) as served, served.client() as client:
        for headers in (
            bearer(alice),
            {"Authorization": f"bEARER  {alice}"},
            {"X-API-Key": alice},
            {"Authorization": "Basic eDp5", "x-api-key": alice},
        ):
            assert (await client.post("/infer", json=ASK, headers=headers)).status_code == 200


@pytest.mark.parametrize("case", ["none", "unknown", "wrong", "cut", "basic", "empty"])
async def test_without_a_good_key_nothing_is_done(case: str) -> None:
    """401 as JSON with how to log in, and the runtime hears nothing of it; the next request is served."""
    keyring, texts = ring(alice={})
    alice = texts["alice"]
    headers = {
        "none": {},
        "unknown": bearer(cheap_key("x")[1]),
        "wrong": bearer(alice[:-4] + "0000"),
        "cut": bearer(alice[:-1]),
        "basic": {"Authorization": "Basic eDp5"},
        "empty": {"Authorization": "Bearer", "X-API-Key": ""},
    }[case]
    async with serving(text_events("a"), keyring=keyring) as served, served.client() as client:
        answer = await client.post("/infer", json={"prompt": "x" * 200_000}, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["type"] == "unauthorized"
        assert answer.headers["www-authenticate"] == 'Bearer realm="modeld"'
        assert served.backend.tickets == []
        assert (await client.post("/infer", json=ASK, headers=bearer(alice))).status_code == 200


@pytest.mark.parametrize("path", OPEN)
async def test_probes_and_the_contract_are_open(path: str) -> None:
    """They need no key, and take no offence at a bad one."""
    keyring, _ = ring()
    async with serving(keyring=keyring) as served, served.client() as client:
        assert (await client.get(path)).status_code == 200
        assert (await client.head(path, headers=bearer("bad"))).status_code == 200


GETS = {
    "/models": {"infer", "admin", "metrics"},
    "/status": {"admin", "metrics"},
    "/metrics": {"admin", "metrics"},
}


@pytest.mark.parametrize("scope", [str(scope) for scope in Scope])
async def test_a_scope_opens_what_it_says_and_no_more(scope: str) -> None:
    """Other routes are 403 with a sentence that names the scope."""
    keyring, texts = ring(alice={"scopes": [scope]})
    async with (
        serving(text_events("a"), keyring=keyring) as served,
        served.client(headers=bearer(texts["alice"])) as client,
    ):
        for path, scopes in GETS.items():
            answer = await client.get(path)
            assert answer.status_code == (200 if scope in scopes else 403), path
            assert (await client.head(path)).status_code == answer.status_code
        answer = await client.post("/infer", json=ASK)
        assert answer.status_code == (200 if scope == "infer" else 403)
        if answer.status_code == 403:
            assert answer.json()["type"] == "forbidden"
            assert "that takes the scope infer" in answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "missing", "denied"),
    [
        ("/v1/chat/completions", "authentication_error", "permission_error"),
        ("/api/chat", None, None),
        ("/infer", "unauthorized", "forbidden"),
    ],
)
async def test_a_refusal_has_the_shape_of_its_dialect(
    path: str, missing: str | None, denied: str | None
) -> None:
    """401 and 403 look as clients of that API expect, and name the kind where it has kinds."""
    keyring, texts = ring(watch={"scopes": ["metrics"]})
    async with serving(text_events("a"), keyring=keyring) as served, served.client() as client:
        for headers, status, kind in (({}, 401, missing), (bearer(texts["watch"]), 403, denied)):
            answer = await client.post(path, json={"messages": []}, headers=headers)
            assert answer.status_code == status
            error = answer.json()["error"]
            if isinstance(error, dict):
                assert (error["type"], "key" in error["message"]) == (kind, True)
            else:
                assert "key" in error
                assert answer.json().get("type") == kind


async def test_a_path_that_is_not_there_tells_nothing() -> None:
    """404 and 405 need no key: they say no more than the contract does."""
    keyring, _ = ring()
    async with serving(keyring=keyring) as served, served.client() as client:
        assert (await client.get("/nowhere")).status_code == 404
        assert (await client.delete("/infer")).status_code == 405


async def test_a_model_that_is_not_for_a_key_is_not_there() -> None:
    """It is not listed, not the default, and a request for it is answered like one for a name nobody has."""
    keyring, texts = ring(few={"models": ["zz-*"]}, all={})
    async with serving(text_events("a"), keyring=keyring) as served, served.client() as client:
        listed = (await client.get("/models", headers=bearer(texts["few"]))).json()["models"]
        assert [model["id"] for model in listed] == [DAMAGED.id]
        answers: list[httpx2.Response] = []
        for name in (TINY.id, "tiny-q4", "nobody-is"):
            answers.append(
                await client.post("/infer", json={**ASK, "model": name}, headers=bearer(texts["few"]))
            )
            assert answers[-1].status_code == 404
            assert answers[-1].json()["error"] == (
                f"there is no model {name!r}; GET /models lists the 1 there are"
            )
        assert (await client.post("/infer", json=ASK, headers=bearer(texts["few"]))).status_code == 404
        assert served.backend.tickets == []
        assert (await client.post("/infer", json=ASK, headers=bearer(texts["all"]))).status_code == 200


async def test_a_key_has_its_own_default_model() -> None:
    """Who names no model gets the first healthy one of those he sees."""
    keyring, texts = ring(alice={"models": ["tiny*"]})
    async with (
        serving(text_events("a"), keyring=keyring) as served,
        served.client(headers=bearer(texts["alice"])) as client,
    ):
        assert (await client.post("/infer", json=ASK)).json()["model"] == TINY.id


async def test_a_priority_above_the_ceiling_is_lowered() -> None:
    """The request is served, in the highest class that its key may have."""
    keyring, texts = ring(alice={"priority": "normal"})
    async with (
        serving(text_events("a"), keyring=keyring) as served,
        served.client(headers=bearer(texts["alice"])) as client,
    ):
        for asked in ("high", "low"):
            assert (await client.post("/infer", json={**ASK, "priority": asked})).status_code == 200
        assert [it.order.priority for it in served.backend.tickets] == [Priority.NORMAL, Priority.LOW]


async def test_browsers_may_ask_before_they_have_a_key() -> None:
    """A preflight carries no key; its answer lets the page send one."""
    settings = Settings(
        cors_enabled=True,
        cors_allowed_origins=("https://app.example",),
        cors_allowed_headers=("Authorization",),
    )
    keyring, _ = ring()
    ask = {
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    async with serving(keyring=keyring, settings=settings) as served, served.client() as client:
        answer = await client.options("/infer", headers=ask)
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-headers"] == "authorization"
        refused = await client.post("/infer", json=ASK, headers={"Origin": "https://app.example"})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://app.example"


def test_only_what_tells_nothing_is_open() -> None:
    """Probes, the contract and the version need no key; what joins these joins them here, too."""
    assert {it.path for it in ENDPOINTS if not it.scopes} == {
        *("/", "/healthz", "/readyz", "/health", "/openapi.json", "/docs", "/api/version"),
    }


@pytest.mark.parametrize(
    ("path", "scopes"),
    [
        ("/models/<path:model>/load", {"admin"}),
        ("/operations/<operation>", {"admin"}),
        ("/events", {"admin"}),
        ("/keys", {"admin"}),
        ("/plan", {"admin"}),
        ("/models/load", {"admin"}),
        ("/status", {"admin", "metrics"}),
        ("/metrics", {"admin", "metrics"}),
        ("/v1/chat/completions", {"infer"}),
        ("/v1/messages", {"infer"}),
        ("/api/chat", {"infer"}),
        ("/completion", {"infer"}),
        ("/models", {"admin", "infer", "metrics"}),
    ],
)
def test_a_key_needs_the_scope_of_what_it_does(path: str, scopes: set[str]) -> None:
    """Changing the fleet takes `admin`, watching it `metrics`, asking a model `infer`."""
    assert {it.scopes for it in ENDPOINTS if it.path == path} == {frozenset(map(Scope, scopes))}


def test_the_contract_says_which_keys_a_path_takes() -> None:
    """Whatever needs a key names both ways to send one, the scopes, and the refusals; probes need none."""
    document = openapi_document(ENDPOINTS)
    assert set(document["components"]["securitySchemes"]) == {"bearer", "apiKey"}
    for endpoint in ENDPOINTS:
        operation = document["paths"][endpoint.template][endpoint.method.lower()]
        if not endpoint.scopes:
            assert operation["security"] == []
        else:
            assert {"bearer": []} in operation["security"]
            assert set(operation["x-scopes"]) == endpoint.scopes
            assert {"401", "403", "429"} <= set(operation["responses"])


def test_strangers_reach_what_is_not_loopback() -> None:
    """Every address of this machine's own is safe, in both families, and sockets in the file system are."""
    safe = ["http://127.0.0.1:8080", "http://127.9.9.9:1", "http://[::1]:8080", "unix:/run/modeld.sock"]
    reached = ["http://0.0.0.0:8080", "http://[::]:8080", "http://192.168.1.5:80", "https://10.0.0.1:443"]
    assert beyond_loopback([*safe, *reached]) == tuple(reached)


async def test_an_open_door_is_marked_in_the_status() -> None:
    """Listening to the network without keys is a warning there and in the log; with keys it is none."""
    keyring, texts = ring(alice={"scopes": ["metrics"]})
    async with serving() as served, served.client() as client:
        assert (await client.get("/status")).json()["warnings"] == []
        served.app.authorizer.listens_on(["http://0.0.0.0:8080"])
        [warning] = (await client.get("/status")).json()["warnings"]
        assert warning.startswith("NO KEYS: whoever reaches http://0.0.0.0:8080")
    async with serving(keyring=keyring) as served, served.client(headers=bearer(texts["alice"])) as client:
        served.app.authorizer.listens_on(["http://0.0.0.0:8080"])
        status = (await client.get("/status")).json()
        assert (status["warnings"], status["keys"]) == ([], 1)


async def test_a_file_without_keys_lets_nobody_in() -> None:
    """Revoking the last key does not open the door."""
    keyring, _ = ring()
    async with serving(keyring=keyring) as served, served.client() as client:
        assert (await client.post("/infer", json=ASK)).status_code == 401
        assert "has no key" in served.app.authorizer.warnings[0]
