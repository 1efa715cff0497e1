# SPDX-License-Identifier: GPL-3.0-only
"""Parse the address to listen on: `:8080`, `host:port`, `[::1]:8080`, `fd://3`, `unix:/path`.

Owns how it is written, what Hypercorn's `bind` makes of it, and how a client reaches it.
"""

from __future__ import annotations

import ipaddress
import re
import socket

import msgspec

from modeld.config.values import BadValue, told

_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_.])?", re.ASCII)
_EVERY_IPV4 = str(ipaddress.IPv4Address(socket.INADDR_ANY))
"""Bound only where the setting says so: by this name, or by naming no host."""
_LONGEST_SOCKET_PATH = 107
"""Bytes of `sun_path` on Linux, less its end (unix(7))."""


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """TCP `host` and `port` (no host: every interface), or a socket `path`, or an inherited `fd`."""

    host: str = ""
    port: int = 0
    path: str | None = None
    fd: int | None = None

    @property
    def is_tcp(self) -> bool:
        """Whether this is a host and a port."""
        return self.path is None and self.fd is None

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it, as far as it is known: an `fd` may be anything."""
        try:
            return not self.is_tcp or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def parse_address(text: str) -> Address:
    """Return the address that `text` writes. Port 0 lets the system choose.

    Raises:
      BadValue: it writes none.
    """
    if not text:
        raise BadValue("it is empty; write :8080, 127.0.0.1:8080 or [::1]:8080")
    if text.startswith("fd://"):
        number = text.removeprefix("fd://")
        if not re.fullmatch(r"\d{1,9}", number, re.ASCII):
            raise BadValue(f"{told(text)} names no file descriptor; write fd://3")
        return Address(fd=int(number))
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if path.startswith("//"):
            path = path.removeprefix("//")
        if not path.startswith("/") or len(path.encode()) > _LONGEST_SOCKET_PATH:
            raise BadValue(
                f"{told(text)}: the path must begin with / and have at most {_LONGEST_SOCKET_PATH} bytes"
            )
        return Address(path=path)
    if "://" in text:
        raise BadValue(f"{told(text)} is a URL; write only host:port")
    if re.fullmatch(r"\d{1,5}", text, re.ASCII):
        raise BadValue(f"{told(text)} has no host; write :{text} for every interface, or 127.0.0.1:{text}")
    host, colon, port = text.rpartition(":")
    if not colon:
        raise BadValue(f"{told(text)} has no port; write {text}:8080")
    return Address(host=_host(host, text), port=_port(port, text))


def _port(port: str, text: str) -> int:
    if not re.fullmatch(r"\d{1,5}", port, re.ASCII) or int(port) > 65535:
        raise BadValue(f"{told(text)} has a bad port; it must be a number from 0 to 65535")
    return int(port)


def _host(host: str, text: str) -> str:
    if host in {"", "*"}:
        return ""
    if host.startswith("[") and host.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            raise BadValue(f"{told(text)} has no IPv6 address between the brackets") from None
    if ":" in host:
        raise BadValue(f"{told(text)}: put the IPv6 address in brackets, as in [::1]:8080")
    if re.fullmatch(r"[\d.]+", host, re.ASCII):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise BadValue(f"{told(text)} has no valid IPv4 address") from None
    if not _HOST.fullmatch(host):
        raise BadValue(f"{told(text)} has no valid host name")
    return host


def hypercorn_binds(addr: str) -> list[str]:
    """Return what to set as Hypercorn's `bind` for the setting `addr`.

    Every interface is one IPv6 socket that takes IPv4 too where the machine has such, else IPv4.

    Raises:
      BadValue: `addr` is no address.
    """
    address = parse_address(addr)
    if address.fd is not None:
        return [f"fd://{address.fd}"]
    if address.path is not None:
        return [f"unix:{address.path}"]
    if address.host:
        return [_joined(address.host, address.port)]
    return [_joined(every_interface(), address.port)]


def every_interface() -> str:
    """Return the host to bind for an address that names none, such as `:8080`."""
    return "::" if has_dual_stack() else _EVERY_IPV4


def has_dual_stack() -> bool:
    """Tell whether a plain IPv6 socket of this machine serves IPv4 clients as well."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
            return probe.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 0
    except OSError:
        return False


def client_url(address: Address) -> str:
    """Return the base URL a client on this machine uses; for a socket path the host is only a name."""
    if not address.is_tcp:
        return "http://localhost"
    host = "127.0.0.1" if address.host in {"", _EVERY_IPV4} else address.host
    return "http://" + _joined("::1" if host == "::" else host, address.port)


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
