# SPDX-License-Identifier: GPL-3.0-only
"""Models with odd names: whatever a file system allows can be operated by path, and from the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from urllib.parse import quote

import httpx2
import pytest
from support.cli_runner import modeld
from support.daemon_process import Daemon, client, daemon
from support.tiny_gguf import write_model

pytestmark = pytest.mark.e2e
NAMES = (
    "new\nline", "\nline first", "line last\n", "tab\tand\x1bescape", "a b", "%41", "100%", "a?b#c", "a,b;c",
    "ünï", "+", "load", "a\\b", "<p>&'\"",
)  # fmt: skip
OTHERS = {"/begins//so": "load.gguf", "sub/a\nb.gguf": "a\nb.gguf"}
"""Further names of models: an alias, and the name with the folder."""
TYPED = (*NAMES[:6], *OTHERS)
WAIT = {"wait": "120s"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("models")
    (folder / "sub").mkdir()
    for name in (*NAMES, "sub/a\nb"):
        write_model(folder / f"{name}.gguf")
    config = folder / "modeld.json"
    config.write_text(json.dumps({"models": {"load": {"aliases": ["/begins//so"]}}}), encoding="utf-8")
    flags = ("--engine", "fake", "--isolation", "thread", "--log-level", "error", "--config", str(config))
    with daemon(*flags, models_dir=folder) as it:
        yield it


@pytest.fixture
async def http(running: Daemon) -> httpx2.AsyncClient:
    async with client(running) as it:
        yield it


@pytest.mark.parametrize("name", [*NAMES, *OTHERS], ids=ascii)
async def test_a_model_is_operated_by_a_path_with_its_name(http: httpx2.AsyncClient, name: str) -> None:
    """Percent-encoded, on every route that has a model in its path."""
    shown = OTHERS.get(name, f"{name}.gguf")
    path = f"/models/{quote(name, safe='')}"
    loaded = await http.post(f"{path}/load", params=WAIT)
    assert (loaded.status_code, loaded.json()["model"], loaded.json()["state"]) == (200, shown, "done")
    assert (await http.post(f"{path}/switch", params=WAIT)).json()["state"] == "done"
    assert (await http.post(f"{path}/pin")).json()["id"] == shown
    assert (await http.post(f"{path}/pin", json={"pinned": False})).json()["pinned"] is False
    assert (await http.post(f"{path}/unload", params=WAIT)).json()["state"] == "done"
    told = await http.get(f"/v1/models/{quote(name, safe='')}")
    assert (told.status_code, told.json()["id"]) == (200, shown)
    events = await http.head("/events", params={"model": name})
    assert events.status_code == 200


@pytest.mark.parametrize("name", TYPED, ids=ascii)
def test_the_command_line_takes_any_name(running: Daemon, name: str) -> None:
    """Each name loads its model, and what is printed of it is one line."""
    here = {"MODELD_ADDR": f"127.0.0.1:{running.port}"}
    loaded = modeld("load", "--", name, **here)
    assert (loaded.code, loaded.out.count("\n")) == (0, 1)
    pinned = modeld("pin", "--", name, **here)
    assert (pinned.code, pinned.out.count("\n")) == (0, 1)
    assert modeld("unpin", "--", name, **here).code == 0
    gone = modeld("unload", "--", name, **here)
    assert (gone.code, gone.out.count("\n")) == (0, 1)


async def test_a_name_that_there_is_not_is_told_as_text(http: httpx2.AsyncClient) -> None:
    """404 with the name, its line end written out or quoted."""
    told = await http.post("/models/no%0Asuch/load")
    assert told.status_code == 404
    assert "no\\nsuch" in told.json()["error"]
    assert told.json()["type"] == "model_not_found"
