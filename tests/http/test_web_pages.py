# SPDX-License-Identifier: GPL-3.0-only
"""What web pages can do to the context, over a socket: nothing, unless CORS lets them in."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest
from support.backend import TINY, text_events
from support.browser import Blocked, Page
from support.http_server import Served, serving
from support.keys import bearer, ring

from modeld.config.settings import Settings
from modeld.http.endpoints import ENDPOINTS
from modeld.http.openapi.document import openapi_document

EVIL = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
APP = "https://app.example"
ON = Settings(cors_enabled=True, cors_allowed_origins=(APP,))
CHAT = {"model": TINY.id, "messages": [{"role": "user", "content": "Hi"}]}

ACTIONS = (
    *("/models/tiny-q4/load", "/models/tiny-q4/unload", "/models/tiny-q4/switch", "/models/tiny-q4/pin"),
    *("/plan", "/infer", "/embed", "/tokenize", "/apply-template"),
    *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"),
    *("/v1/messages", "/v1/messages/count_tokens"),
    *("/api/generate", "/api/chat", "/api/embed", "/api/show"),
    *("/completion", "/embedding", "/models/load", "/models/unload"),
    *("/nowhere", "/v1/nowhere", "/healthz"),
)


def told(path: str, answer: httpx2.Response) -> tuple[str, Any]:
    """The sentence of an error, and its kind as the dialect of the path has it."""
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    if path.startswith("/api/"):
        return body["error"], None
    if path.startswith("/v1/messages"):
        assert body["type"] == "error"
        return body["error"]["message"], body["error"]["type"]
    if path.startswith("/v1/"):
        return body["error"]["message"], body["error"]["code"]
    if path.startswith(("/completion", "/embedding", "/models/load", "/models/unload")):
        return body["error"]["message"], body["error"]["code"]
    assert body["code"] == answer.status_code
    return body["error"], body["type"]


def kind_of(path: str, status: int) -> Any:
    """What `told` gives as the kind."""
    if path.startswith("/api/"):
        return None
    if path.startswith("/v1/messages"):
        return "permission_error" if status == 403 else "invalid_request_error"
    if path.startswith(("/completion", "/embedding", "/models/load", "/models/unload")):
        return status
    return "origin_not_allowed" if status == 403 else "host_not_allowed"


def heard(served: Served) -> int:
    """How many requests have reached the runtime. This backend takes no operations: they would be a 500."""
    return len(served.backend.tickets)


@pytest.mark.parametrize("path", ACTIONS)
async def test_a_page_of_another_site_does_nothing(path: str) -> None:
    """403 in the dialect's envelope, with the setting, before the route: nothing reaches the runtime."""
    keyring, _ = ring()
    for keys in (None, keyring):
        async with serving(text_events("a"), keyring=keys) as served, served.client() as client:
            for headers in (EVIL, {"Origin": "null"}, {"Sec-Fetch-Site": "same-site"}):
                for body in (b"", json.dumps(CHAT).encode()):
                    answer = await client.post(path, content=body, headers={**bearer("wrong"), **headers})
                    sentence, kind = told(path, answer)
                    assert (answer.status_code, kind) == (403, kind_of(path, 403))
                    assert "cors_allowed_origins" in sentence
                    assert "access-control-allow-origin" not in answer.headers
            assert heard(served) == 0


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
async def test_methods_that_a_path_does_not_take_are_refused_alike(method: str) -> None:
    """A page learns nothing of paths."""
    async with serving() as served, served.client() as client:
        for path in ("/operations/x", "/infer", "/nowhere"):
            assert (await client.request(method, path, headers=EVIL)).status_code == 403


async def test_a_page_of_another_site_may_ask_and_cannot_read() -> None:
    """GET changes nothing, and without CORS its browser keeps the answer from it; preflights are refused."""
    async with serving() as served, served.client() as client:
        answer = await client.get("/models", headers=EVIL)
        assert answer.status_code == 200
        assert "access-control-allow-origin" not in answer.headers
        with pytest.raises(Blocked, match="preflight"):
            await Page(client, APP).fetch("POST", "/infer", {"Content-Type": "application/json"})


