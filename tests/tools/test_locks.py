# SPDX-License-Identifier: GPL-3.0-only
"""The lock files fit pyproject.toml, and the checkout's own files keep to the project's rules."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RUNTIME = PROJECT["project"]["dependencies"]
DEVELOPMENT = PROJECT["dependency-groups"]["dev"]


def pins(name: str) -> dict[str, set[str]]:
    """Return the versions that a lock file pins, by name: two where Python's version decides."""
    found: dict[str, set[str]] = {}
    for package, version in re.findall(
        r"(?m)^([a-z0-9._-]+)(?:\[[^]]*\])?==([^ ;]+)", (ROOT / name).read_text()
    ):
        found.setdefault(canonicalize_name(package), set()).add(version)
    return found


@pytest.mark.parametrize(
    ("lock", "dependencies"),
    [("requirements.lock", RUNTIME), ("requirements-dev.lock", RUNTIME + DEVELOPMENT)],
)
def test_the_locks_fit_what_is_asked_for(lock: str, dependencies: list[str]) -> None:
    """Each dependency is pinned to a version its range allows; `testctl lock` mends it when not."""
    locked = pins(lock)
    for text in dependencies:
        requirement = Requirement(text)
        versions = locked.get(canonicalize_name(requirement.name), set())
        assert versions, f"{requirement.name} is not in {lock}: run tools/testctl lock"
        assert any(requirement.specifier.contains(version) for version in versions), (text, versions)


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_every_pin_has_hashes_and_no_address(lock: str) -> None:
    """What is installed is what was locked, from whatever mirror a machine uses."""
    text = (ROOT / lock).read_text()
    assert "://" not in text
    for block in re.split(r"(?m)^(?=\S+==)", text)[1:]:
        assert "--hash=sha256:" in block, block


def test_both_locks_agree() -> None:
    """Tests run with the versions that are deployed."""
    runtime, development = pins("requirements.lock"), pins("requirements-dev.lock")
    assert {name: development.get(name) for name in runtime} == runtime


@pytest.mark.process
def test_every_source_file_names_its_licence() -> None:
    """The header check of `testctl lint` finds nothing."""
    command = [sys.executable, ROOT / "tools" / "testctl", "headers"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_ci_is_the_same_everywhere() -> None:
    """The workflow runs .ci/run, which runs testctl; both are executable."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert [step["run"] for step in workflow["jobs"]["test"]["steps"] if "run" in step] == [".ci/run"]
    assert "./tools/testctl test" in (ROOT / ".ci/run").read_text()
    for program in (".ci/run", "tools/testctl"):
        assert (ROOT / program).stat().st_mode & 0o111
