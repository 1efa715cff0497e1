# SPDX-License-Identifier: GPL-3.0-only
"""Paths as clients put them together: they find their endpoint, with all that belongs to it."""

from __future__ import annotations

import pytest
from support.backend import TINY, text_events
from support.http_server import serving
from support.keys import bearer, ring

from modeld.config.settings import Settings
from modeld.http.app import other_spellings

HELLO = [{"role": "user", "content": "Hello"}]
CHAT = {"messages": HELLO, "max_tokens": 4}
CHATS = (
    *("/chat/completions", "/v1/v1/chat/completions", "/api/v1/chat/completions", "/v1/chat/completions/"),
    *("//v1/chat/completions", "/v1//chat//completions", "/v1/chat/completions//", "//chat/completions/"),
)


@pytest.mark.parametrize(
    ("path", "plain"),
    [
        ("/v1/models/", "/v1/models"),
        ("//v1///models//", "/v1/models"),
        ("/v1/v1/v1/models", "/v1/models"),
        ("/api/api/chat", "/api/chat"),
        ("/v1/api/chat", "/api/chat"),
        ("/api/v1/models", "/v1/models"),
        ("/models/v1/v1/load/", "/models/v1/v1/load"),
        ("/v1", "/v1"),
        ("/", "/"),
        ("", "/"),
        ("/%2F/ \n/", "/%2F/ \n"),
    ],
)
def test_a_path_is_spelled_without_what_clients_add(path: str, plain: str) -> None:
    """Slashes and prefixes too many go, anything else stays; then `/v1` is tried in front."""
    assert other_spellings(path) == (plain, f"/v1{plain}")


@pytest.mark.parametrize("path", CHATS)
async def test_other_spellings_reach_the_endpoint(path: str) -> None:
    """No redirect: a POST would lose its body. Metrics count the endpoint."""
    async with serving(text_events("a")) as served, served.client() as client:
        answer = await client.post(f"{served.url}{path}", json=CHAT)
        assert (answer.status_code, answer.json()["object"]) == (200, "chat.completion")
        metrics = (await client.get("/metrics")).text
        assert 'requests_total{method="POST",path="/v1/chat/completions",status="200"} 1.0' in metrics


async def test_each_dialect_is_found() -> None:
    """Also where a path has something variable in it."""
    async with serving(text_events("a")) as served, served.client() as client:
        for path in ("/messages", "/v1/v1/messages/"):
            answer = await client.post(path, json={"model": "tiny-q4", **CHAT})
            assert answer.json()["type"] == "message", path
        assert (await client.post("/responses", json={"input": "x"})).json()["object"] == "response"
        assert (await client.post("/api//chat/", json={"messages": HELLO, "stream": False})).json()["done"]
        assert (await client.post("/infer/", json={"prompt": "x", "stream": False})).json()["done"]
        assert (await client.get("/models/")).json()["models"]
        assert (await client.get("/v1/models/")).json()["object"] == "list"
        for path in (f"/models/{TINY.id}", f"/v1/models/{TINY.id}/", f"/v1/v1/models/{TINY.id}"):
            assert (await client.get(path)).json()["id"] == TINY.id, path
        head = await client.head("/healthz/")
        assert (head.status_code, head.content) == (200, b"")
        options = await client.options("/chat/completions")
        assert set(options.headers["allow"].split(", ")) == {"POST", "OPTIONS"}


async def test_paths_that_two_dialects_have_stay_as_they_are() -> None:
    """`/completions`, `/embeddings` and `/models` are found as they are written, so `/v1` is not tried."""
    async with serving(text_events("a")) as served, served.client() as client:
        for path in ("/completions", "/completions/"):
            assert (await client.post(path, json={"prompt": "x"})).json()["content"] == "a", path
        assert "models" in (await client.get("/models")).json()


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/chat/completions", {"error": {"type": "invalid_request_error"}}),
        ("/messages", {"type": "error", "error": {"type": "invalid_request_error"}}),
        ("/infer/", {"type": "invalid_request"}),
    ],
)
async def test_errors_are_told_in_the_format_of_the_endpoint(path: str, shape: dict[str, object]) -> None:
    """A refusal of the body, and a method that the endpoint does not take."""

    def fits(value: object, wanted: object) -> bool:
        if isinstance(wanted, dict):
            return isinstance(value, dict) and all(fits(value.get(key), it) for key, it in wanted.items())
        return value == wanted

    async with serving() as served, served.client() as client:
        refused = await client.post(path, json={"nonsense": 1})
        assert refused.status_code == 400
        assert fits(refused.json(), shape), refused.json()
        wrong = await client.get(path)
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "OPTIONS, POST")
        assert set(wrong.json()) == set(refused.json())


async def test_what_means_nothing_is_still_404() -> None:
    """In the format of the path as it was sent."""
    async with serving() as served, served.client() as client:
        for path in ("/v1/v1/nope", "/v1/", "/v1//nope/"):
            answer = await client.post(path, json={})
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found"), path
        reload = await client.post("/models/tiny-q4/reload", json={})  # Not the GET /v1/models/<path>.
        assert (reload.status_code, reload.json()["type"]) == (404, "not_found")
        for path in ("/nope/", "/chat//", "/x/v1/models"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["type"]) == (404, "not_found"), path


async def test_the_scope_and_the_origins_are_those_of_the_endpoint() -> None:
    """No spelling opens what its endpoint does not."""
    keyring, texts = ring(alice={}, root={"scopes": ("admin",)})
    settings = Settings(cors_enabled=True, cors_allowed_origins=("https://app.example",))
    origin = {"Origin": "https://app.example"}
    async with (
        serving(text_events("a"), keyring=keyring, settings=settings) as served,
        served.client() as client,
    ):
        for path in CHATS:
            assert (await client.post(f"{served.url}{path}", json=CHAT)).status_code == 401, path
            wrong = await client.post(f"{served.url}{path}", json=CHAT, headers=bearer(texts["root"]))
            assert wrong.status_code == 403, path
            right = await client.post(
                f"{served.url}{path}", json=CHAT, headers=bearer(texts["alice"]) | origin
            )
            assert right.status_code == 200, path
            assert right.headers["access-control-allow-origin"] == origin["Origin"]
        for path in ("//operations", "/status/", "/models/tiny-q4/unload/"):
            method = "POST" if "unload" in path else "GET"
            answer = await client.request(method, f"{served.url}{path}", headers=bearer(texts["alice"]))
            assert answer.status_code == 403, path
