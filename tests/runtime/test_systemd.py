# SPDX-License-Identifier: GPL-3.0-only
"""What reaches systemd, over a real datagram socket, and what is read from its environment."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from modeld.runtime.systemd import (
    Notifier,
    compose,
    feed_watchdog,
    listen_binds,
    notify_address,
    take_systemd_context,
    watchdog_interval,
)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The manager's end: a datagram socket with a path, that never makes a test wait."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.setblocking(False)
        yield receiver


@pytest.fixture
def notifier(manager: socket.socket) -> Iterator[Notifier]:
    sender = Notifier(manager.getsockname())
    yield sender
    sender.close()


def received(manager: socket.socket) -> list[bytes]:
    messages = []
    while True:
        try:
            messages.append(manager.recv(4096))
        except BlockingIOError:
            return messages


def test_each_message_arrives_as_systemd_spells_it(manager: socket.socket, notifier: Notifier) -> None:
    """READY, STATUS, WATCHDOG and STOPPING are one datagram each, in order."""
    assert notifier.ready("serving on 127.0.0.1:8080")
    assert notifier.status("2 models")
    assert notifier.watchdog()
    assert notifier.stopping()
    assert received(manager) == [
        b"READY=1\nSTATUS=serving on 127.0.0.1:8080",
        b"STATUS=2 models",
        b"WATCHDOG=1",
        b"STOPPING=1\nSTATUS=stopping",
    ]


def test_a_status_cannot_smuggle_in_another_field() -> None:
    """Line ends inside a value become spaces, so a model's error text stays a status."""
    assert compose(status="bad file\nSTOPPING=1\r\nx") == b"STATUS=bad file STOPPING=1 x"


def test_an_abstract_socket_is_reached() -> None:
    """`@name` is the abstract socket of that name."""
    name = f"modeld-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0{name}")
        receiver.setblocking(False)
        sender = Notifier(notify_address({"NOTIFY_SOCKET": f"@{name}"}))
        assert sender.watchdog()
        sender.close()
        assert received(receiver) == [b"WATCHDOG=1"]


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}])
def test_outside_systemd_nothing_happens(environ: dict[str, str]) -> None:
    """Without a local notify socket every call says it sent nothing."""
    sender = Notifier(notify_address(environ))
    assert not sender.enabled
    assert not sender.ready()
    sender.close()


def test_a_full_socket_neither_blocks_nor_raises(notifier: Notifier) -> None:
    """A manager that reads nothing costs the daemon its message, not its time."""
    for _ in range(10_000):
        if not notifier.watchdog():
            return
    pytest.fail("the socket never filled up, so this test proves nothing")


def test_a_manager_that_is_gone_does_not_raise(manager: socket.socket, notifier: Notifier) -> None:
    """A socket that was closed and unlinked makes messages fail quietly."""
    Path(manager.getsockname()).unlink()
    assert not notifier.ready()


def test_a_closed_notifier_is_silent(manager: socket.socket, notifier: Notifier) -> None:
    """After close nothing is sent and nothing breaks."""
    notifier.close()
    assert not notifier.status("late")
    assert received(manager) == []


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "77"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "78"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_pings_come_twice_as_often_as_asked(environ: dict[str, str], expected: float | None) -> None:
    """The interval is half of WATCHDOG_USEC, and only for the process it names."""
    assert watchdog_interval(environ, pid=77) == expected


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ()),
        ({"LISTEN_FDS": "1"}, ()),
        ({"LISTEN_FDS": "1", "LISTEN_PID": "77"}, ("fd://3",)),
        ({"LISTEN_FDS": "2", "LISTEN_PID": "77"}, ("fd://3", "fd://4")),
        ({"LISTEN_FDS": "1", "LISTEN_PID": "78"}, ()),
        ({"LISTEN_FDS": "-1", "LISTEN_PID": "77"}, ()),
    ],
)
def test_passed_sockets_become_binds(environ: dict[str, str], expected: tuple[str, ...]) -> None:
    """Sockets count from 3, and only when they are meant for this process."""
    assert listen_binds(environ, pid=77) == expected


def test_the_environment_is_taken_once(manager: socket.socket) -> None:
    """Children must not ping the watchdog or take the sockets: the variables are gone."""
    environ = {
        "NOTIFY_SOCKET": manager.getsockname(),
        "WATCHDOG_USEC": "10000000",
        "WATCHDOG_PID": str(os.getpid()),
        "LISTEN_FDNAMES": "http",
        "HOME": "/x",
    }
    supervision = take_systemd_context(environ)
    assert environ == {"HOME": "/x"}
    assert supervision.watchdog_s == 5.0
    assert supervision.binds == ()
    assert supervision.notifier.ready()
    supervision.notifier.close()
    assert take_systemd_context(environ).notifier.enabled is False


async def test_the_watchdog_is_fed_only_while_healthy(
    manager: socket.socket, notifier: Notifier, autojump_clock: trio.testing.MockClock
) -> None:
    """No progress, no ping; the reason is shown once, and pings return with progress."""
    assert autojump_clock.autojump_threshold == 0
    answers = iter([None, "the scheduler is silent for 31 s", "the scheduler is silent for 31 s", None])
    with trio.move_on_after(4 * 5.0 - 1):
        await feed_watchdog(notifier, 5.0, lambda: next(answers))
    assert received(manager) == [
        b"WATCHDOG=1",
        b"STATUS=no watchdog ping: the scheduler is silent for 31 s",
        b"WATCHDOG=1",
        b"STATUS=recovered",
    ]


ACTIVATED = """
import os, socket, subprocess, sys
from modeld.runtime.systemd import take_systemd_context
supervision = take_systemd_context(os.environ)
assert supervision.binds == ("fd://3",), supervision.binds
child = subprocess.run([sys.executable, "-c", "import os; os.fstat(3)"], close_fds=False, capture_output=True)
assert child.returncode != 0, "a child has inherited the socket"
connection, _ = socket.socket(fileno=3).accept()
connection.sendall(b"served")
"""


@pytest.mark.process
def test_a_socket_of_systemd_is_served_and_not_inherited() -> None:
    """A process started with a socket as systemd does it serves on it; its children do not have it."""
    shell = 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@" 3<&0 </dev/null'
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
    ):
        done = subprocess.run(
            ["/bin/sh", "-c", shell, "sh", sys.executable, "-c", ACTIVATED],
            stdin=listener.fileno(),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert client.recv(100) == b"served"
