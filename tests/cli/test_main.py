# SPDX-License-Identifier: GPL-3.0-only
"""The command line: help, version, check-config, and how flags are read."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import modeld as package
from modeld.cli.main import modeld
from modeld.config.settings import LEGACY, SETTINGS

FIXTURES = Path(__file__).parents[1] / "config" / "fixtures"


def invoke(*args: str, **environ: str) -> Result:
    return CliRunner(env={"MODELD_ADDR": "", **environ}).invoke(modeld, list(args), prog_name="modeld")


def test_help_names_the_commands_and_the_way_settings_work() -> None:
    """`modeld --help` shows what there is to do, with examples."""
    result = invoke("--help")
    assert result.exit_code == 0
    for word in ("serve", "run", "check-config", "MODELD_VRAM_BUDGET_MB", "--version"):
        assert word in result.stdout


def test_version() -> None:
    """`modeld --version` tells the version of the package."""
    assert invoke("--version").stdout.startswith(f"modeld {package.__version__} (Python ")


def test_serve_help_lists_every_setting_with_its_default() -> None:
    """Each flag is there; those of the Go program that do nothing any more are not."""
    text = invoke("serve", "--help").stdout
    for setting in SETTINGS.values():
        assert f"  {setting.flag}" in text
    for name in LEGACY:
        assert "--" + name.replace("_", "-") not in text
    for word in ("--cors-origins", "[default: 30s]", "Memory:", "llama.cpp:"):
        assert word in text


def test_a_key_for_the_client_commands_is_no_setting() -> None:
    """An operator's shell may have one, and start a daemon all the same, without a warning."""
    result = invoke("check-config", MODELD_API_KEY="sk-1", MODELD_API_KEY_FILE="/nowhere")
    assert (result.exit_code, result.stderr) == (0, "")


def test_check_config_tells_values_and_their_places(tmp_path: Path) -> None:
    """What differs from the defaults is listed with where it comes from."""
    file = tmp_path / "modeld.toml"
    file.write_text("vram_budget_mb = 2000\n[models.tiny]\npinned = true\nttl = '5m'\n", encoding="utf-8")
    result = invoke(
        "check-config", "--config", str(file), "--cors-origins=*", "--cors-enabled", "--log-level", "debug",
        MODELD_VRAM_MARGIN_MB="500",
    )  # fmt: skip
    assert (result.exit_code, result.stderr) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line.startswith("  ")}
    assert rows["vram_budget_mb"] == ["2000", str(file)]
    assert rows["vram_margin_mb"] == ["500", "MODELD_VRAM_MARGIN_MB"]
    assert rows["log_level"] == ["debug", "--log-level"]
    assert "memory for models: 1500 MiB" in result.stdout
    assert "    ttl: 5m" in result.stdout
    assert "max_wait" not in result.stdout
    assert "max_wait" in invoke("check-config", "--all").stdout


def test_check_config_tells_who_may_come_in(tmp_path: Path) -> None:
    """With keys: which; without: by which names, and loudly where other machines reach it."""
    local = invoke("check-config", "--allowed-hosts", "gpubox.lan,*.example.com").stdout
    [line] = [line for line in local.splitlines() if line.startswith("access: ")]
    assert line.startswith("access: no keys; requests may name an address, or ")
    for name in ("localhost", socket.gethostname().lower(), "gpubox.lan", "*.example.com", "*.localhost"):
        assert f" {name}" in line
    assert (
        "access: NO KEYS, so any client that reaches :8080" in invoke("check-config", "--addr=:8080").stdout
    )
    assert "or * (allowed_hosts)" in invoke("check-config", "--addr=:8080", "--allowed-hosts=*").stdout
    keys = tmp_path / "keys.yaml"
    assert invoke("keys", "add", "me", "--keys-file", str(keys)).exit_code == 0
    found = invoke("check-config", "--addr=:8080", "--keys-file", str(keys)).stdout
    assert f"access: with a key of {keys}" in found


def test_check_config_tells_every_problem_and_exits_with_2(tmp_path: Path) -> None:
    """One line for each problem, on standard error."""
    file = tmp_path / "modeld.yaml"
    file.write_text("vram_budget: 1\nmax_wait: soon\n", encoding="utf-8")
    result = invoke("check-config", "--config", str(file), "--addr", "nowhere")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        f"modeld: {file}: vram_budget: unknown key; did you mean vram_budget_mb?",
        f'modeld: {file}: max_wait: "soon" is no duration; write it as 30s, 1m30s or 500ms',
        'modeld: --addr: "nowhere" has no port; write nowhere:8080',
    ]


@pytest.mark.parametrize("name", ["go.yaml", "go.json", "go.toml"])
def test_check_config_takes_files_of_the_go_program(name: str) -> None:
    """Its config files can be used as they are."""
    assert invoke("check-config", "--config", str(FIXTURES / name)).exit_code == 0


def test_flags_read_as_in_the_go_program() -> None:
    """One dash or two, a switch with or without a value, and flags that do nothing any more."""
    result = invoke(
        "check-config", "-addr=:9", "-models-dir", "/m", "--events-enable", "--llama-mmap=false",
        "-spawn-llama", "--llama-url", "http://x", "--real-infer=true",
    )  # fmt: skip
    assert result.exit_code == 0
    for row in (":9", "/m", "events_enable"):
        assert row in result.stdout
    warned = {line.split(": ")[2] for line in result.stderr.splitlines()}
    assert warned == {"--real-infer", "--spawn-llama", "--llama-url"}


def test_flags_alone_mean_serve() -> None:
    """`modeld --addr ...`, as the Go program was called, is `modeld serve --addr ...`."""
    result = invoke("--addr", "nowhere")
    assert result.exit_code == 2
    assert "--addr:" in result.stderr


def test_an_unknown_flag_names_the_nearest_one() -> None:
    """A typo in a flag exits with 2 and a suggestion."""
    result = invoke("serve", "--vram-budget", "5")
    assert result.exit_code == 2
    assert "--vram-budget-mb" in result.stderr


@pytest.mark.process
def test_help_into_a_closed_pipe_is_quiet() -> None:
    """`modeld serve --help | head -1` prints no traceback."""
    with subprocess.Popen(
        [sys.executable, "-m", "modeld", "serve", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
@pytest.mark.parametrize("args", [["--version"], ["serve", "--help"], ["check-config"]])
@pytest.mark.process
def test_output_onto_a_full_disk_is_a_sentence(args: list[str]) -> None:
    """`modeld ... > file` on a full disk says so in one line, and exits with 1."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "modeld", *args],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            timeout=60,
        )
    told = "modeld: the output cannot be written: no space left on device\n"
    assert (done.returncode, done.stderr.decode()) == (1, told)


@pytest.mark.process
def test_closed_standard_streams_are_filled() -> None:
    """Started without any of the three streams, a command works and ends as it should."""
    command = f"exec {sys.executable} -m modeld check-config --llama-slots 0 <&- >&- 2>&-"
    assert subprocess.run(["/bin/sh", "-c", command], check=False, timeout=60).returncode == 2
