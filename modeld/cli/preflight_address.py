# SPDX-License-Identifier: GPL-3.0-only
"""Checks of the preflight: can the daemon listen where it is told to."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Sequence
from pathlib import Path

from modeld.cli.verdict import NotOk, Ok, Verdict, reason_of
from modeld.config.address import Address, every_interface, parse_address
from modeld.http.tls import BadTls, Tls


def check_tls(cert: Path, key: Path) -> Verdict:
    """The certificate and its key must be there, and belong together."""
    try:
        Tls(cert, key)
    except BadTls as error:
        return NotOk(str(error))
    return Ok()


def check_addresses(addresses: Sequence[str]) -> Verdict:
    """Each address must be usable: what systemd passed, else the one of the settings."""
    verdicts = [check_address(parse_address(address)) for address in addresses]
    return next((verdict for verdict in verdicts if isinstance(verdict, NotOk)), verdicts[0])


def check_address(address: Address) -> Verdict:
    """The address must be free, and this process allowed to take it."""
    if address.fd is not None:
        return _check_descriptor(address.fd)
    if address.path is not None:
        return _check_socket_path(Path(address.path))
    host = address.host or every_interface()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, address.port))
            probe.listen(1)
    except socket.gaierror:
        return NotOk(f"the host {host} cannot be resolved to an address of this machine")
    except OSError as error:
        hints = {
            errno.EADDRINUSE: "another program listens there; stop it, or choose another address with --addr",
            errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE; choose another one with --addr",
            errno.EADDRNOTAVAIL: f"{host} is no address of this machine",
        }
        return NotOk(f"port {address.port}: {hints.get(error.errno or 0, reason_of(error))}")
    return Ok()


def _check_descriptor(fd: int) -> Verdict:
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return NotOk(f"file descriptor {fd} is no socket; fd:// needs one from systemd")
        with socket.socket(fileno=os.dup(fd)) as inherited:
            if not inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return NotOk(f"file descriptor {fd} does not listen; check ListenStream= of the socket unit")
    except OSError:
        return NotOk(f"there is no file descriptor {fd}; fd:// needs a socket from systemd")
    return Ok()


def _check_socket_path(path: Path) -> Verdict:
    if not os.access(path.parent, os.W_OK | os.X_OK):
        return NotOk(
            f"no socket can be made in {path.parent}; create the folder, or let this user write there"
        )
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            return NotOk(f"{path} is there and is no socket; remove it, or choose another path")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            probe.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        return Ok()
    except BlockingIOError:
        pass  # It has no place left to queue us, but it is there.
    except OSError as error:
        return NotOk(f"{path}: {reason_of(error)}")
    return NotOk(f"another program listens on {path}; stop it, or choose another path")
