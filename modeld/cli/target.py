# SPDX-License-Identifier: GPL-3.0-only
"""Options of client commands: the daemon's address, and the key to use.

The address comes from `--url`, else `--addr`, else `MODELD_ADDR`, else `addr` in the config file
(`--config`, `MODELD_CONFIG`), else the daemon's own default. The key comes from `--api-key-file`,
else `MODELD_API_KEY`, else the file that `MODELD_API_KEY_FILE` names; never from the command line,
which every user of the machine can read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar, cast
from urllib.parse import urlsplit

import click
import msgspec

from modeld.config.address import client_url, parse_address
from modeld.config.files import UnreadableConfig, read_config
from modeld.config.settings import SETTINGS
from modeld.config.values import BadValue

Words = TypeVar("Words", str | None, tuple[str, ...])
Command = TypeVar("Command", bound=Callable[..., object])

_LONGEST_KEY = 4096
_GIVEN = "modeld.cli.target"
_ADDR, _CONFIG = SETTINGS["addr"], SETTINGS["config"]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A daemon as its clients reach it."""

    url: str
    """Base URL without a slash at the end; for a Unix socket its host is only a name."""
    socket_path: str | None = None
    source: str = ""
    """Where the address comes from: `--addr`, `MODELD_ADDR`, a file; empty for the default."""
    key: str | None = None
    ca_file: str | None = None
    """Certificates that are trusted for https, instead of the system's."""

    @property
    def place(self) -> str:
        """How the daemon's place is told: host and port, a socket's path, or a whole URL."""
        if self.socket_path is not None:
            return f"unix:{self.socket_path}"
        return self.url if self.source == "--url" else self.url.removeprefix("http://")

    @property
    def told(self) -> str:
        """The place, and which setting named it."""
        return f"{self.place} (from {self.source})" if self.source else f"{self.place} (the default)"

    @property
    def headers(self) -> dict[str, str]:
        """What each request carries."""
        return {} if self.key is None else {"Authorization": f"Bearer {self.key}"}


def target_options(command: Command) -> Command:
    """Add `--addr`, `--url`, `--config` and `--api-key-file`; `current_target` reads them."""
    for flag, metavar, text in reversed(_OPTIONS):
        option = click.option(flag, metavar=metavar, help=text, expose_value=False, callback=_remember)
        command = option(command)
    return command


_OPTIONS = (
    (
        "--addr",
        "ADDR",
        f"Address of the daemon: host:port, unix:/path. [env: {_ADDR.env}; default: {_ADDR.shown_default}]",
    ),
    ("--url", "URL", "Its base URL, instead of an address."),
    (
        "--config",
        "FILE",
        f"The daemon's config; its addr counts where no address is given. [env: {_CONFIG.env}]",
    ),
    ("--ca-file", "FILE", "For https: trust these certificates, not the system's. [env: MODELD_CA_FILE]"),
    (
        "--api-key-file",
        "FILE",
        "Holds the API key. [env: MODELD_API_KEY_FILE; MODELD_API_KEY: the key itself]",
    ),
)


def _remember(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    given = cast("dict[str, str | None]", context.meta.setdefault(_GIVEN, {}))
    given[parameter.name or ""] = utf8(context, parameter, value)


def current_target(context: click.Context | None = None) -> Target:
    """Return the daemon that the running command was told to speak to; raises as `target_of`."""
    context = context or click.get_current_context()
    given = cast("dict[str, str | None]", context.meta.get(_GIVEN, {}))
    return target_of(
        addr=given.get("addr"),
        url=given.get("url"),
        config=given.get("config"),
        api_key_file=given.get("api_key_file"),
        ca_file=given.get("ca_file"),
    )


def target_of(
    *,
    addr: str | None,
    url: str | None,
    config: str | None = None,
    api_key_file: str | None = None,
    ca_file: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Target:
    """Return the daemon that the options, the environment and the config name.

    Raises:
      click.BadParameter: one of them is wrong; the message names it.
    """
    environ = os.environ if environ is None else environ
    key = _key(api_key_file, environ)
    ca_file = ca_file or environ.get("MODELD_CA_FILE") or None
    if url is not None:
        if not _is_base_url(url):
            raise click.BadParameter("write it as http://host:port", param_hint="--url")
        return Target(url=url.rstrip("/"), source="--url", key=key, ca_file=ca_file)
    text, source, tls = _address(addr, config, environ)
    try:
        address = parse_address(text)
    except BadValue as error:
        raise click.BadParameter(str(error), param_hint=source) from None
    if address.fd is not None:
        sentence = "a descriptor cannot be called; name the host and port with --addr"
        raise click.BadParameter(sentence, param_hint=source)
    if address.is_tcp and address.port == 0:
        sentence = f"{text} lets the daemon choose its port; name the one from its log with --addr"
        raise click.BadParameter(sentence, param_hint=source)
    url = client_url(address)
    if tls and address.is_tcp:
        url = "https" + url.removeprefix("http")
    return Target(url=url, socket_path=address.path, source=source, key=key, ca_file=ca_file)


def _address(addr: str | None, config: str | None, environ: Mapping[str, str]) -> tuple[str, str, bool]:
    """Return the address, where it is from, and whether TLS is spoken there, as far as that tells."""
    if addr:
        return addr, _ADDR.flag, False
    if given := environ.get(_ADDR.env, "").strip():
        return given, _ADDR.env, False
    name, hint = (config, _CONFIG.flag) if config else (environ.get(_CONFIG.env, ""), _CONFIG.env)
    if not name:
        return _ADDR.shown_default, "", False
    path = Path(name).expanduser()
    try:
        content = read_config(path)
    except UnreadableConfig as error:
        raise click.BadParameter(f"{path}: {error}", param_hint=hint) from None
    tls = bool(content.get("tls_cert"))
    if content.get("addr") is None:
        return _ADDR.shown_default, "", tls
    return str(content["addr"]), f"addr in {path}", tls


def _key(file: str | None, environ: Mapping[str, str]) -> str | None:
    given = environ.get("MODELD_API_KEY", "").strip()
    if file is None and given:
        return _checked(given, "MODELD_API_KEY")
    name, hint = (
        (file, "--api-key-file") if file else (environ.get("MODELD_API_KEY_FILE"), "MODELD_API_KEY_FILE")
    )
    if not name:
        return None
    path = Path(name).expanduser()
    try:
        with path.open("rb") as stream:
            text = stream.read(_LONGEST_KEY + 1).decode("ascii").strip()
    except OSError as error:
        raise click.BadParameter(
            f"{path} cannot be read: {(error.strerror or str(error)).lower()}", param_hint=hint
        ) from None
    except UnicodeDecodeError:
        raise click.BadParameter(f"{path} holds no key: it is no ASCII text", param_hint=hint) from None
    if not text:
        raise click.BadParameter(f"{path} is empty; it must hold the key", param_hint=hint)
    return _checked(text, hint)


def _checked(key: str, hint: str) -> str:
    """Return the key if a header can carry it; the message never shows it."""
    if len(key) > _LONGEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise click.BadParameter(
            f"this is no key: it must be one word of ASCII, at most {_LONGEST_KEY} characters",
            param_hint=hint,
        )
    return key


def _is_base_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def utf8(_: click.Context, __: click.Parameter, value: Words) -> Words:
    """Refuse what the shell passed in another encoding: JSON cannot carry it."""
    for word in (value,) if isinstance(value, str) else value or ():
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise click.BadParameter(
                f"it is not UTF-8: character {error.start + 1} cannot be decoded; "
                "convert it, or set the locale to UTF-8"
            ) from None
    return value
