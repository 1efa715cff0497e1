# SPDX-License-Identifier: GPL-3.0-only
"""`modeld ps`, `models`, `status` and `decisions` against a running daemon: output and exit codes."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx2
import pytest
from support.cli_runner import Answer, fake_daemon, modeld
from support.daemon_process import Daemon
from support.ndjson_server import Exchange, Say, line, ndjson_server
from support.terminal import terminal

LOOKS = ("ps", "models", "status", "decisions")


@pytest.fixture(scope="module")
def running() -> Iterator[Daemon]:
    with fake_daemon() as here:
        answer = httpx2.post(f"{here.url}/infer", json={"model": "pet", "prompt": "Hi"}, timeout=60)
        assert answer.status_code == 200
        yield here


def ask(running: Daemon, *args: str) -> Answer:
    return modeld(*args, MODELD_ADDR=f"127.0.0.1:{running.port}")


@pytest.mark.e2e
def test_ps_lists_what_is_loaded(running: Daemon) -> None:
    """The one model that served is there under the name that is enough to type; --all has the others."""
    shown = ask(running, "ps")
    assert (shown.code, shown.err) == (0, "")
    assert [row[:2] for row in shown.rows] == [["alpha", "ready"]]
    assert shown.rows[0][3] == "0/4"
    assert shown.out.endswith("1 request waits for it\n")


@pytest.mark.e2e
def test_models_lists_what_there_is(running: Daemon) -> None:
    """Loaded or not, with aliases and marks."""
    shown = ask(running, "models")
    assert (shown.code, shown.err) == (0, "")
    assert [row[:3] for row in shown.rows] == [
        ["alpha", "ready", "F32"], ["beta", "stopped", "F32"], ["gamma", "stopped", "F32"],
    ]  # fmt: skip
    assert shown.rows[0][-3:] == ["default", "pet", "-"]


@pytest.mark.e2e
def test_status_has_everything_on_one_page(running: Daemon) -> None:
    """The daemon, its memory, the table and the decisions, in a pipe as well."""
    shown = ask(running, "status")
    assert (shown.code, shown.err) == (0, "")
    for part in (f"at 127.0.0.1:{running.port}: ready", "no budget", "1 load", "device ", "MODEL", "ACTION"):
        assert part in shown.out


@pytest.mark.e2e
def test_decisions_can_be_chosen(running: Daemon) -> None:
    """By any name of a model, and by number; the last one is the newest."""
    assert [row[2] for row in ask(running, "decisions").rows] == ["load", "ready"]
    assert [row[2] for row in ask(running, "decisions", "--model", "pet", "-n", "1").rows] == ["ready"]
    assert ask(running, "decisions", "--model", "beta").rows == []
    unknown = ask(running, "decisions", "--model", "nope")
    assert (unknown.code, unknown.out) == (1, "")
    assert "there is no model 'nope'; modeld models lists them" in unknown.err


@pytest.mark.e2e
def test_json_is_the_daemon_s_own(running: Daemon) -> None:
    """The list of models is the same to the byte, and decisions are those of the status."""
    url = running.url
    assert ask(running, "models", "--json").out == httpx2.get(f"{url}/models").text + "\n"
    status = json.loads(ask(running, "ps", "--json").out)
    assert status["instances"][0]["model_id"] == "alpha.gguf"
    decisions = json.loads(ask(running, "decisions", "--json", "-n", "1").out)
    assert decisions == status["decisions"][-1:]


@pytest.mark.e2e
@pytest.mark.parametrize("name", LOOKS)
def test_a_pipe_gets_no_control_sequences(running: Daemon, name: str) -> None:
    """Neither colours nor anything else that only a terminal understands."""
    shown = ask(running, name)
    assert shown.code == 0
    assert "\x1b" not in shown.out + shown.err
    assert all(text == text.rstrip() for text in shown.out.splitlines())


@pytest.mark.e2e
def test_a_terminal_gets_colours_unless_they_are_not_wanted(running: Daemon) -> None:
    """NO_COLOR takes them away; lines fit into the width of the terminal either way."""
    address = f"127.0.0.1:{running.port}"
    for environ, colours in (({}, True), ({"NO_COLOR": "1"}, False)):
        with terminal("ps", columns=50, MODELD_ADDR=address, **environ) as window:
            assert window.end() == 0
        assert ("\x1b[32m" in window.seen) == colours
        lines = window.text.splitlines()
        assert max(map(len, lines)) <= 50
        assert "alpha" in window.text


@pytest.mark.e2e
def test_a_unix_socket_is_as_good(tmp_path: Path) -> None:
    """The daemon that listens on a path is found there, and through its config."""
    path = tmp_path / "s"
    address = f"unix:{path}"
    config = tmp_path / "modeld.yaml"
    config.write_text(f"addr: {address}\n", encoding="utf-8")
    with fake_daemon("--addr", address):
        assert modeld("ps", "--addr", address).out.startswith("MODEL")
        shown = modeld("status", "--config", str(config))
        assert (shown.code, shown.out.splitlines()[0].split(":")[0]) == (0, "modeld 0.1.0 at unix")


@pytest.mark.parametrize("name", LOOKS)
def test_nothing_there_is_exit_3(name: str) -> None:
    """The sentence names the address, where it comes from, the reason, and what to do."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        done = modeld(name, MODELD_ADDR=address)
    assert (done.code, done.out) == (3, "")
    assert done.err == (
        f"modeld: nothing answers at {address} (from MODELD_ADDR): connection refused; "
        "start the daemon with: modeld serve (or name its address with --addr)\n"
    )


