# SPDX-License-Identifier: GPL-3.0-only
"""Which daemon a client command speaks to, and with which key."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from modeld.cli.target import Target, target_of


def where(environ: dict[str, str] | None = None, **given: str) -> Target:
    options = {"addr": None, "url": None, "config": None, "api_key_file": None} | given
    return target_of(**options, environ=environ or {})


def refusal(environ: dict[str, str] | None = None, **given: str) -> str:
    with pytest.raises(click.BadParameter) as caught:
        where(environ, **given)
    return caught.value.format_message()


def test_the_strongest_place_wins(tmp_path: Path) -> None:
    """URL, then flag, then variable, then config file, then the daemon's default."""
    config = tmp_path / "modeld.yaml"
    config.write_text('addr: ":7001"\nvram_budget_mb: not a number\n', encoding="utf-8")
    environ = {"MODELD_CONFIG": str(config)}
    assert where().url == "http://127.0.0.1:8080"
    assert where(environ).url == "http://127.0.0.1:7001"
    assert where(config=str(config)).told == f"127.0.0.1:7001 (from addr in {config})"
    environ["MODELD_ADDR"] = "[::1]:7002"
    assert where(environ).told == "[::1]:7002 (from MODELD_ADDR)"
    assert where(environ, addr="box:7003").told == "box:7003 (from --addr)"
    far = where(environ, addr="box:7003", url="https://box/modeld/")
    assert (far.url, far.told) == ("https://box/modeld", "https://box/modeld (from --url)")


def test_a_socket_is_reached_by_its_path() -> None:
    """The URL of a Unix socket has a name only because HTTP wants one."""
    target = where(addr="unix:/run/modeld.sock")
    assert (target.socket_path, target.place) == ("/run/modeld.sock", "unix:/run/modeld.sock")


def test_a_config_without_an_address_means_the_default(tmp_path: Path) -> None:
    """It is the daemon's default, then."""
    config = tmp_path / "modeld.toml"
    config.write_text("", encoding="utf-8")
    assert where(config=str(config)).told == "127.0.0.1:8080 (the default)"


def test_what_cannot_be_called_is_named_with_its_place(tmp_path: Path) -> None:
    """Each refusal says which option, variable or file is wrong."""
    config = tmp_path / "modeld.yaml"
    config.write_text("addr: fd://3\n", encoding="utf-8")
    assert f"Invalid value for addr in {config}: a descriptor cannot be called" in refusal(config=str(config))
    assert "Invalid value for MODELD_ADDR: " in refusal({"MODELD_ADDR": "nonsense"})
    assert "lets the daemon choose its port" in refusal(addr=":0")
    assert "--url: write it as http://host:port" in refusal(url="box:8080")
    assert "MODELD_CONFIG: /nope.yaml: cannot be read" in refusal({"MODELD_CONFIG": "/nope.yaml"})


def test_a_key_is_never_on_the_command_line(tmp_path: Path) -> None:
    """It comes from a file, else from the environment, and travels in one header."""
    file = tmp_path / "key"
    file.write_text("sk-file\n", encoding="ascii")
    other = tmp_path / "other"
    other.write_text("sk-other", encoding="ascii")
    assert where().headers == {}
    environ = {"MODELD_API_KEY_FILE": str(other)}
    assert where(environ).headers == {"Authorization": "Bearer sk-other"}
    environ["MODELD_API_KEY"] = " sk-variable "
    assert where(environ).key == "sk-variable"
    assert where(environ, api_key_file=str(file)).key == "sk-file"


@pytest.mark.parametrize("content", [b"", b" \n", b"two words", b"caf\xe9", b"a\x00b", b"x" * 5000])
def test_a_file_without_a_key_is_refused(tmp_path: Path, content: bytes) -> None:
    """The message names the option, and shows nothing of the file."""
    file = tmp_path / "key"
    file.write_bytes(content)
    sentence = refusal(api_key_file=str(file))
    assert sentence.startswith("Invalid value for --api-key-file: ")
    assert "words" not in sentence
    assert "xxx" not in sentence


def test_a_key_file_that_is_not_there(tmp_path: Path) -> None:
    """The variable that names it is told."""
    gone = str(tmp_path / "gone")
    assert f"MODELD_API_KEY_FILE: {gone} cannot be read: no such file" in refusal(
        {"MODELD_API_KEY_FILE": gone}
    )
