# SPDX-License-Identifier: GPL-3.0-only
"""The daemon as a process, and pages that a browser of its machine shows."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from support.daemon_process import Daemon, daemon
from support.tiny_gguf import write_model

pytestmark = pytest.mark.e2e

FAKE = ("--engine", "fake", "--isolation", "thread")
SERVICE = "modeld.default.svc.cluster.local"
EVIL = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "tiny.gguf")
    return folder


@pytest.fixture(scope="module")
def running(models: Path) -> Iterator[Daemon]:
    with daemon(
        *FAKE, models_dir=models, env={"MODELD_ALLOWED_HOSTS": f"{SERVICE},*.example.com"}
    ) as running:
        yield running


@pytest.fixture
def client(running: Daemon) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=running.url, timeout=30) as client:
        yield client


def state_of(client: httpx2.Client) -> str:
    """The state of the one model."""
    [model] = client.get("/models").json()["models"]
    return model["state"]


def test_a_page_cannot_load_switch_pin_or_unload(client: httpx2.Client) -> None:
    """A POST without a body takes no preflight: 403, and the model stays as it is."""
    assert client.post("/infer", json={"prompt": "x", "max_tokens": 1}).status_code == 200
    assert state_of(client) == "ready"
    for action in ("unload", "load", "switch", "pin"):
        answer = client.post(f"/models/tiny/{action}", headers=EVIL)
        assert (answer.status_code, answer.json()["type"]) == (403, "origin_not_allowed")
    assert client.delete("/operations/1", headers=EVIL).status_code == 403
    assert state_of(client) == "ready"
    assert client.get("/status").json()["instances"][0]["pinned"] is False
    own = {"Origin": str(client.base_url).rstrip("/"), "Sec-Fetch-Site": "same-origin"}
    assert client.post("/models/tiny/unload", headers=own).status_code < 300


def test_only_names_of_this_server_are_served(running: Daemon, client: httpx2.Client) -> None:
    """Its address, localhost, the name of its machine, and those of the variable, with a port or not."""
    names = ("127.0.0.1", "localhost", socket.gethostname(), SERVICE, "a.example.com")
    for name in names:
        for host in (name, f"{name}:{running.port}"):
            assert client.get("/models", headers={"Host": host}).status_code == 200, host
    for host in ("evil.example", f"evil.example:{running.port}", "example.com", "svc.cluster.local"):
        answer = client.get("/models", headers={"Host": host})
        assert (answer.status_code, answer.json()["type"]) == (421, "host_not_allowed")
        assert "MODELD_ALLOWED_HOSTS" in answer.json()["error"]
        assert client.get("/healthz", headers={"Host": host}).status_code == 200
        assert client.get("/readyz", headers={"Host": host}).status_code == 200


def test_a_socket_in_the_file_system_is_served_by_any_name(models: Path, tmp_path: Path) -> None:
    """No browser reaches one; the pages that a proxy in front relays are still told apart by their origin."""
    path = tmp_path / "modeld.sock"
    with daemon(*FAKE, "--addr", f"unix:{path}", models_dir=models):
        transport = httpx2.HTTPTransport(uds=str(path))
        with httpx2.Client(base_url="http://anything", transport=transport, timeout=30) as client:
            assert client.get("/models").status_code == 200
            assert client.post("/models/tiny/load", headers=EVIL).status_code == 403
            proxied = {"Host": "gpu.example", "Origin": "https://gpu.example"}
            assert client.post("/models/tiny/load", headers=proxied).status_code < 300