@pytest.mark.parametrize("path", [*ACTIONS, "/", "/docs", "/models", "/status", "/metrics", "/openapi.json"])
async def test_a_rebound_page_gets_nothing_without_keys(path: str) -> None:
    """421 in the dialect's envelope, with the setting: for reading, too, as the page could read it."""
    async with serving(text_events("a")) as served, served.client() as client:
        host = f"evil.example:{served.port}"
        rebound = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
        for method in ("POST", "GET", "OPTIONS"):
            answer = await client.request(method, path, headers=rebound)
            if path == "/healthz" and method != "POST":
                assert answer.status_code == 200
                continue
            sentence, kind = told(path, answer)
            assert (answer.status_code, kind) == (421, kind_of(path, 421))
            assert "allowed_hosts" in sentence
        assert (await client.head(path, headers={"Host": host})).status_code == (
            200 if path == "/healthz" else 421
        )
        assert heard(served) == 0


async def test_probes_may_use_any_name() -> None:
    """Balancers send the name of a cluster; `Host` without a name is no browser's."""
    async with serving() as served, served.client() as client:
        for path in ("/healthz", "/readyz", "/health"):
            assert (await client.get(path, headers={"Host": "cluster.example"})).status_code == 200
        raw = await served.connect()
        await raw.send(b"GET /models HTTP/1.0\r\n\r\n")
        assert b" 200 " in await raw.read_until(b"\r\n")


async def test_a_name_that_is_listed_is_served() -> None:
    """As Kubernetes has it; another one is not."""
    name = "modeld.default.svc.cluster.local"
    settings = Settings(allowed_hosts=(name,))
    async with serving(text_events("a"), settings=settings) as served, served.client() as client:
        for host, status in ((name, 200), (f"{name.upper()}.:8080", 200), (f"x.{name}", 421)):
            answer = await client.post("/infer", json={"prompt": "x"}, headers={"Host": host})
            assert answer.status_code == status


async def test_with_keys_a_rebound_page_has_none() -> None:
    """Any name is served to who has a key: clusters and proxies need no setting then."""
    keyring, texts = ring(alice={})
    async with serving(text_events("a"), keyring=keyring) as served, served.client() as client:
        host = f"evil.example:{served.port}"
        rebound = {"Host": host, "Origin": f"http://{host}"}
        assert (await client.post("/infer", json={"prompt": "x"}, headers=rebound)).status_code == 401
        known = {**rebound, **bearer(texts["alice"])}
        assert (await client.post("/infer", json={"prompt": "x"}, headers=known)).status_code == 200


async def test_pages_of_the_daemon_itself_work() -> None:
    """A script at its address, through whichever of its names, and behind a proxy that speaks TLS."""
    settings = Settings(allowed_hosts=("modeld.example",))
    async with serving(text_events("a"), settings=settings) as served, served.client() as client:
        for host, origin in (
            (f"127.0.0.1:{served.port}", served.url),
            (f"localhost:{served.port}", f"http://localhost:{served.port}"),
            (f"[::1]:{served.port}", f"http://[::1]:{served.port}"),
            ("modeld.example", "https://modeld.example"),
        ):
            headers = {"Host": host, "Origin": origin, "Sec-Fetch-Site": "same-origin"}
            answer = await client.post("/infer", json={"prompt": "x"}, headers=headers)
            assert answer.status_code == 200
            assert (await client.get("/docs", headers=headers)).status_code == 200


