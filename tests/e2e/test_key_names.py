# SPDX-License-Identifier: GPL-3.0-only
"""Who caused what, and who may have models go: keys by name in events and operations of the real daemon."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.daemon_process import Daemon, client, daemon, until
from support.event_client import NDJSON, event_client
from support.keys import bearer, cheap_key
from support.tiny_gguf import write_model

from modeld.config.key_file import changing

pytestmark = pytest.mark.e2e

SCOPES = {"alice": ["infer"], "bob": ["infer"], "root": ["infer", "admin"]}
ASK = {"prompt": "Hello", "max_tokens": 2, "stream": False}


class House:
    """A daemon with three keys."""

    def __init__(self, running: Daemon, texts: dict[str, str]) -> None:
        self.running = running
        self.texts = texts

    def by(self, name: str) -> dict[str, str]:
        return bearer(self.texts[name])


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    models = folder / "models"
    models.mkdir()
    write_model(models / "tiny.gguf")
    texts: dict[str, str] = {}
    with changing(folder / "keys.yaml") as entries:
        for name, scopes in SCOPES.items():
            key_id, texts[name], entries[key_id] = cheap_key(name, scopes=scopes)
    flags = ("--keys-file", str(folder / "keys.yaml"), "--engine", "fake", "--isolation", "thread")
    with daemon(*flags, "--log-level", "debug", models_dir=models) as running:
        yield House(running, texts)


async def test_events_name_the_key_that_caused_them(house: House) -> None:
    """Those of its request from begin to end, and the load that it alone waits for; never a secret."""
    async with (
        client(house.running) as http,
        event_client(house.running.port, Accept=NDJSON, **house.by("root")) as reader,
    ):
        answer = await http.post("/infer", json=ASK, headers=house.by("alice"))
        assert answer.status_code == 200
        seen = [await reader.until("arrived")]
        while seen[-1]["kind"] != "ended":
            seen.append(await reader.next())
        of_request = [event for event in seen if "ticket" in event]
        assert {event.get("key") for event in of_request} == {"alice"}
        assert [event.get("key") for event in seen if "reason" in event and event["kind"] == "loading"] == [
            "alice"
        ]
        assert "modeld_" not in str(seen)


async def test_operations_name_the_key_that_asked(house: House) -> None:
    """In the answer, in the list, and in all their events; so does a pin, and who gives one up."""
    async with (
        client(house.running) as http,
        event_client(house.running.port, Accept=NDJSON, **house.by("root")) as reader,
    ):
        headers = house.by("root")
        loaded = (await http.post("/models/tiny/load?wait=60s", headers=headers)).json()
        assert (loaded["state"], loaded["key"]) == ("done", "root")
        listed = (await http.get("/operations", headers=headers)).json()["operations"]
        assert {it["id"]: it["key"] for it in listed}[loaded["id"]] == "root"
        assert (await reader.until("operation_started", operation=loaded["id"]))["key"] == "root"
        assert (await reader.until("operation_ended", operation=loaded["id"]))["key"] == "root"
        assert (await http.post("/models/tiny/pin", headers=headers)).status_code == 200
        assert (await reader.until("pinned"))["key"] == "root"
        refused = await http.post("/models/unload", json={"model": "tiny"}, headers=headers)
        assert refused.status_code == 409
        ended = await reader.until("operation_ended", cause="refused")
        assert (ended["key"], ended["model"]) == ("root", "tiny.gguf")
        assert (
            await http.post("/models/tiny/pin", json={"pinned": False}, headers=headers)
        ).status_code == 200
        done = await http.post("/models/tiny/unload?wait=60s", headers=headers)
        assert done.json()["state"] == "done"
        assert (await reader.until("unloading"))["key"] == "root"


async def test_a_key_that_may_only_infer_takes_no_model_away(house: House) -> None:
    """By `keep_alive: 0` in any dialect: what another one uses stays, and an admin's word has it go."""
    zero = {"keep_alive": 0}
    dialects = [
        ("/infer", ASK | zero),
        ("/api/generate", {"model": "tiny", "prompt": "", "stream": False} | zero),
        ("/api/chat", {"model": "tiny", "messages": [], "stream": False} | zero),
        ("/v1/completions", {"model": "tiny", "prompt": "Hello"} | zero),
        ("/tokenize", {"content": "Hello"} | zero),
    ]
    async with client(house.running) as http:
        assert (await http.post("/infer", json=ASK, headers=house.by("bob"))).status_code == 200
        for path, body in dialects:
            assert (await http.post(path, json=body, headers=house.by("alice"))).status_code == 200, path
            [row] = (await http.get("/models", headers=house.by("alice"))).json()["models"]
            assert row["state"] == "ready", path
        assert (
            await http.post("/models/unload", json={"model": "tiny"}, headers=house.by("alice"))
        ).status_code == 403
        answer = await http.post("/api/generate", json=dialects[1][1], headers=house.by("root"))
        assert answer.json()["done_reason"] == "unload"
    async with client(house.running) as http:
        http.headers.update(house.by("root"))
        await until(http, "tiny", state="stopped")
