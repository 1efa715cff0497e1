# SPDX-License-Identifier: GPL-3.0-only
"""Preflight: each check by itself, and what `serve` does with them."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from support.tiny_gguf import write_model

from modeld.cli.preflight import (
    NotOk,
    Ok,
    Verdict,
    check_address,
    check_addresses,
    check_default_model,
    check_events_file,
    check_library,
    check_memory,
    check_models,
    check_models_dir,
    check_scripts,
    check_state_dir,
)
from modeld.config.address import parse_address
from modeld.config.model_settings import ModelSettings
from modeld.config.settings import Settings
from modeld.domain.model import Catalog
from modeld.runtime.catalog.scan import Scanner, ScanResult


def why(verdict: Verdict) -> str:
    assert isinstance(verdict, NotOk)
    return verdict.why


def test_the_models_folder_must_be_a_readable_folder(tmp_path: Path) -> None:
    """A missing folder and a file in its place are told apart; an empty folder is fine."""
    assert check_models_dir(tmp_path) == Ok()
    assert "create it" in why(check_models_dir(tmp_path / "none"))
    (tmp_path / "file").touch()
    assert "is no folder" in why(check_models_dir(tmp_path / "file"))


def test_an_empty_folder_does_not_keep_the_daemon_from_starting(tmp_path: Path) -> None:
    """Models may come later, so none is a note."""
    verdict = check_models(ScanResult(), tmp_path)
    assert isinstance(verdict, Ok)
    assert "noticed without a restart" in verdict.note
    assert check_default_model(None, Catalog()) == Ok("none")


def test_a_broken_model_is_a_note_unless_it_is_the_default(tmp_path: Path) -> None:
    """One damaged file harms nothing else; as the default model it is NOT OK."""
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and nothing more")
    scan = Scanner(Settings(models_dir=tmp_path, models={"gone": ModelSettings()})).scan()
    verdict = check_models(scan, tmp_path)
    assert isinstance(verdict, Ok)
    assert "damaged: broken.gguf" in verdict.note
    assert "no file for these of models: gone" in verdict.note
    assert "cannot be used" in why(check_default_model("broken", scan.catalog))


def test_the_default_model_must_be_there(tmp_path: Path) -> None:
    """It is found by file name and stem; a typo names the nearest."""
    write_model(tmp_path / "tiny-q4.gguf")
    catalog = Scanner(Settings(models_dir=tmp_path)).scan().catalog
    assert check_default_model("tiny-q4", catalog) == check_default_model(None, catalog) == Ok("tiny-q4.gguf")
    assert "did you mean tiny-q4" in why(check_default_model("tiny-q5", catalog))
    assert "has no models" in why(check_default_model("x", Catalog()))


@pytest.mark.parametrize(
    ("probe", "says"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "SIGILL; it was built for another CPU"),
        ("import os; os.abort()", "SIGABRT"),
        ("import no_such_library", "No module named 'no_such_library'"),
    ],
)
@pytest.mark.process
def test_a_library_that_dies_is_told(probe: str, says: str) -> None:
    """A signal, an abort and a missing module are each named, and the daemon survives them."""
    assert says in why(check_library(probe=probe))


@pytest.mark.real
def test_the_real_library_loads() -> None:
    """llama.cpp of this environment passes."""
    assert check_library() in {Ok("cpu"), Ok("gpu")}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (Settings(fake="bogus=1"), "the script cannot be read: the fake engine knows no 'bogus'"),
        (Settings(fake="chunk=many"), "the script cannot be read: Expected `int`"),
        (
            Settings(fake="step_s=1", models={"tiny": ModelSettings(fake="bogus=1")}),
            "the script of tiny cannot be read: the fake engine knows no 'bogus'",
        ),
    ],
)
def test_a_script_of_the_fake_engine_must_be_readable(settings: Settings, says: str) -> None:
    """The daemon's own one, and those of single models."""
    assert says in why(check_scripts(settings))
    assert check_scripts(Settings(fake="load_s=1", models={"tiny": ModelSettings()})) == Ok()


@pytest.mark.parametrize(
    ("budget", "machine", "gpu", "ok"),
    [
        (0, 1024, False, True),
        (None, 1024, False, True),
        (1000, 1024, False, True),
        (1025, 1024, False, False),
        (1025, 1024, True, True),
        (1025, None, False, True),
    ],
)
def test_a_budget_larger_than_the_machine_is_not_ok(budget: int, machine: int, gpu: bool, ok: bool) -> None:
    """Without a GPU no budget above the machine's memory can be kept."""
    bytes_of_machine = None if machine is None else machine * 2**20
    verdict = check_memory(Settings(vram_budget_mb=budget), bytes_of_machine, gpu=gpu)
    assert isinstance(verdict, Ok) is ok


