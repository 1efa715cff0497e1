# SPDX-License-Identifier: GPL-3.0-only
"""What the daemon may do, and does: no root, no file but its own, no path or header that a client names."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from support.daemon_process import Daemon, daemon
from support.tiny_gguf import write_model

import modeld

NOBODY = 65534
FAKE = ("--engine", "fake", "--fake", "eos_after=3")


def everything(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Each file below a folder, with its size, mode and time of modification."""
    found = {}
    for path in folder.rglob("*"):
        info = path.lstat()
        found[str(path)] = (info.st_size if path.is_file() else 0, info.st_mode, info.st_mtime_ns)
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A place with models, a home, and a folder to work in, none of which may be written."""
    for name in ("models", "home", "work", "tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "state").mkdir(mode=0o777)
    (tmp_path / "state").chmod(0o777)
    write_model(tmp_path / "models" / "tiny.gguf")
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(path.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)
    return tmp_path


def as_nobody() -> list[str]:
    """The words that make root run a command as nobody, who may read the interpreter wherever it lies."""
    if os.getuid() != 0:
        return []
    reading = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    words = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *reading]
    if shutil.which("setpriv") is None or subprocess.run([*words, "true"], check=False).returncode:
        pytest.skip("root cannot become another user here (setpriv)")
    return words


def serve_as_nobody(tree: Path, *flags: str) -> subprocess.Popen[str]:
    """Start the daemon without privileges, where it can write in its state folder alone."""
    root = str(Path(modeld.__file__).parents[1])
    command = [*as_nobody(), sys.executable, "-B", "-m", "modeld", "serve", "--addr", "127.0.0.1:0"]
    command += ["--models-dir", str(tree / "models"), "--state-dir", str(tree / "state"), *flags]
    return subprocess.Popen(
        command,
        cwd=tree / "work",
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tree / "home"),
            "TMPDIR": str(tree / "tmp"),
            "PYTHONPATH": root,
        },
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.e2e
def test_it_serves_without_root_and_writes_in_its_state_folder_alone(tree: Path) -> None:
    """As nobody, in folders that are not its own: requests are served, and nothing else has changed."""
    before = everything(tree)
    process = serve_as_nobody(tree, *FAKE)
    running = Daemon(process)
    running.wait_until_listening()
    assert Path(f"/proc/{process.pid}").stat().st_uid == (NOBODY if os.getuid() == 0 else os.getuid())
    for path in ("/models", "/status", "/metrics", "/docs"):
        assert httpx2.get(running.url + path).status_code == 200
    answer = httpx2.post(f"{running.url}/infer", json={"prompt": "a b c", "stream": False})
    assert answer.json()["finish_reason"] == "stop"
    assert running.stop() == 0
    after = everything(tree)
    own = {str(tree / "state"), str(tree / "work")}
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert {path for path in changed if not any(path.startswith(folder) for folder in own)} == set()
    assert list((tree / "work").iterdir()) == []


PATHS = [
    "../secret.gguf",
    "..%2fsecret.gguf",
    "%2e%2e/secret.gguf",
    "../../etc/passwd",
    "/etc/passwd",
    "{outside}",
    "{outside}\0.gguf",
    "models/../../secret.gguf",
    "./tiny.gguf",
    "tiny.gguf/",
    "tiny.gguf\0",
    "tiny.gguf\n",
    "TINY.GGUF",
    "~/secret.gguf",
    "file://{outside}",
    "*",
    "",
    "\ud800",
    "x" * 100_000,
]


@pytest.mark.e2e
def test_no_name_leads_out_of_the_models_folder(tree: Path) -> None:
    """A client names models; whatever else it writes is no model, also where such a file exists."""
    outside = write_model(tree / "secret.gguf")
    with daemon(*FAKE, models_dir=tree / "models") as running, httpx2.Client(base_url=running.url) as http:
        assert (
            http.post("/infer", json={"prompt": "x", "model": "tiny.gguf", "stream": False}).status_code
            == 200
        )
        for name in PATHS:
            model = name.replace("{outside}", str(outside))
            data = json.dumps({"prompt": "x", "model": model, "stream": False})
            answer = http.post("/infer", content=data, headers={"Content-Type": "application/json"})
            assert answer.status_code in {400, 404}, (name, answer.text)
            assert len(answer.text) < 1000
        for path in (
            "/models/../secret.gguf",
            "/..%2fsecret.gguf",
            "/docs/../../etc/passwd",
            "//etc/passwd",
            "/%00",
        ):
            assert http.get(path).status_code == 404, path
        listed = http.get("/models").json()["models"]
        assert [model["id"] for model in listed] == ["tiny.gguf"]


@pytest.mark.e2e
def test_names_and_ids_cannot_add_headers_or_log_lines(tree: Path) -> None:
    """A file with a line break in its name, ids with line breaks, odd paths: one header, one line each."""
    odd = 'a\r\nX-Injected: 1\n2026-01-01 info  forged [modeld] "\x1b[31m.gguf'
    shutil.copy(tree / "models" / "tiny.gguf", tree / "models" / odd)
    flags = (*FAKE, "--log-level", "debug")
    with daemon(*flags, models_dir=tree / "models") as running, httpx2.Client(base_url=running.url) as http:
        for body in ({"model": odd}, {"model": odd, "stream": False}, {"model": "no\r\nX-Injected: 1"}):
            answer = http.post("/infer", json={"prompt": "x\r\nX-Injected: 1", **body})
            assert "x-injected" not in answer.headers
        names = [model["id"] for model in http.get("/models").json()["models"]]
        assert odd in names
        assert "forged" in http.get("/metrics").text
        for wanted in ("a b", "é", "x" * 200, '";', "%0d%0aX-Injected: 1"):
            answer = http.get("/healthz", headers={"X-Request-ID": wanted.encode()})
            assert answer.headers["x-request-id"] != wanted
            assert "x-injected" not in answer.headers
        for path in ("/%0d%0aX-Injected:%201", "/models%0d%0aSet-Cookie:%20a=b"):
            answer = http.get(path)
            assert answer.status_code == 404
            assert not {"x-injected", "set-cookie"} & set(answer.headers)
    assert not [line for line in running.lines if line.startswith(("X-Injected", "2026-01-01"))]
    assert "\x1b[31m" not in running.log


@pytest.mark.e2e
def test_one_sample_a_line_whatever_a_model_is_called(tree: Path) -> None:
    """Metrics of a model with an odd name are labels, not samples."""
    odd = 'b\nforged_metric 1\n"}.gguf'
    shutil.copy(tree / "models" / "tiny.gguf", tree / "models" / odd)
    with daemon(*FAKE, models_dir=tree / "models") as running:
        httpx2.post(f"{running.url}/infer", json={"prompt": "x", "model": odd, "stream": False})
        text = httpx2.get(f"{running.url}/metrics").text
        assert "forged_metric" in text
        assert not [line for line in text.splitlines() if line.startswith("forged_metric")]
