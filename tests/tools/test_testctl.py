# SPDX-License-Identifier: GPL-3.0-only
"""What tools/testctl decides: keys, suites, streams, locks. What it installs is tested by using it."""

from __future__ import annotations

import http.server
import json
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest
from benchmark import llama_server

PROGRAM = Path(__file__).resolve().parents[2] / "tools" / "testctl"


@pytest.fixture(scope="module")
def testctl() -> ModuleType:
    """The program as a module."""
    return llama_server.testctl()


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that no other test and no other run uses."""
    monkeypatch.setenv("MODELD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_cache_follows_the_environment(
    testctl: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MODELD_CACHE wins over XDG_CACHE_HOME, which wins over the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MODELD_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert testctl.cache("a") == tmp_path / ".cache/modeld/a"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert testctl.cache() == tmp_path / "xdg/modeld"
    monkeypatch.setenv("MODELD_CACHE", str(tmp_path / "own"))
    assert testctl.cache("b").is_dir()
    assert testctl.cache("b") == tmp_path / "own/b"


@pytest.mark.parametrize(
    ("line", "lacks"),
    [
        ("import os  # noqa: F401  # this module is imported for its side effects", ""),
        ("import os  # noqa: F401", "reason"),
        ("import os  # noqa", "rule"),
        ("import os  # noqa: F401  # why", "reason"),
        ("x = f()  # type: ignore[misc]  # the stub is wrong about it", ""),
        ("x = f()  # type: ignore[misc]", "reason"),
        ("x = f()  # pyright: ignore", "rule"),
        ("x = '# noqa'", ""),
        ("x = f()  # nobody ignores a noqa in the middle", ""),
        ("try: f()\nexcept Exception: pass", "catches everything"),
        ("try: f()\nexcept (Exception, OSError): pass", "catches everything"),
        ("try: f()\nexcept: pass", "catches everything"),
        ("try: f()\nexcept* Exception as group: pass", "catches everything"),
        ("try: f()\nexcept BaseException:  # closed, whatever it is\n  raise", ""),
        ("try: f()\nexcept OSError: pass", ""),
        ("time.sleep(1)", "time.sleep"),
        ("time.sleep(1)  # nothing tells when it is there", ""),
        ("raise NotImplementedError", "abstract"),
        ("raise NotImplementedError('x')", "abstract"),
    ],
)
def test_what_is_silenced_needs_a_reason(testctl: ModuleType, line: str, lacks: str) -> None:
    """A suppression, a handler of everything and a blind wait are found when their line does not say why."""
    found = [complaint for _, complaint in testctl.unreasoned(line + "\n")]
    assert len(found) == bool(lacks)
    assert all(lacks in complaint for complaint in found)


def test_wheels_are_told_apart_by_all_that_matters(testctl: ModuleType) -> None:
    """Version, backend, flags and instruction sets each change the key; how AMX was found does not."""
    plain = testctl.Recipe("1.0", "cpu", (), ("AVX2",), "absent")
    others = [
        plain._replace(version="1.1"),
        plain._replace(backend="cuda"),
        plain._replace(flags=("-DX=1",)),
        plain._replace(instruction_sets=("AVX2", "AVX512F")),
    ]
    assert len({plain.key, *(other.key for other in others)}) == 5
    assert plain._replace(amx="works").key == plain.key


def test_broken_amx_is_built_without(testctl: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Advertised and working AMX is used; advertised and broken AMX is turned off for C and C++."""
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    monkeypatch.setattr(testctl, "instruction_sets", lambda: ("AMX_TILE", "AVX2"))
    monkeypatch.setattr(testctl, "amx_works", lambda: True)
    assert testctl.recipe("cpu").flags == ()
    monkeypatch.setattr(testctl, "amx_works", lambda: False)
    c_flags, cxx_flags = testctl.recipe("cpu").flags
    assert c_flags == "-DCMAKE_C_FLAGS=-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
    assert cxx_flags.startswith("-DCMAKE_CXX_FLAGS=")