def test_an_address_in_use_is_not_ok() -> None:
    """A port where somebody listens is told; it is fine once that one has left."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        address = parse_address(f"127.0.0.1:{other.getsockname()[1]}")
        assert "another program listens" in why(check_address(address))
        inherited = check_addresses((f"fd://{other.fileno()}",))
        assert inherited == Ok()
    assert check_address(address) == Ok()
    assert check_address(parse_address(":0")) == Ok()
    assert "no address of this machine" in why(check_address(parse_address("192.0.2.1:0")))


def test_a_descriptor_must_be_a_listening_socket(tmp_path: Path) -> None:
    """A file, a socket that does not listen and a closed descriptor are told apart."""
    with (tmp_path / "file").open("w") as file, socket.socket() as idle:
        assert "is no socket" in why(check_addresses((f"fd://{file.fileno()}",)))
        assert "does not listen" in why(check_addresses((f"fd://{idle.fileno()}",)))
    assert "there is no file descriptor" in why(check_addresses(("fd://99999",)))


def test_a_socket_path_must_be_free(tmp_path: Path) -> None:
    """A file, a live socket and a missing folder are NOT OK; a socket nobody listens on is fine."""
    path = tmp_path / "m.sock"
    assert check_addresses((f"unix:{path}",)) == Ok()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(0)
        assert "another program listens" in why(check_addresses((f"unix:{path}",)))
        # The first look took the only place in its queue.
        assert "another program listens" in why(check_addresses((f"unix:{path}",)))
    assert check_addresses((f"unix:{path}",)) == Ok()
    path.unlink()
    path.touch()
    assert "is no socket" in why(check_addresses((f"unix:{path}",)))
    assert "create the folder" in why(check_addresses((f"unix:{tmp_path}/none/m.sock",)))


def test_the_state_folder_is_made_and_must_work_only_when_asked_for(tmp_path: Path) -> None:
    """A default that cannot be used is a note, one that was set is NOT OK."""
    assert check_state_dir(tmp_path / "a" / "b", required=True) == Ok()
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").touch()
    inside_a_file = tmp_path / "file" / "state"
    assert "--state-dir" in why(check_state_dir(inside_a_file, required=True))
    verdict = check_state_dir(inside_a_file, required=False)
    assert isinstance(verdict, Ok)
    assert "nothing is kept" in verdict.note


def test_the_events_file_must_be_writable(tmp_path: Path) -> None:
    """It is opened for appending, and keeps what it holds."""
    file = tmp_path / "events.jsonl"
    file.write_text("kept\n", encoding="utf-8")
    assert check_events_file(file) == Ok()
    assert file.read_text(encoding="utf-8") == "kept\n"
    assert "no such file" in why(check_events_file(tmp_path / "none" / "events"))


def environment(folder: Path) -> Mapping[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MODELD_")}
    return {**kept, "XDG_STATE_HOME": str(folder / "state")}


@pytest.mark.process
def test_serve_fails_with_1_when_a_check_fails(tmp_path: Path) -> None:
    """Each check has its line; one NOT OK ends the start with exit code 1."""
    args = [
        "--models-dir",
        str(tmp_path),
        "--default-model",
        "gone",
        "--engine",
        "fake",
        "--addr",
        "127.0.0.1:0",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "modeld", "serve", *args],
        capture_output=True, text=True, check=False, env=environment(tmp_path), timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "[preflight] models_dir: OK\n" in done.stderr
    assert (
        '[preflight] default_model: NOT OK - no model is called "gone" (the folder has no models)'
        in done.stderr
    )
    assert done.stdout == ""


@pytest.mark.process
def test_serve_fails_with_2_when_a_setting_is_wrong() -> None:
    """A wrong setting is told before anything is looked at."""
    done = subprocess.run(
        [sys.executable, "-m", "modeld", "serve", "--llama-slots", "0"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--llama-slots" in done.stderr
    assert "[preflight]" not in done.stderr


@pytest.mark.e2e
def test_serve_starts_answers_run_and_stops(tmp_path: Path) -> None:
    """The daemon starts with the fake engine, `modeld run` gets its text, SIGTERM ends it with 0."""
    write_model(tmp_path / "tiny.gguf")
    args = [
        "--models-dir",
        str(tmp_path),
        "--engine",
        "fake",
        "--addr",
        "127.0.0.1:0",
        "--log-format",
        "json",
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "modeld", "serve", *args],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment(tmp_path),
    ) as daemon:  # fmt: skip
        assert daemon.stderr is not None
        url = None
        while url is None:
            seen = daemon.stderr.readline()
            assert seen, "the daemon ended before it listened"
            found = re.search(r"listens on (http://\S+)", seen)
            url = found[1] if found else None
        asked = subprocess.run(
            [sys.executable, "-m", "modeld", "run", "tiny", "hello", "--raw", "--max-tokens=4", "--url", url],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        daemon.send_signal(signal.SIGTERM)
        rest = daemon.stderr.read()
    assert (asked.returncode, asked.stderr) == (0, "")
    assert asked.stdout.strip()
    assert daemon.returncode == 0, rest
