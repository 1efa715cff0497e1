# SPDX-License-Identifier: GPL-3.0-only
"""Limits of keys over HTTP: 429 with when to come again, the headers, and who may see whose usage."""

from __future__ import annotations

import httpx2
import trio
from support.backend import TINY, text_events
from support.http_server import serving
from support.keys import bearer, ring

ASK = {"prompt": "Hello there, you", "max_tokens": 20, "stream": False}


async def test_a_key_over_its_limit_is_told_when_to_come_again() -> None:
    """429 with Retry-After, the policy, and what is left; other keys are served."""
    keyring, texts = ring(alice={"requests_per_minute": 2}, bob={})
    async with serving(text_events("a"), keyring=keyring) as served, served.client() as client:
        for left in ("1", "0"):
            answer = await client.post("/infer", json=ASK, headers=bearer(texts["alice"]))
            assert answer.status_code == 200
            assert answer.headers["ratelimit-policy"] == '"requests";q=2;w=60'
            assert answer.headers["ratelimit"].startswith(f'"requests";r={left};t=')
        refused = await client.post("/infer", json=ASK, headers=bearer(texts["alice"]))
        assert refused.status_code == 429
        assert refused.json()["type"] == "rate_limited"
        assert refused.json()["details"]["policy"] == "requests"
        reset = int(refused.headers["ratelimit"].rpartition("t=")[2])
        assert 1 <= reset <= int(refused.headers["retry-after"]) <= 61
        free = await client.post("/infer", json=ASK, headers=bearer(texts["bob"]))
        assert free.status_code == 200
        assert "ratelimit" not in free.headers
        assert served.sample("modeld_http_backpressure_total", reason="rate_limited") == 1


async def test_a_stream_holds_its_place_until_it_ends() -> None:
    """A key with one request at once gets the next when the first has ended, or its client has left."""
    keyring, texts = ring(alice={"concurrent_requests": 1})
    async with serving(keyring=keyring) as served, served.client(headers=bearer(texts["alice"])) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_ask, client)
            await served.backend.ticket()
            refused = await client.post("/infer", json=ASK)
            assert refused.status_code == 429
            assert refused.headers["ratelimit"] == '"concurrent";r=0'
            nursery.cancel_scope.cancel()
        served.backend.script = text_events("a")
        with trio.fail_after(30):
            while (await client.post("/infer", json=ASK)).status_code == 429:
                await trio.sleep(0.01)


async def _ask(client: httpx2.AsyncClient) -> None:
    await client.post("/infer", json=ASK)


async def test_the_scheduler_hears_whose_a_request_is() -> None:
    """Its owner, his weight, and an estimate of its tokens; nothing of it where no keys are in force."""
    keyring, texts = ring(alice={"weight": 2.5})
    async with serving(text_events("a"), keyring=keyring) as served, served.client() as client:
        await client.post("/infer", json=ASK, headers=bearer(texts["alice"]))
        its = served.backend.tickets[0].order.tenant
        [alice] = keyring.clients
        assert (its.owner, its.weight, its.tokens) == (alice, 2.5, 4 + 20)
    async with serving(text_events("a")) as served, served.client() as client:
        await client.post("/infer", json=ASK)
        assert served.backend.tickets[0].order.tenant.owner == ""


async def test_a_key_sees_its_own_usage_and_who_watches_sees_all() -> None:
    """`/usage` of a key that may only infer has one entry; `/keys` is for admins and has no secret."""
    keyring, texts = ring(
        alice={"tokens_per_day": 1000}, bob={}, watch={"scopes": ["metrics"]}, root={"scopes": ["admin"]}
    )
    async with serving(text_events("a", "b"), keyring=keyring) as served, served.client() as client:
        for name in ("alice", "bob"):
            assert (await client.post("/infer", json=ASK, headers=bearer(texts[name]))).status_code == 200
        mine = (await client.get("/usage", headers=bearer(texts["alice"]))).json()
        assert [it["name"] for it in mine["keys"]] == ["alice"]
        [alice] = mine["keys"]
        assert alice["today"]["requests"] == 1
        assert alice["models"] == {TINY.id: alice["today"]}
        assert alice["limits"][0]["policy"] == "day"
        assert not mine["kept"]
        every = (await client.get("/usage", headers=bearer(texts["watch"]))).json()
        assert {it["name"]: it["today"]["requests"] for it in every["keys"]} == {
            "alice": 1,
            "bob": 1,
            "watch": 0,
            "root": 0,
        }
        assert (await client.get("/keys", headers=bearer(texts["watch"]))).status_code == 403
        keys = await client.get("/keys", headers=bearer(texts["root"]))
        assert [it["name"] for it in keys.json()["keys"]] == ["alice", "bob", "watch", "root"]
        assert "scrypt" not in keys.text


async def test_usage_is_counted_without_keys_too() -> None:
    """Under an id of its own."""
    async with serving(text_events("a")) as served, served.client() as client:
        await client.post("/infer", json=ASK)
        await client.post("/tokenize", json={"content": "x"})
        [its] = (await client.get("/usage")).json()["keys"]
        assert (its["id"], its["today"]["requests"]) == ("-", 2)
