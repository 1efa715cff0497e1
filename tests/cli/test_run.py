# SPDX-License-Identifier: GPL-3.0-only
"""`modeld run` against a real socket: text out, refusals, cancellation, exit codes."""

import os
import pty
import signal
import socket
import subprocess
import sys
from http.server import BaseHTTPRequestHandler

import pytest
from click.testing import CliRunner, Result
from support.ndjson_server import Exchange, Say, line, ndjson_server

from modeld.cli.main import modeld

LAST = {"done": True, "content": "", "finish_reason": "stop", "usage": {"completion_tokens": 2}}


def text(token: str) -> bytes:
    fields = {"token": token, "done": False}
    return line(**fields)


def invoke(*args: str, stdin: str | bytes | None = None, **environ: str) -> Result:
    return CliRunner(env={"MODELD_ADDR": "", **environ}).invoke(modeld, ["run", *args], input=stdin)


def haiku(_: Exchange, __: BaseHTTPRequestHandler, say: Say) -> None:
    say(line(event="queued", position=1, eta_ms=None) + line(event="loading", progress=0.5))
    say(b"\n" + text("Old ")[:-9])
    say(text("Old ")[-9:] + text("pond\u2028\x85"))
    say(line(**LAST))


def test_text_goes_to_standard_output_as_it_is() -> None:
    """Lines may be split anywhere and hold any separator; events and figures stay out of the text."""
    with ndjson_server(haiku) as server:
        result = invoke("tiny", "Write a haiku", "--url", server.url)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Old pond\u2028\x85\n", "")
    assert server.path == "/infer"
    assert server.body == {
        "model": "tiny",
        "stream": True,
        "events": True,
        "messages": [{"role": "user", "content": "Write a haiku"}],
    }


def test_options_reach_the_server() -> None:
    """Sampling options and the system message are sent; what is not given is not sent."""
    options = ["--max-tokens", "5", "--temperature", "0", "--seed", "-7", "--system", "Be brief"]
    with ndjson_server(haiku) as server:
        assert invoke("tiny", "two", "words", *options, "--addr", f":{server.port}").exit_code == 0
    assert server.body["messages"] == [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "two words"},
    ]
    assert (server.body["max_tokens"], server.body["temperature"], server.body["seed"]) == (5, 0.0, -7)


def test_a_raw_prompt_from_standard_input() -> None:
    """`-` reads the prompt, all of it; --raw sends it without a template; MODELD_ADDR names the daemon."""
    with ndjson_server(haiku) as server:
        address = f"127.0.0.1:{server.port}"
        assert invoke("tiny", "-", "--raw", stdin="a\nb \u00e4", MODELD_ADDR=address).exit_code == 0
    assert server.body["prompt"] == "a\nb \u00e4"
    assert "messages" not in server.body


def test_json_prints_the_lines_as_they_are() -> None:
    """--json leaves every line of the stream to the reader."""
    with ndjson_server(haiku) as server:
        result = invoke("tiny", "x", "--json", "--url", server.url)
    found = result.stdout.encode().splitlines(keepends=False)
    assert result.stdout.split("\n")[0] == line(event="queued", position=1, eta_ms=None).decode().strip()
    assert len(result.stdout.split("\n")) == 6, found


def test_a_refusal_is_its_sentence() -> None:
    """An error status prints the server's sentence and when to try again, and exits with 1."""

    def refuse(_: Exchange, __: BaseHTTPRequestHandler, say: Say) -> None:
        say(line(error="the queue is full", code=429))

    with ndjson_server(refuse, status=429, Retry_After="3") as server:
        result = invoke("tiny", "x", "--url", server.url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "modeld: the queue is full (try again in 3 s)\n"


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (502, 3, "something else answers there: 502 Bad Gateway"),
        (404, 1, "is no modeld: POST /infer gave 404"),
    ],
)
def test_a_stranger_at_the_address_is_told(status: int, code: int, says: str) -> None:
    """As by the other commands: a proxy without its daemon is none that answers."""

    def stranger(_: Exchange, __: BaseHTTPRequestHandler, say: Say) -> None:
        say(b"<html>nginx</html>")

    with ndjson_server(stranger, status=status, Content_Type="text/html") as server:
        result = invoke("tiny", "x", "--url", server.url)
    assert (result.exit_code, result.stdout) == (code, "")
    assert says in result.stderr


@pytest.mark.parametrize(
    "args",
    [
        [b"tiny\xff", b"x"],
        [b"tiny", b"caf\xe9"],
        [b"tiny", b"a", b"b\xff"],
        [b"tiny", b"x", b"--system", b"\xff"],
        [b"tiny", b"x", b"--url", b"http://\xff/"],
    ],
)
@pytest.mark.process
def test_arguments_that_are_not_utf8_are_refused(args: list[bytes]) -> None:
    """What JSON cannot carry is a wrong command line, told in a sentence."""
    done = subprocess.run(
        [sys.executable, "-m", "modeld", "run", *args],
        capture_output=True, check=False, timeout=60, env={**os.environ, "PYTHONUTF8": "1"},
    )  # fmt: skip
    assert done.returncode == 2
    assert b"it is not UTF-8" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("last", "says"),
    [
        (line(done=True, error="the engine died", code=500, finish_reason="error"), "the engine died"),
        (line(done=True, finish_reason="shutdown"), "the answer was cut: shutdown"),
        (b"", "before the answer was complete"),
        (b"<html>\n", "does not speak modeld's protocol"),
        (b"\xff\n", "does not speak modeld's protocol"),
    ],
)
def test_a_stream_that_goes_wrong_is_told_after_its_text(last: bytes, says: str) -> None:
    """What came is shown, on its own line; then the reason, and exit 1."""

    def broken(_: Exchange, __: BaseHTTPRequestHandler, say: Say) -> None:
        say(text("half") + last)

    with ndjson_server(broken) as server:
        result = invoke("tiny", "x", "--url", server.url)
    assert (result.exit_code, result.stdout) == (1, "half\n")
    assert says in result.stderr


