# SPDX-License-Identifier: GPL-3.0-only
"""`modeld load`, `unload`, `switch`, `plan`, `pin`, `operations`, `cancel` against a running daemon."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import httpx2
import pytest
from support.cli_runner import Answer, fake_daemon, modeld
from support.daemon_process import Daemon
from support.ndjson_server import Exchange, Say, line, ndjson_server
from support.terminal import terminal

pytestmark = pytest.mark.e2e

MORE = {"broken": "fail_load=its_tensors_are_missing", "slow": "load_s=300", "talker": "step_s=0.05"}
ROOM_FOR_TWO = ("--vram-budget-mb", "65")


@pytest.fixture(scope="module")
def running() -> Iterator[Daemon]:
    with fake_daemon(*ROOM_FOR_TWO, more=MORE) as here:
        yield here


@pytest.fixture
def ask(running: Daemon) -> Iterator[Asker]:
    """Commands for a daemon in which nothing is loaded or pinned, before and after."""
    asker = Asker(running)
    yield asker
    everything = [row["model_id"] for row in json.loads(asker("ps", "--json").out)["instances"]]
    for model in everything:
        asker("unload", "--force", model)
        asker("unpin", model)


class Asker:
    def __init__(self, running: Daemon) -> None:
        self.running = running
        self.environ = {"MODELD_ADDR": f"127.0.0.1:{running.port}"}

    def __call__(self, *args: str) -> Answer:
        return modeld(*args, **self.environ)

    def loaded(self) -> list[str]:
        return [row[0] for row in self("ps").rows if row[1] == "ready"]


def test_models_are_loaded_by_any_name(ask: Asker) -> None:
    """Progress is told on standard error, how it ended on standard output."""
    done = ask("load", "pet", "beta.gguf")
    assert done.code == 0
    assert [line.partition(" in ")[0] for line in done.out.splitlines()] == ["alpha: loaded", "beta: loaded"]
    assert all(line.startswith("modeld: ") for line in done.err.splitlines())
    assert ask.loaded() == ["alpha", "beta"]
    again = ask("load", "alpha")
    assert (again.code, again.out, again.err) == (0, "alpha: loaded\n", "")


def test_one_that_is_refused_leaves_the_others(ask: Asker) -> None:
    """The unknown and the broken are told; the exit code is 1; the third is loaded."""
    done = ask("load", "nope", "broken", "alpha")
    assert done.code == 1
    assert "modeld: there is no model 'nope'" in done.err
    assert "modeld: broken: the load failed: " in done.err
    assert "its tensors are missing" in done.err
    assert done.out.startswith("alpha: loaded")


def test_who_went_for_it_is_told(ask: Asker) -> None:
    """A third model evicts one of two; a switch unloads the rest, but for what is pinned."""
    assert ask("load", "--pin", "alpha").code == 0
    assert ask("load", "beta").code == 0
    third = ask("load", "gamma")
    assert third.out.endswith("; gone for it: beta\n")
    assert ask.loaded() == ["alpha", "gamma"]
    pinned = next(row for row in ask("ps").rows if row[0] == "alpha")
    assert "yes" in pinned
    assert ask("unpin", "alpha").out == "alpha: not pinned, ready\n"
    switched = ask("switch", "beta")
    assert (switched.code, ask.loaded()) == (0, ["beta"])
    assert sorted(switched.out.partition("gone for it: ")[2].strip().split(", ")) == ["alpha", "gamma"]


def test_json_is_the_operation_as_the_daemon_tells_it(ask: Asker) -> None:
    """The last state of each, a line each, and the list of all."""
    done = ask("load", "--json", "alpha", "beta")
    first, second = map(json.loads, done.out.splitlines())
    assert (first["model"], first["state"], second["model"]) == ("alpha.gguf", "done", "beta.gguf")
    told = httpx2.get(f"{ask.running.url}/operations/{first['id']}").text
    assert done.out.splitlines()[0] == told
    listed = json.loads(ask("operations", "--json").out)["operations"]
    assert {first["id"], second["id"]} <= {it["id"] for it in listed}
    row = next(row for row in ask("operations").rows if row[0] == first["id"])
    assert row[1:5] == ["load", "alpha", "done", "done"]


def test_an_unload_frees_the_memory(ask: Asker) -> None:
    """Several at once; what is not loaded is no error."""
    ask("load", "alpha", "beta")
    gone = ask("unload", "alpha", "beta", "gamma")
    assert gone.code == 0
    assert [line.partition(" in ")[0] for line in gone.out.splitlines()] == [
        "alpha: unloaded", "beta: unloaded", "gamma: unloaded",
    ]  # fmt: skip
    assert ask.loaded() == []


def test_force_cuts_streams_with_a_regular_end(ask: Asker) -> None:
    """A reader of an endless stream gets its last line."""
    body = {"model": "talker", "prompt": "one two", "max_tokens": 8000, "ignore_eos": True}
    lines: list[str] = []
    begun = threading.Event()

    def read() -> None:
        with httpx2.stream("POST", f"{ask.running.url}/infer", json=body, timeout=90) as answer:
            for line in answer.iter_lines():
                lines.append(line)
                begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(60)
    cut = ask("unload", "--force", "talker")
    reader.join(60)
    assert (cut.code, cut.out.partition(" in ")[0].strip()) == (0, "talker: unloaded")
    assert json.loads(lines[-1])["done"] is True


def test_a_detached_load_can_be_cancelled(ask: Asker) -> None:
    """It returns at once with the operation's name; who cancels it is told what became of it."""
    begun = ask("load", "--detach", "slow")
    assert begun.code == 0
    text, _, name = begun.out.strip().rpartition(" ")
    assert text == "slow: load begun, operation"
    assert json.loads(ask("operations", "--json").out)["operations"][-1]["state"] == "running"
    back = ask("cancel", name)
    assert (back.code, back.out) == (0, "slow: the load was taken back\n")
    unknown = ask("cancel", "nope")
    assert (unknown.code, unknown.out) == (1, "")
    assert "there is no operation 'nope'" in unknown.err