def test_flags_of_the_user_join_the_recipe(testctl: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """CMAKE_ARGS is taken as a shell would split it, after the backend's own flags."""
    monkeypatch.setattr(testctl, "instruction_sets", lambda: ("AVX2",))
    monkeypatch.setenv("CMAKE_ARGS", "-DA=1 '-DB=2 3'")
    assert testctl.recipe("vulkan").flags == ("-DGGML_VULKAN=on", "-DA=1", "-DB=2 3")


def test_the_compiler_says_what_this_cpu_can(testctl: ModuleType) -> None:
    """The names are those of macros, without tuning and versions, and the same each time."""
    sets = testctl.instruction_sets()
    assert sets == testctl.instruction_sets()
    assert sets
    assert all("tune" not in name for name in sets)


def test_the_amx_probe_is_a_program(testctl: ModuleType) -> None:
    """It compiles and answers, whatever this CPU can do."""
    assert testctl.amx_works() in {True, False}
    if "AMX_TILE" not in testctl.instruction_sets() and sys.platform == "linux":
        assert testctl.amx_works() is False


def test_progress_of_a_build_is_read_from_its_log(testctl: ModuleType) -> None:
    """Both of CMake's generators are understood, and a log without either says nothing."""
    assert testctl.build_percentage("[  3%] Building\n  [ 47%] Building CXX object") == "47 %"
    assert testctl.build_percentage("[12/48] Building CXX object") == "25 %"
    assert testctl.build_percentage("Collecting llama-cpp-python") == ""


def test_a_pin_is_read_with_its_hashes(testctl: ModuleType, tmp_path: Path) -> None:
    """A requirement ends where the next one, or its comment, begins; what is not pinned is an error."""
    lock = tmp_path / "requirements.lock"
    lock.write_text(
        "a==1 \\\n    --hash=sha256:11 \\\n    --hash=sha256:22\n    # via b\nb==2 \\\n    --hash=sha256:33\n"
    )
    assert testctl.locked_version("a", lock) == "1"
    assert testctl.locked_requirement("a", lock) == "a==1 \\\n    --hash=sha256:11 \\\n    --hash=sha256:22\n"
    with pytest.raises(testctl.TestctlError, match="does not pin c; run: tools/testctl lock"):
        testctl.locked_version("c", lock)


def test_suites_are_markers_and_folders(testctl: ModuleType) -> None:
    """A wrong suite is refused with the names there are."""
    assert testctl.suite_arguments("unit") == ["tests", "-m", "not real and not e2e"]
    assert testctl.suite_arguments("tools") == ["tests/tools"]
    with pytest.raises(testctl.TestctlError, match=r"there is no suite 'x'; there are: all, .*lint.*tools"):
        testctl.suite_arguments("x")


@pytest.mark.parametrize(
    ("words", "suite", "rest"),
    [
        (["test"], "all", []),
        (["test", "core"], "core", []),
        (["test", "--", "-q"], "all", ["-q"]),
        (["test", "core", "--", "-k", "a", "--", "b"], "core", ["-k", "a", "--", "b"]),
    ],
)
def test_what_follows_two_dashes_goes_to_pytest(
    testctl: ModuleType, words: list[str], suite: str, rest: list[str]
) -> None:
    """With and without a suite before them, and untouched."""
    arguments = testctl.parse(words)
    assert (arguments.suite, arguments.rest) == (suite, rest)


def test_a_benchmark_has_its_own_options(testctl: ModuleType) -> None:
    """With or without two dashes, they reach the benchmark and mean nothing here."""
    assert testctl.parse(["bench", "cancel", "--help"]).rest == ["cancel", "--help"]
    assert testctl.parse(["bench", "--", "--streams", "4"]).rest == ["--streams", "4"]


def test_a_soak_has_its_own_options(testctl: ModuleType) -> None:
    """They reach the soak as they are."""
    assert testctl.parse(["soak", "--minutes", "30"]).rest == ["--minutes", "30"]
    assert testctl.parse(["soak", "--", "--help"]).rest == ["--help"]


def test_a_failing_step_shows_its_end_and_its_command(testctl: ModuleType, own_cache: Path) -> None:
    """The message holds the output's end, how it ended, and the command to try by hand."""
    command = [sys.executable, "-c", "print('last words'); raise SystemExit(3)"]
    with pytest.raises(
        testctl.TestctlError, match=r"(?s)exit code 3.*last words.*The command was: "
    ) as caught:
        testctl.run_step("fail on purpose", command)
    assert str(own_cache / "logs") in str(caught.value)


def test_a_step_that_works_leaves_no_log(testctl: ModuleType, own_cache: Path) -> None:
    """Its output is returned, and the cache does not fill up."""
    assert testctl.run_step("speak", [sys.executable, "-c", "print('hello')"]) == "hello\n"
    assert list((own_cache / "logs").iterdir()) == []


def test_a_death_by_signal_has_its_name(testctl: ModuleType) -> None:
    """SIGILL is what a person can look up, -4 is not."""
    assert testctl.ended_how(-4) == "killed by SIGILL"
    assert testctl.ended_how(2) == "exit code 2"


def _hold_lock(held: object, release: object) -> None:
    with llama_server.testctl().locked("models"):
        held.set()
        release.wait(30)


def test_two_runs_do_not_collide(
    testctl: ModuleType, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second run waits, says so, and goes on when the first has ended."""
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    other = context.Process(target=_hold_lock, args=(held, release))
    other.start()
    try:
        assert held.wait(30)
        threading.Timer(0.2, release.set).start()
        with testctl.locked("models"):
            assert release.is_set()
    finally:
        release.set()
        other.join(30)
    assert own_cache.exists()
    assert "another testctl works on models; waiting for it" in capsys.readouterr().out


class Daemon(http.server.BaseHTTPRequestHandler):
    """Answers as modeld does, with lines that the test chose."""

    protocol_version = "HTTP/1.1"
    lines: ClassVar[list[str]] = []
    status: ClassVar[int] = 200

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.status)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in self.lines:
            data = line.encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        """Say nothing: the test reads what testctl prints."""


@pytest.fixture
def port() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Daemon)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_stream_is_printed_and_its_last_line_returned(
    testctl: ModuleType, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Events, blank keep-alive lines and tokens are each treated as what they are."""
    last = {"done": True, "content": "a bé", "finish_reason": "stop"}
    Daemon.status, Daemon.lines = 200, [
        '{"event":"queued","position":1}',
        '{"event":"loading","progress":0.5}',
        '{"token":"a ","done":false}',
        "",
        '{"token":"bé","done":false}',
        json.dumps(last),
    ]  # fmt: skip
    assert testctl.stream(port, {"prompt": "x"}) == last
    assert "a bé\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("status", "lines", "message"),
    [
        (404, ['{"error":"no such model","code":404}'], "POST /infer said 404: .*no such model"),
        (200, ['{"token":"a","done":false}'], "ended without its last line"),
        (200, ['{"done":true,"error":"the engine died","code":500}'], "the stream failed: the engine died"),
    ],
)
def test_a_stream_that_went_wrong_is_an_error(
    testctl: ModuleType, port: int, status: int, lines: list[str], message: str
) -> None:
    """A refusal, a cut and a failure in the stream are told apart, and none passes for success."""
    Daemon.status, Daemon.lines = status, lines
    with pytest.raises(testctl.TestctlError, match=message):
        testctl.stream(port, {"prompt": "x"})


def test_doctor_ends_with_a_verdict(own_cache: Path) -> None:
    """It looks at everything, names a remedy for what is not there, and passes where tests can run."""
    done = subprocess.run([sys.executable, PROGRAM, "doctor"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is not built yet" in done.stdout
    assert "mend it with: tools/testctl install" in done.stdout
    assert done.stdout.endswith("nothing that is required is missing\n")
    assert own_cache.exists()


def test_doctor_without_a_compiler_says_how_to_get_one(own_cache: Path, tmp_path: Path) -> None:
    """What is required and missing makes it fail, with the command that mends it."""
    env = {**os.environ, "PATH": str(tmp_path)}
    command = [sys.executable, PROGRAM, "doctor"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "missing C++ compiler" in done.stdout
    assert "build-essential" in done.stdout
    assert own_cache.exists()