SENT_BY_PACKAGES = {
    "openai": (
        "accept authorization content-type user-agent openai-beta openai-organization openai-project "
        "idempotency-key x-stainless-arch x-stainless-custom-poll-interval x-stainless-helper-method "
        "x-stainless-lang x-stainless-os x-stainless-package-version x-stainless-poll-helper "
        "x-stainless-retry-count x-stainless-runtime x-stainless-runtime-version x-stainless-timeout"
    ),
    "anthropic": (
        "accept x-api-key authorization content-type user-agent anthropic-beta anthropic-version "
        "anthropic-dangerous-direct-browser-access x-stainless-arch x-stainless-helper "
        "x-stainless-helper-method x-stainless-lang x-stainless-os x-stainless-package-version "
        "x-stainless-retry-count x-stainless-runtime x-stainless-runtime-version x-stainless-timeout"
    ),
    "ollama": "accept authorization content-type user-agent",
}
"""What openai 6.49, @anthropic-ai/sdk 1.14 and ollama 0.6.4 of npm send from a page."""


@pytest.mark.parametrize(
    ("package", "path"),
    [("openai", "/v1/chat/completions"), ("anthropic", "/v1/messages"), ("ollama", "/api/chat")],
)
async def test_packages_work_in_a_page_that_is_let_in(package: str, path: str) -> None:
    """Preflight, request and a readable answer, with all the headers that they send; other pages get none."""
    body = {**CHAT, "max_tokens": 8} if package == "anthropic" else CHAT
    headers = dict.fromkeys(SENT_BY_PACKAGES[package].split(), "1") | {"content-type": "application/json"}
    async with serving(text_events("a"), settings=ON) as served, served.client() as client:
        page = Page(client, APP)
        answer = await page.fetch("POST", path, headers, json=body)
        assert (answer.status_code, page.preflights) == (200, 1)
        assert heard(served) == 1
        with pytest.raises(Blocked, match="the preflight does not allow the origin"):
            await Page(client, "https://other.example").fetch("POST", path, headers, json=body)
        with pytest.raises(Blocked, match="the preflight does not allow x-own"):
            await page.fetch("POST", path, {**headers, "x-own": "1"}, json=body)
        with pytest.raises(Blocked, match="the answer is not for this page"):
            await Page(client, "https://other.example").fetch("POST", path, {"Content-Type": "text/plain"})
        assert heard(served) == 1


async def test_a_page_that_is_let_in_reads_refusals_too() -> None:
    """A key that lacks, a path that is not there, an operation that ended: each is told to it."""
    keyring, _ = ring()
    async with serving(keyring=keyring, settings=ON) as served, served.client() as client:
        page = Page(client, APP)
        assert (await page.fetch("POST", "/infer", {"Authorization": "x"})).status_code == 401
        assert (await page.fetch("POST", "/nowhere", {"Authorization": "x"})).status_code == 404
        assert (await page.fetch("DELETE", "/operations/x", {"Authorization": "x"})).status_code == 401


async def test_a_star_for_headers_covers_authorization() -> None:
    """Browsers do not take a literal `*` for that one, so what is asked for is named."""
    settings = Settings(cors_enabled=True, cors_allowed_origins=("*",), cors_allowed_headers=("*",))
    async with serving(text_events("a"), settings=settings) as served, served.client() as client:
        headers = {"Authorization": "Bearer x", "X-Own": "1", "Content-Type": "application/json"}
        answer = await Page(client, "app://x").fetch("POST", "/infer", headers, json={"prompt": "x"})
        assert answer.status_code == 200


async def test_a_page_of_a_public_network_is_let_into_a_private_one() -> None:
    """Chrome asks in the preflight; only pages of allowed origins get the permission."""
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Private-Network": "true"}
    async with serving(settings=ON) as served, served.client() as client:
        answer = await client.options("/infer", headers={"Origin": APP, **ask})
        assert answer.headers["access-control-allow-private-network"] == "true"
        answer = await client.options("/infer", headers={**EVIL, **ask})
        assert "access-control-allow-private-network" not in answer.headers


def test_the_openapi_document_has_both_refusals() -> None:
    """421 wherever the host matters, 403 wherever something may change."""
    for path, operations in openapi_document(ENDPOINTS)["paths"].items():
        for method, operation in operations.items():
            answers = operation["responses"]
            assert ("421" in answers) == (path not in {"/healthz", "/readyz", "/health"}), path
            if method in ("post", "delete", "put"):
                assert "origin_not_allowed" in answers["403"]["description"]
