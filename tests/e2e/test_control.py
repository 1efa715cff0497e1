# SPDX-License-Identifier: GPL-3.0-only
"""Operators and clients of a running daemon, over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import trio
from support.daemon_process import Q4_0, Q8_0, Daemon, body, client, daemon, infer, status
from support.tiny_gguf import write_model

pytestmark = pytest.mark.e2e
FAKE = ("--engine", "fake", "--isolation", "thread", "--log-level", "error")
WAIT = {"wait": "120s"}
ENDS = {"done", "failed", "cancelled"}


def models(folder: Path, *names: str) -> Path:
    for name in names:
        write_model(folder / f"{name}.gguf")
    return folder


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Three models of 21 MiB, and a budget for two of them."""
    folder = models(tmp_path_factory.mktemp("models"), "a", "b", "c")
    script = ("--fake", "load_s=0.05 step_s=0.01", "--vram-budget-mb", "50", "--max-wait", "100s")
    with daemon(*FAKE, *script, models_dir=folder) as it:
        yield it


@pytest.fixture
async def http(running: Daemon) -> httpx2.AsyncClient:
    async with client(running) as it:
        for name in "abc":
            await it.post(f"/models/{name}/pin", json={"pinned": False})
            await it.post(f"/models/{name}/unload", json={"force": True}, params=WAIT)
        yield it


async def test_an_operation_is_begun_followed_and_looked_up(http: httpx2.AsyncClient) -> None:
    """202 with its place, 200 when its end was waited for, and the list has it."""
    begun = await http.post("/models/a/load")
    assert begun.status_code == 202
    place = begun.headers["location"]
    assert place == f"/operations/{begun.json()['id']}"
    ended = await http.get(place, params=WAIT)
    assert (ended.status_code, ended.json()["state"]) == (200, "done")
    assert (await status(http, "a"))["state"] == "ready"
    assert ended.json() in (await http.get("/operations")).json()["operations"]
    again = await http.post("/models/a.gguf/load", params=WAIT)
    assert (again.status_code, again.json()["state"]) == (200, "done")
    given_up = await http.delete(place)
    assert given_up.json() == ended.json()


async def test_a_pin_shows_in_the_list_and_keeps_a_model(http: httpx2.AsyncClient) -> None:
    """200 with the model's row; an unload is a conflict until it is let go."""
    pinned = await http.post("/models/b/pin")
    assert (pinned.status_code, pinned.json()["id"], pinned.json()["pinned"]) == (200, "b.gguf", True)
    rows = {row["id"]: row for row in (await http.get("/models")).json()["models"]}
    assert rows["b.gguf"] == pinned.json()
    refused = await http.post("/models/b/unload")
    assert (refused.status_code, refused.json()["type"]) == (409, "conflict")


async def test_bad_wishes_are_refused_with_a_sentence(http: httpx2.AsyncClient) -> None:
    """Each has its status, and says what is wrong."""
    for path, sent, code, words in (
        ("/models/nobody/load", {}, 404, "no model 'nobody'"),
        ("/models/a/load", {"json": {"keepalive": "1m"}}, 400, "keep_alive"),
        ("/models/a/load", {"json": {"keep_alive": "soon"}}, 400, "no duration"),
        ("/models/a/load", {"json": {"pin": 1}}, 400, "pin"),
        ("/models/a/load?wait=-1", {}, 400, "wait"),
        ("/models/a/load?wait=2h", {}, 400, "3600"),
        ("/models/a/load?wiat=30s", {}, 400, 'unknown parameter "wiat"; did you mean wait?'),
        ("/models/a/switch?log=1&nope", {}, 400, 'unknown parameter "nope"'),
        ("/models/a/unload", {"json": {"force": "yes"}}, 400, "force"),
        ("/models/a/unload", {"content": b"force=1"}, 415, "application/json"),
        ("/models/a/switch", {"json": {"to": "b"}}, 400, "to"),
        ("/models/a/pin", {"json": []}, 400, "object"),
        ("/plan", {"json": {"context": 0}}, 400, "context"),
        ("/plan", {"json": {"model": "nobody"}}, 404, "nobody"),
        ("/plan", {"json": {"model": ""}}, 400, "empty"),
    ):
        answer = await http.post(path, **sent)
        assert answer.status_code == code, answer.text
        assert words in answer.json()["error"]
    assert (await http.get("/operations/none")).json()["type"] == "operation_not_found"
    assert (await http.delete("/operations/none")).status_code == 404
    assert (await http.get("/models/a/load")).status_code == 405