def test_a_connection_that_breaks_is_told() -> None:
    """A stream cut in its middle is a failure with a sentence, not a traceback."""

    def cut(_: Exchange, handler: BaseHTTPRequestHandler, say: Say) -> None:
        say(text("half"))
        handler.connection.shutdown(socket.SHUT_RDWR)

    with ndjson_server(cut) as server:
        result = invoke("tiny", "x", "--url", server.url)
    assert (result.exit_code, result.stdout) == (1, "half\n")
    assert "the connection broke" in result.stderr


def test_nothing_there_says_how_to_start() -> None:
    """A refused connection exits with 3 and names the command that starts the daemon."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        result = invoke("tiny", "x", "--addr", f"127.0.0.1:{unused.getsockname()[1]}")
    assert result.exit_code == 3
    assert "modeld serve" in result.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["tiny", "x", "--temperature", "nan"],
        ["tiny", "x", "--temperature", "-1"],
        ["tiny", "x", "--max-tokens", "0"],
        ["tiny", "x", "--addr", "nonsense"],
        ["tiny", "x", "--addr", "fd://3"],
        ["tiny", "x", "--url", "ftp://x"],
        ["tiny", "x", "--url", "http://"],
        ["tiny", "x", "--url", "http://[::1"],
        ["tiny", "x", "--url", "http://box:99999"],
        ["tiny", "x", "--raw", "--system", "y"],
        ["tiny", "x", "--unknown"],
        ["tiny", " "],
        ["tiny", "-"],
        ["tiny"],
    ],
)
def test_a_wrong_command_line_exits_with_2(args: list[str]) -> None:
    """Usage errors never reach a server."""
    assert invoke(*args).exit_code == 2


@pytest.mark.process
def test_a_prompt_must_be_given_at_a_terminal() -> None:
    """Without a prompt, a terminal is not silently read from."""
    code, seen = in_terminal(["tiny"])
    assert code == 2
    assert "a prompt is missing" in seen


def in_terminal(args: list[str], *, interrupt: Exchange | None = None) -> tuple[int, str]:
    """Run `modeld run` in a terminal of its own; press Ctrl-C once the server's first line went out."""
    main, other = pty.openpty()
    environ = {**os.environ, "TERM": "xterm", "MODELD_ADDR": "", "COLUMNS": "200"}
    with subprocess.Popen(
        [sys.executable, "-m", "modeld", "run", *args], stdin=other, stdout=other, stderr=other, env=environ
    ) as child:
        os.close(other)
        seen = b""
        while True:
            try:
                data = os.read(main, 4096)
            except OSError:
                break
            seen += data
            if interrupt is not None and b"Old" in seen:
                child.send_signal(signal.SIGINT)
                interrupt = None
        os.close(main)
    return child.returncode, seen.decode()


@pytest.mark.process
def test_a_terminal_shows_progress_and_figures() -> None:
    """Waiting and loading are shown while they last, then the text, then tokens and speed."""

    def stream(_: Exchange, __: BaseHTTPRequestHandler, say: Say) -> None:
        say(line(event="queued", position=2, eta_ms=1800) + line(event="loading", progress=0.4))
        say(text("Old \x1b[31mpond"))
        stats = {"tokens_per_second": 51.2, "ttft_ms": 70, "load_ms": 1200}
        say(line(**{**LAST, "stats": stats, "finish_reason": "length"}))

    with ndjson_server(stream) as server:
        code, seen = in_terminal(["tiny", "x", "--url", server.url])
    assert code == 0
    assert "Old [31mpond\r\n" in seen
    figures = "2 tokens, 51.2 tokens/s, first after 70 ms, loaded in 1.2 s, ended by length"
    assert figures in seen


@pytest.mark.process
def test_ctrl_c_cancels() -> None:
    """Ctrl-C closes the connection and exits with 130, without a traceback."""

    def endless(exchange: Exchange, handler: BaseHTTPRequestHandler, say: Say) -> None:
        say(text("Old"))
        exchange.wait_until_client_leaves(handler)

    with ndjson_server(endless) as server:
        code, seen = in_terminal(["tiny", "x", "--url", server.url], interrupt=server)
    assert code == 130
    assert server.client_left.wait(20)
    assert "Traceback" not in seen


@pytest.mark.process
def test_a_reader_that_leaves_cancels() -> None:
    """When standard output is closed (`| head`), the connection is closed and nothing is complained of."""

    def endless(exchange: Exchange, handler: BaseHTTPRequestHandler, say: Say) -> None:
        while not exchange.client_left.is_set():
            say(text("word "))

    with ndjson_server(endless) as server:
        with subprocess.Popen(
            [sys.executable, "-m", "modeld", "run", "tiny", "x", "--url", server.url],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as child:
            assert child.stdout is not None
            assert child.stderr is not None
            assert child.stdout.read(4) == b"word"
            child.stdout.close()
            complaint = child.stderr.read()
        assert server.client_left.wait(20)
    assert (child.returncode, complaint) == (1, b"")
