# SPDX-License-Identifier: GPL-3.0-only
"""Set up the virtual environment from the lock files, and write the lock files from pyproject.toml."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
from pathlib import Path

from testctl_lib.llama_build import Recipe, ensure_wheel, recipe
from testctl_lib.models import ensure_models
from testctl_lib.packages import ensure_venv, pip, python_of, remove_unlocked
from testctl_lib.paths import DEV_LOCK, LOCK, ROOT, STAMP, VENV, Command, cache, locked
from testctl_lib.steps import ToolError, run_step
from testctl_lib.terminal import say


def stamp_facts(how: Recipe) -> dict[str, str]:
    """Return what the virtual environment is made from; equal facts mean that nothing is to be done."""
    digest = hashlib.sha256()
    for path in (LOCK, DEV_LOCK, ROOT / "pyproject.toml"):
        digest.update(path.read_bytes())
    return {"backend": how.backend, "wheel": how.key, "files": digest.hexdigest(), "root": str(ROOT)}


def stamp() -> dict[str, str]:
    """Return the facts that the virtual environment was made from, or nothing."""
    with contextlib.suppress(OSError, ValueError):
        facts: dict[str, str] = json.loads(STAMP.read_text())
        return facts
    return {}


def ensure_installed(backend: str | None = None) -> Recipe:
    """Set up `.venv` with everything that is locked; does nothing when it is up to date.

    Args:
      backend: None keeps the one that was installed last, at first `cpu`.
    """
    if not LOCK.exists() or not DEV_LOCK.exists():
        raise ToolError("the lock files are missing; run: tools/testctl lock")
    how = recipe(backend or stamp().get("backend", "cpu"))
    with locked("venv-" + hashlib.sha256(str(ROOT).encode()).hexdigest()[:12]):
        facts = stamp_facts(how)
        if facts == stamp() and python_of(VENV).exists():
            return how
        ensure_venv(VENV)
        before = stamp()
        wheel = ensure_wheel(how)
        # Bytecode is written when a module is first used: that saves a quarter of the time here.
        install = ("install", "-q", "--no-compile")
        if before.get("wheel") != how.key:
            pip("install llama-cpp-python", VENV, *install, "--no-deps", "--force-reinstall", wheel)
        pip("install what is locked", VENV, *install, "--require-hashes", "-r", DEV_LOCK)
        remove_unlocked(VENV, DEV_LOCK)
        pip("install modeld", VENV, *install, "--no-deps", "--no-build-isolation", "-e", ROOT)
        STAMP.write_text(json.dumps(facts, indent=2) + "\n")
    return how


def ensure_ready() -> dict[str, str]:
    """Set up `.venv` and the test models; return the environment in which tests and measurements run."""
    return {**os.environ, "MODELD_TEST_MODELS": str(ensure_models(ensure_installed()))}


def install(arguments: argparse.Namespace) -> int:
    """Set up, or build an installation for production; see `testctl install --help`."""
    how = ensure_installed(arguments.backend)
    ensure_models(how)
    if arguments.into is None:
        say(f"ok {VENV} is ready; try: .venv/bin/modeld --help")
        return 0
    target = Path(arguments.into).expanduser().absolute()
    ensure_venv(target)
    words = ("install", "-q")
    pip("install llama-cpp-python", target, *words, "--no-deps", "--force-reinstall", ensure_wheel(how))
    pip("install what is locked", target, *words, "--require-hashes", "-r", LOCK)
    pip("install modeld", target, *words, "--no-deps", "--force-reinstall", ROOT)
    say(f"ok {target / 'bin' / 'modeld'} is ready")
    interpreter = python_of(target).resolve()
    if interpreter.parts[1] in {"root", "home"}:
        say(f"   its Python is {interpreter}, which the service of contrib/systemd cannot read;")
        say("   remove the folder and call testctl with a Python of the system, such as /usr/bin/python3")
    return 0


def lock(arguments: argparse.Namespace) -> int:
    """Write the lock files from pyproject.toml; see `testctl lock --help`."""
    venv = cache("tools") / "uv"
    ensure_venv(venv)
    uv = venv / "bin" / "uv"
    if not uv.exists():
        pip("install uv", venv, "install", "-q", "uv")
    env = dict(os.environ)
    if "PIP_CERT" in env:
        env.setdefault("SSL_CERT_FILE", env["PIP_CERT"])
    common: Command = [uv, "pip", "compile", "--universal", "--generate-hashes", "--no-header"]
    common += ["--no-emit-index-url", "--python-version", "3.11", "--quiet", "pyproject.toml"]
    if arguments.upgrade:
        common.append("--upgrade")
    for target, extra in ((LOCK, ()), (DEV_LOCK, ("--group", "dev", "-c", LOCK.name))):
        run_step(f"lock {target.name}", [*common, *extra, "-o", target.name], env=env)
    return 0