def test_ctrl_c_takes_a_load_back(ask: Asker) -> None:
    """The bar moves while it lasts; Ctrl-C says what became of it, exits with 130, and the load ends."""
    with terminal("load", "slow", **ask.environ) as window:
        window.wait_for(r"slow .*[1-9]\d?% .*loading")
        window.interrupt()
        assert window.end() == 130
    assert "modeld: slow: the load was taken back\r\n" in window.text
    assert "Traceback" not in window.text
    last = json.loads(ask("operations", "--json").out)["operations"][-1]
    assert (last["model"], last["state"]) == ("slow.gguf", "cancelled")


def test_ctrl_c_leaves_a_load_that_others_wait_for(ask: Asker) -> None:
    """A request that waits for the same model is not the operator's to take back."""
    client = httpx2.Client(timeout=90)
    body = {"model": "slow", "prompt": "one", "events": True}
    with client, client.stream("POST", f"{ask.running.url}/infer", json=body) as answer:
        lines = answer.iter_lines()  # Kept: who lets it go leaves.
        assert next(lines)
        with terminal("load", "slow", **ask.environ) as window:
            window.wait_for("loading")
            window.interrupt()
            assert window.end() == 130
        assert "but 1 request waits for the model: its load goes on" in window.text
        state = next(row for row in ask("ps").rows if row[0] == "slow")
        assert state[1] == "loading"


def test_a_plan_says_yes_or_no(ask: Asker) -> None:
    """Exit 0 and who would go, or 1 and why not; nothing is loaded by asking."""
    ask("load", "alpha", "beta")
    fits = ask("plan", "gamma")
    assert (fits.code, fits.err) == (0, "")
    assert fits.out.startswith("yes: gamma.gguf needs ")
    assert "\nevicts  " in fits.out
    never = ask("plan", "gamma", "--slots", "200")
    assert never.code == 1
    assert never.out.startswith("no: ")
    plan = json.loads(ask("plan", "gamma", "--json").out)
    assert (plan["model"], plan["fits"]) == ("gamma.gguf", True)
    assert ask.loaded() == ["alpha", "beta"]


def test_pins_are_told(ask: Asker) -> None:
    """With the state of the model, and as the daemon's JSON."""
    assert ask("pin", "alpha", "gamma").out == "alpha: pinned, stopped\ngamma: pinned, stopped\n"
    row = json.loads(ask("unpin", "--json", "alpha").out)
    assert (row["id"], row["pinned"]) == ("alpha.gguf", False)
    ask("unpin", "gamma")


def test_what_the_daemon_refuses_is_exit_1(ask: Asker) -> None:
    """A duration that is none, a model that is not there."""
    for args in (
        ("load", "--keep-alive", "soon", "alpha"),
        ("switch", "nope"),
        ("plan", "nope"),
        ("pin", "nope"),
    ):
        done = ask(*args)
        assert (done.code, done.out) == (1, ""), args
        assert done.err.startswith("modeld: ")


@pytest.mark.parametrize("name", ["load", "unload", "switch", "plan", "pin", "unpin", "cancel"])
def test_without_a_model_it_is_a_wrong_command_line(name: str) -> None:
    """Nothing is asked."""
    assert modeld(name).code == 2


def test_a_daemon_that_goes_meanwhile_is_exit_3() -> None:
    """What was begun is followed no longer; the sentence names the address."""

    def die(server: Exchange, handler: BaseHTTPRequestHandler, say: Say) -> None:
        if server.path == "/models/alpha/load":
            say(line(id="1", kind="load", model="alpha.gguf", state="running", phase="loading"))
        else:
            handler.connection.shutdown(socket.SHUT_RDWR)

    with ndjson_server(die, Content_Type="application/json") as server:
        done = modeld("load", "alpha", "--url", server.url)
    assert (done.code, done.out) == (3, "")
    said = f"modeld: nothing answers at {server.url} (from --url): the connection broke: "
    assert done.err.splitlines()[-1].startswith(said)
    assert server.path == "/operations/1?wait=250ms"
