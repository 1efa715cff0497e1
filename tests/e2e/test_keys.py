# SPDX-License-Identifier: GPL-3.0-only
"""Keys at the real daemon: made by the command, asked for, read again at SIGHUP, and nowhere to be found."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from support.daemon_process import Daemon, daemon
from support.keys import bearer
from support.tiny_gguf import write_model

pytestmark = pytest.mark.e2e

PROMPT = "xyzzy plugh frobozz"
FAKE = ("--engine", "fake")


def modeld(*words: str | Path) -> str:
    """Run a command of modeld; return what it prints."""
    command = [sys.executable, "-m", "modeld", *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    write_model(tmp_path / "models" / "tiny.gguf")
    return tmp_path / "keys.yaml"


@pytest.fixture
def alice(keys_file: Path) -> str:
    return modeld("keys", "add", "alice", "--keys-file", keys_file, "--scope", "infer", "--scope", "metrics")


@pytest.fixture
def running(keys_file: Path, alice: str) -> Iterator[Daemon]:
    flags = ("--keys-file", str(keys_file), "--require-keys", "--log-level", "debug", *FAKE)
    with daemon(*flags, models_dir=keys_file.parent / "models") as running:
        yield running


def until_logged(running: Daemon, text: str) -> None:
    deadline = time.monotonic() + 60
    while text not in running.log:
        assert time.monotonic() < deadline, running.log
        time.sleep(0.02)  # another process writes the log


def test_keys_come_and_go_without_a_restart(running: Daemon, keys_file: Path, alice: str) -> None:
    """SIGHUP takes a new key in and a revoked one out; a broken file changes nothing, and the log says so."""
    body = {"prompt": PROMPT, "stream": False, "max_tokens": 2}
    with httpx2.Client(base_url=running.url, timeout=60) as http:
        assert http.post("/infer", json=body).status_code == 401
        assert http.post("/infer", json=body, headers=bearer(alice)).status_code == 200
        bob = modeld("keys", "add", "bob", "--keys-file", keys_file)
        modeld("keys", "revoke", "alice", "--keys-file", keys_file)
        assert http.post("/infer", json=body, headers=bearer(bob)).status_code == 401
        running.process.send_signal(signal.SIGHUP)
        until_logged(running, "keys read again")
        assert http.post("/infer", json=body, headers=bearer(bob)).status_code == 200
        assert http.post("/infer", json=body, headers=bearer(alice)).status_code == 401
        keys_file.write_text("keys: [")
        running.process.send_signal(signal.SIGHUP)
        until_logged(running, "the keys stay as they were")
        assert http.post("/infer", json=body, headers=bearer(bob)).status_code == 200


def test_no_key_is_ever_logged(running: Daemon, alice: str) -> None:
    """Not at debug, and not where a client put it into what is logged: ids, paths, prompts, bad requests."""
    wrong = alice[:-8] + "00000000"
    with httpx2.Client(base_url=running.url, timeout=60) as http:
        for key in (alice, wrong):
            for headers in (bearer(key), {"X-API-Key": key, "X-Request-ID": key, "X-Log-Level": "debug"}):
                body = {"prompt": f"{PROMPT} {key}", "max_tokens": 3}
                http.post(f"/infer?log=debug&key={key}", json=body, headers=headers)
                http.post("/infer", content=f'{{"{key}": 1}}', headers=headers)
                http.get(f"/{key}", headers=headers)
    with socket.create_connection(("127.0.0.1", running.port), timeout=60) as raw:
        raw.sendall(f"GET /status HTTP/1.1\r\nHost: localhost\r\nX-API-Key : {alice}\r\n\r\n".encode())
        while raw.recv(65536):
            pass
    assert running.stop() == 0
    secret = alice.rpartition("_")[2]
    assert "inference ended" in running.log
    assert alice.split("_")[1] in running.log, "the log tells whose key it was"
    assert secret[:40] not in running.log
    assert not re.search(r"modeld_[0-9a-f]{12}_[0-9a-f]", running.log)


@pytest.mark.parametrize("level", ["info", "debug"])
def test_texts_are_logged_at_debug_only(keys_file: Path, level: str) -> None:
    """At info there is neither a prompt nor a word of an answer, nor after a refusal or a bad request."""
    broken = ({}, {"stream": False}, {"model": "nobody"}, {"grammar": "broken"}, {"timeout": "1ns"})
    with daemon("--log-level", level, *FAKE, models_dir=keys_file.parent / "models") as running:
        with httpx2.Client(base_url=running.url, timeout=60) as http:
            for more in broken:
                http.post("/infer", json={"prompt": PROMPT, "max_tokens": 3, **more})
            for path, body in (("/embed", {"input": PROMPT}), ("/tokenize", {"content": PROMPT})):
                http.post(path, json=body)
            http.post("/infer", content=f'{{"prompt": "{PROMPT}", "{PROMPT}": 1')
        assert running.stop() == 0
        assert "inference ended" in running.log
        assert ("xyzzy" in running.log) == (level == "debug")
        assert ("frobozz" in running.log) == (level == "debug")


def test_engines_know_no_key(keys_file: Path, alice: str) -> None:
    """A worker's environment has neither a key nor the place where the service manager keeps them."""
    credentials = keys_file.parent / "credentials"
    credentials.mkdir()
    keys_file.rename(credentials / "modeld.keys")
    env = {"CREDENTIALS_DIRECTORY": str(credentials), "MODELD_API_KEY": alice}
    with daemon("--require-keys", *FAKE, models_dir=keys_file.parent / "models", env=env) as running:
        with httpx2.Client(base_url=running.url, timeout=60, headers=bearer(alice)) as http:
            body = {"prompt": PROMPT, "stream": False, "max_tokens": 2}
            assert http.post("/infer", json=body).status_code == 200, "keys came as a credential"
            instances = http.get("/status").json()["instances"]
        environment = Path(f"/proc/{instances[0]['pid']}/environ").read_bytes()
        assert b"PATH=" in environment
        assert alice.encode() not in environment
        assert str(credentials).encode() not in environment
        # Nor does it have the file open.
        folder = Path(f"/proc/{instances[0]['pid']}/fd")
        assert not [fd for fd in folder.iterdir() if str(credentials) in str(fd.readlink())]


def test_an_open_door_is_told_loudly(keys_file: Path) -> None:
    """Listening to everybody without keys starts with a warning, whatever the log level is."""
    with daemon(
        "--addr", "0.0.0.0:0", "--log-level", "off", *FAKE, models_dir=keys_file.parent / "models"
    ) as running:
        status = httpx2.get(f"http://127.0.0.1:{running.port}/status", timeout=60).json()
    assert "WARNING: NO KEYS: whoever reaches http://0.0.0.0:" in running.log
    assert status["warnings"][0].startswith("NO KEYS")
