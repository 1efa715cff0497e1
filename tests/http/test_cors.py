# SPDX-License-Identifier: GPL-3.0-only
"""Cross-origin requests: off unless configured, and exact when on."""

from __future__ import annotations

from support.backend import text_events
from support.http_server import serving

from modeld.config.settings import Settings

ORIGIN = "https://app.example"
ON = Settings(cors_enabled=True, cors_allowed_origins=(ORIGIN, "http://localhost:3000"))
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}


async def test_without_configuration_there_is_no_cors() -> None:
    """No header of it appears, and OPTIONS is what it is without it."""
    async with serving(text_events("a")) as served, served.client() as client:
        answer = await client.get("/models", headers={"Origin": ORIGIN})
        assert not [name for name in answer.headers if name.startswith("access-control")]
        answer = await client.options("/infer", headers={"Origin": ORIGIN, **PREFLIGHT})
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert set(answer.headers["allow"].split(", ")) == {"POST", "OPTIONS"}


async def test_an_allowed_origin_may_read_every_answer() -> None:
    """Streams and errors too; caches are told that the answer depends on the origin."""
    async with serving(text_events("a"), settings=ON) as served, served.client() as client:
        for send in (
            client.get("/models", headers={"Origin": ORIGIN}),
            client.get("/nope", headers={"Origin": ORIGIN}),
            client.post("/infer", json={"prompt": "x"}, headers={"Origin": ORIGIN}),
        ):
            answer = await send
            assert answer.headers["access-control-allow-origin"] == ORIGIN
            assert "Origin" in answer.headers["vary"]
            assert "X-Request-ID" in answer.headers["access-control-expose-headers"]
            assert "access-control-allow-credentials" not in answer.headers


async def test_other_origins_get_nothing() -> None:
    """Neither a look-alike nor `null` is allowed: it is served, and its browser keeps the answer from it."""
    async with serving(settings=ON) as served, served.client() as client:
        for origin in ("https://app.example.evil", "http://app.example", "null", "https://app.example:444"):
            answer = await client.get("/models", headers={"Origin": origin})
            assert answer.status_code == 200
            assert "access-control-allow-origin" not in answer.headers
            assert "Origin" in answer.headers["vary"]
            answer = await client.options("/infer", headers={"Origin": origin, **PREFLIGHT})
            assert not [name for name in answer.headers if name.startswith("access-control-allow")]


async def test_a_preflight_is_answered() -> None:
    """The browser learns methods, headers and for how long, with no body."""
    async with serving(settings=ON) as served, served.client() as client:
        answer = await client.options("/infer", headers={"Origin": ORIGIN, **PREFLIGHT})
        assert (answer.status_code, answer.content) == (204, b"")
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert answer.headers["access-control-allow-headers"] == "content-type"
        assert int(answer.headers["access-control-max-age"]) > 0


async def test_the_lists_of_the_configuration_are_used() -> None:
    """Methods and headers are those that the operator set; `*` allows every origin."""
    settings = Settings(
        cors_enabled=True,
        cors_allowed_origins=("*",),
        cors_allowed_methods=("GET",),
        cors_allowed_headers=("X-One", "X-Two"),
    )
    async with serving(settings=settings) as served, served.client() as client:
        asked = {**PREFLIGHT, "Access-Control-Request-Headers": "content-type,x-one, X-Two"}
        answer = await client.options("/models", headers={"Origin": "https://any", **asked})
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers["access-control-allow-methods"] == "GET"
        assert answer.headers["access-control-allow-headers"] == "x-one, x-two"