@pytest.mark.parametrize(
    "args",
    [
        ["ps", "extra"], ["ps", "--watch", "0"], ["ps", "--watch", "often"], ["models", "--watch=-1"],
        ["decisions", "-n", "0"], ["status", "--url", "x"], ["ps", "--api-key", "secret"],
        ["ps", "--addr", "nonsense"],
    ],
)  # fmt: skip
def test_a_wrong_command_line_exits_with_2(args: list[str]) -> None:
    """Nothing is asked then; and a key cannot be given where every user of the machine can read it."""
    assert modeld(*args).code == 2


@pytest.mark.parametrize(
    ("status", "body", "code", "says"),
    [
        (401, line(error="no key", code=401), 1, "no key (give a key with --api-key-file, or in MOD"),
        (429, line(error="too many requests", code=429), 1, "modeld: too many requests (try again in 7 s)\n"),
        (409, line(error="no\x1b[2J\r", code=409), 1, "modeld: no\\x1b[2J\\r\n"),
        (404, b"<html>nginx</html>", 1, "is no modeld: GET /status gave 404 "),
        (200, b"<html>router</html>", 1, "is no modeld: GET /status gave 200 "),
        (502, b"<html>nginx</html>", 3, "something else answers there: 502 Bad Gateway"),
        (200, b'{"state": 7}', 1, "the daemon's answer cannot be read"),
        (200, b'{"state": "rea', 1, "the daemon's answer cannot be read"),
    ],
)  # fmt: skip
def test_what_else_may_answer(status: int, body: bytes, code: int, says: str) -> None:
    """Refusals are told in the daemon's words; a stranger at the address is told as such."""

    def answer(_: Exchange, __: BaseHTTPRequestHandler, say: Say) -> None:
        say(body)

    kind = "text/html" if body.startswith(b"<") else "application/json"
    wait = {"Retry_After": "7"} if status == 429 else {}
    with ndjson_server(answer, status=status, Content_Type=kind, **wait) as server:
        done = modeld("ps", "--url", server.url, MODELD_API_KEY="sk-1")
    assert (done.code, done.out) == (code, "")
    assert says in done.err
    assert server.headers["authorization"] == "Bearer sk-1"


@pytest.mark.e2e
def test_https_is_asked_where_it_is_spoken(tmp_path: Path) -> None:
    """By URL, or as the daemon's config says; a certificate that is not trusted is told, with the way out."""
    pair = Path(__file__).parents[2] / "http" / "server" / "fixtures"
    cert = str(pair / "server.pem")
    with fake_daemon("--tls-cert", cert, "--tls-key", str(pair / "server.key")) as running:
        url = f"https://127.0.0.1:{running.port}"
        config = tmp_path / "modeld.yaml"
        config.write_text(f'addr: "127.0.0.1:{running.port}"\ntls_cert: {cert}\n', encoding="utf-8")
        assert modeld("models", "--url", url, "--ca-file", cert).code == 0
        shown = modeld("status", "--config", str(config), MODELD_CA_FILE=cert)
        assert (shown.code, shown.out.partition(": ready, ")[0]) == (0, f"modeld 0.1.0 at {url}")
        stranger = modeld("ps", "--url", url)
        assert stranger.code == 3
        assert "certificate" in stranger.err
        assert "--ca-file" in stranger.err
        assert modeld("ps", "--url", url, "--ca-file", str(pair / "README.md")).code == 1
