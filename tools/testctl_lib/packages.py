# SPDX-License-Identifier: GPL-3.0-only
"""Make virtual environments, run pip in them, and read the pins of the lock files."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

from testctl_lib.paths import LOCK
from testctl_lib.steps import ToolError, run_step


def install_command(*packages: str) -> str:
    """Return the command that installs system packages on this machine."""
    if platform.system() == "Darwin":
        brew = {"build-essential": "xcode-select --install", "python3-venv": "brew install python@3.11"}
        return brew.get(packages[0], f"brew install {' '.join(packages)}")
    sudo = "" if os.geteuid() == 0 else "sudo "
    return f"{sudo}apt-get install -y --no-install-recommends {' '.join(packages)}"


def python_of(venv: Path) -> Path:
    """Return the interpreter of a virtual environment."""
    return venv / "bin" / "python"


def ensure_venv(venv: Path) -> None:
    """Make the virtual environment if it is missing, has no pip or an old Python."""
    check = [str(python_of(venv)), "-c", "import pip, sys; sys.exit(sys.version_info < (3, 11))"]
    if python_of(venv).exists() and subprocess.run(check, capture_output=True, check=False).returncode == 0:
        return
    try:
        run_step("make the virtual environment", [sys.executable, "-m", "venv", "--clear", venv])
    except ToolError as error:
        hint = f"\nIf Python's venv module is missing: {install_command('python3-venv')}"
        raise ToolError(f"{error}{hint}") from None


def pip_environment() -> dict[str, str]:
    """Return an environment in which pip asks nothing and says nothing about itself."""
    return {**os.environ, "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def pip(title: str, venv: Path, *words: str | Path, **variables: str) -> None:
    """Run pip in a virtual environment, with more environment variables if given. Raises: ToolError."""
    run_step(title, [python_of(venv), "-m", "pip", *words], env={**pip_environment(), **variables})


def remove_unlocked(venv: Path, lock: Path) -> None:
    """Uninstall every package that the lock file does not name, so that nothing depends on it unnoticed."""
    listing = subprocess.run(
        [python_of(venv), "-m", "pip", "list", "--format", "json", "--exclude-editable"],
        env=pip_environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    names = re.findall(r"^([A-Za-z0-9._-]+)", lock.read_text(), re.MULTILINE)
    known = {normalized(name) for name in (*names, "pip", "setuptools", "modeld")}
    installed = [package["name"] for package in json.loads(listing.stdout)]
    unlocked = [name for name in installed if normalized(name) not in known]
    if unlocked:
        pip(f"remove {', '.join(unlocked)}", venv, "uninstall", "-q", "-y", *unlocked)


def normalized(name: str) -> str:
    """Return a package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked_requirement(name: str, lock: Path = LOCK) -> str:
    """Return the lines of one requirement, with its hashes, from a lock file."""
    found = re.search(rf"^{re.escape(name)}==.*(?:(?<=\\)\n.*)*", lock.read_text(), re.MULTILINE)
    if found is None:
        raise ToolError(f"{lock.name} does not pin {name}; run: tools/testctl lock")
    return found.group() + "\n"


def locked_version(name: str, lock: Path = LOCK) -> str:
    """Return the version that a lock file pins."""
    return locked_requirement(name, lock).split("==", 1)[1].split()[0]