async def test_twenty_clients_load_and_unload_at_once(http: httpx2.AsyncClient) -> None:
    """Others stream meanwhile. All operations end, all streams have one last line, the budget holds."""
    lasts: list[dict[str, object]] = []
    ends: list[str] = []

    async def operate(number: int) -> None:
        for turn in range(4):
            kind = ("load", "unload", "switch", "unload")[(number + turn) % 4]
            sent = {"force": number % 5 == 0} if kind == "unload" else {}
            answer = await http.post(f"/models/{'abc'[(number + turn) % 3]}/{kind}", json=sent, params=WAIT)
            assert answer.status_code == 200, answer.text
            ends.append(answer.json()["state"])
            seen = (await http.get("/status")).json()
            assert seen["used_est_mb"] <= seen["budget_mb"]

    async def ask(number: int) -> None:
        terms = {"model": "abc"[number % 3], "prompt": "one two", "max_tokens": 20}
        async with http.stream("POST", "/infer", json=terms) as answer:
            lines = [json.loads(line) async for line in answer.aiter_lines() if line]
        if answer.status_code == 200:
            assert [line["done"] for line in lines].count(True) == 1
        else:
            assert answer.status_code == 503, lines
        lasts.append(lines[-1])

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(operate, number)
        for number in range(10):
            nursery.start_soon(ask, number)
    assert len(ends) == 80
    assert set(ends) <= ENDS
    assert "done" in ends
    assert len(lasts) == 10
    assert all(one["state"] in ENDS for one in (await http.get("/operations")).json()["operations"])


def test_a_file_that_vanishes_while_it_is_loaded_ends_the_operation(tmp_path: Path) -> None:
    """404, at the next look at the folder; the load, which would have taken an hour, is given up."""
    folder = models(tmp_path, "a", "b")
    with (
        daemon(*FAKE, "--fake", "load_s=3600", models_dir=folder) as running,
        httpx2.Client(base_url=running.url, timeout=120, trust_env=False) as http,
    ):
        begun = http.post("/models/a/load").json()
        assert begun["phase"] == "loading"
        (folder / "a.gguf").unlink()
        ended = http.get(f"/operations/{begun['id']}", params=WAIT).json()
        assert (ended["state"], ended["code"]) == ("failed", 404)
        unloaded = http.post("/models/b/unload", params=WAIT)
        assert unloaded.json()["state"] == "done"
        assert http.post("/models/a/load").status_code == 404


@pytest.mark.parametrize(
    "flags", [("--vram-budget-mb", "10"), ("--vram-budget-mb", "100", "--vram-margin-mb", "99")]
)
def test_a_budget_that_holds_no_model_refuses_with_numbers(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """507 for a load and a switch; a plan says the same with 200."""
    with (
        daemon(*FAKE, *flags, models_dir=models(tmp_path, "a")) as running,
        httpx2.Client(base_url=running.url, timeout=120, trust_env=False) as http,
    ):
        for kind in ("load", "switch"):
            refused = http.post(f"/models/a/{kind}")
            assert refused.status_code == 507
            assert refused.json()["details"]["need_mb"] > refused.json()["details"]["available_mb"]
        plan = http.post("/plan", json={"model": "a"}).json()
        assert plan["fits"] is False
        assert plan["verdict"] == refused.json()["error"]
        assert http.get("/operations").json() == {"operations": []}


@pytest.mark.real
async def test_real_models_are_planned_switched_and_cut() -> None:
    """Each in its own process, in a budget for one: a plan, what comes of it, and a stream that is cut."""
    with daemon("--llama-ctx", "2048", "--vram-budget-mb", "400", "--log-level", "error") as running:
        async with client(running) as http:
            loaded = (await http.post(f"/models/{Q4_0}/load", params=WAIT)).json()
            assert loaded["state"] == "done", loaded
            first = await status(http, Q4_0)
            assert first["pid"]
            plan = (await http.post("/plan", json={"model": Q8_0})).json()
            assert [gone["model_id"] for gone in plan["evicts"]] == [f"{Q4_0}.gguf"]
            assert f"after evicting {Q4_0}.gguf" in plan["verdict"]
            switched = (await http.post(f"/models/{Q8_0}/switch", params=WAIT)).json()
            assert (switched["state"], switched["evicted"]) == ("done", [f"{Q4_0}.gguf"])
            assert not await trio.Path(f"/proc/{first['pid']}").exists()
            assert (await status(http, Q4_0))["state"] == "stopped"

            async with http.stream("POST", "/infer", json=body(Q8_0, max_tokens=1500, ignore_eos=True)) as it:
                lines = it.aiter_lines()
                assert json.loads(await anext(lines))["done"] is False
                cut = (await http.post(f"/models/{Q8_0}/unload", json={"force": True}, params=WAIT)).json()
                assert cut["state"] == "done", cut
                rest = [json.loads(line) async for line in lines if line]
            assert rest[-1]["done"] is True
            assert rest[-1]["finish_reason"] == "shutdown"
            assert (await status(http, Q8_0))["state"] == "stopped"
            assert (await infer(http, model=Q4_0, max_tokens=3))[-1]["done"] is True
