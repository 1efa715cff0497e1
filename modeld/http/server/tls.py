# SPDX-License-Identifier: GPL-3.0-only
"""Build a TLS context from a certificate and key, and explain why that fails."""

from __future__ import annotations

import ssl
from pathlib import Path

from hypercorn.config import Config

from modeld.telemetry.log import get_logger

log = get_logger("modeld.http")


class BadTls(Exception):
    """The certificate and the key cannot be used; the message says why."""


class Tls:
    """The context of all connections. TLS 1.2 or newer; HTTP/1.1 is all that is spoken over it."""

    def __init__(self, cert: Path, key: Path) -> None:
        """Read both files. Raises: BadTls."""
        self._cert = cert
        self._key = key
        config = Config()
        config.certfile, config.keyfile = str(cert), str(key)
        config.keyfile_password = ""  # Or OpenSSL asks at the terminal for that of an encrypted key.
        config.alpn_protocols = ["http/1.1"]
        _look_at(cert, key)
        try:
            context = config.create_ssl_context()
        except (OSError, ValueError) as error:
            raise BadTls(_why(error, cert, key)) from None
        if context is None:
            raise BadTls("TLS takes a certificate and a key")
        context.options |= ssl.OP_NO_RENEGOTIATION
        self.context = context

    def reload(self) -> None:
        """Take the files as they are now for connections from now on; bad ones change nothing."""
        try:
            Tls(self._cert, self._key)  # The files are tried apart: a half-made change would stay.
            self.context.load_cert_chain(self._cert, self._key, password="")
        except (BadTls, OSError, ValueError) as error:
            problem = str(error)
        else:
            log.info("certificate read again", file=str(self._cert))
            return
        log.error("the certificate stays as it was: the files cannot be used", reason=problem)


def _look_at(cert: Path, key: Path) -> None:
    """Find what OpenSSL tells in no way that helps."""
    if "-----BEGIN CERTIFICATE-----" not in _text(cert):
        raise BadTls(f"{cert} is no PEM file with a certificate")
    text = _text(key)
    if "PRIVATE KEY-----" not in text:
        raise BadTls(f"{key} is no PEM file with a private key")
    if "ENCRYPTED" in text:
        raise BadTls(f"{key} has a passphrase; write it without one, readable by the daemon alone")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="latin-1")
    except OSError as error:
        raise BadTls(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from None


def _why(error: Exception, cert: Path, key: Path) -> str:
    reason = getattr(error, "reason", None) or str(error)
    if reason == "KEY_VALUES_MISMATCH":
        return f"{key} is not the key of the certificate in {cert}"
    return f"{cert} and {key} cannot be used: {reason}"
