# SPDX-License-Identifier: GPL-3.0-only
"""Addresses: how they are written, and what they become."""

import pytest

from modeld.config.address import Address, client_url, has_dual_stack, hypercorn_binds, parse_address
from modeld.config.values import BadValue


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":8080", Address(port=8080)),
        ("*:80", Address(port=80)),
        ("127.0.0.1:0", Address(host="127.0.0.1")),
        ("localhost:9000", Address(host="localhost", port=9000)),
        ("[::1]:8080", Address(host="::1", port=8080)),
        ("fd://3", Address(fd=3)),
        ("unix:/run/m.sock", Address(path="/run/m.sock")),
        ("unix:///run/m.sock", Address(path="/run/m.sock")),
    ],
)
def test_every_form_is_read(text: str, address: Address) -> None:
    """TCP on one or all interfaces, IPv6 in brackets, sockets by path and by descriptor."""
    assert parse_address(text) == address


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "empty"),
        ("8080", ":8080 for every interface"),
        ("localhost", "localhost:8080"),
        (":http", "0 to 65535"),
        (":99999", "0 to 65535"),
        (":-1", "0 to 65535"),
        ("::1:8080", "brackets"),
        ("[::zz]:80", "brackets"),
        ("300.1.1.1:80", "IPv4"),
        ("a b:80", "host name"),
        ("http://x:80", "URL"),
        ("fd://x", "fd://3"),
        ("unix:relative", "begin with /"),
        ("unix:/" + "x" * 120, "107 bytes"),
    ],
)
def test_a_bad_address_says_what_to_write(text: str, hint: str) -> None:
    """Each mistake is told with the right way to write it."""
    with pytest.raises(BadValue, match=hint):
        parse_address(text)


def test_what_hypercorn_binds() -> None:
    """One bind string each; every interface is one socket where IPv6 serves both."""
    assert hypercorn_binds("[::1]:8080") == ["[::1]:8080"]
    assert hypercorn_binds("127.0.0.1:80") == ["127.0.0.1:80"]
    assert hypercorn_binds("fd://3") == ["fd://3"]
    assert hypercorn_binds("unix:/run/m.sock") == ["unix:/run/m.sock"]
    assert hypercorn_binds(":8080") == ["[::]:8080" if has_dual_stack() else "0.0.0.0:8080"]


def test_how_a_client_reaches_it() -> None:
    """A client goes to the loopback address of a daemon that listens everywhere."""
    assert client_url(parse_address(":8080")) == "http://127.0.0.1:8080"
    assert client_url(parse_address("[::]:1")) == "http://[::1]:1"
    assert client_url(parse_address("box:1")) == "http://box:1"
    assert client_url(parse_address("unix:/x")) == "http://localhost"


def test_an_address_tells_whether_only_this_machine_reaches_it() -> None:
    """Loopback in both families and sockets in the file system; other names are not known."""
    for local in ("127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1", "unix:/x", "fd://3"):
        assert parse_address(local).is_local, local
    for reached in (":1", "0.0.0.0:1", "[::]:1", "192.168.1.5:1", "gpubox.lan:1"):
        assert not parse_address(reached).is_local, reached
