# SPDX-License-Identifier: GPL-3.0-only
"""Check, before the daemon starts, what would keep it from serving.

Each check is a function of the settings (and of facts handed in) that returns `Ok` or `NotOk`.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from modeld.config.address import Address, every_interface, parse_address
from modeld.config.load import LoadedSettings
from modeld.config.machine import memory_bytes
from modeld.config.settings import Settings
from modeld.config.values import did_you_mean
from modeld.domain.model import MIB, Catalog, EngineKind
from modeld.engine.fake_script import parse_script
from modeld.http.server.tls import BadTls, Tls
from modeld.runtime.catalog.adapters import adapter_problems
from modeld.runtime.catalog.scan import Scanner, ScanResult
from modeld.runtime.systemd import listen_binds
from modeld.telemetry.log import printable

# ----------------------------------------------------------------------
# What a check of the preflight finds.


class Ok(msgspec.Struct, frozen=True):
    """The check passed; `note` tells what is worth knowing all the same."""

    note: str = ""


class NotOk(msgspec.Struct, frozen=True):
    """The check failed: why, and what to do."""

    why: str


Verdict = Ok | NotOk


def reason_of(error: OSError) -> str:
    """Return the system's words for an error."""
    return (error.strerror or str(error)).lower()


# ----------------------------------------------------------------------
# Checks of the preflight: can the daemon listen where it is told to.


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


# ----------------------------------------------------------------------

_LIBRARY_TIMEOUT_S = 60.0
_PROBE = (
    "import llama_cpp; llama_cpp.llama_backend_init(); "
    "print('gpu' if llama_cpp.llama_supports_gpu_offload() else 'cpu')"
)


def run_preflight(loaded: LoadedSettings, tell: Callable[[str], None]) -> bool:
    """Run all checks, `tell` one line for each, whatever files are called; return whether all passed."""
    passed = True
    for name, verdict in _checks(loaded):
        match verdict:
            case Ok(note=note):
                tell(f"[preflight] {name}: OK" + (f" ({printable(note)})" if note else ""))
            case NotOk(why=why):
                passed = False
                tell(f"[preflight] {name}: NOT OK - {printable(why)}")
    return passed


def _checks(loaded: LoadedSettings) -> Iterator[tuple[str, Verdict]]:
    settings = loaded.settings
    folder = check_models_dir(settings.models_dir)
    yield "models_dir", folder
    if isinstance(folder, Ok):
        scan = Scanner(settings).scan()
        yield "models", check_models(scan, settings.models_dir)
        yield "default_model", check_default_model(settings.default_model, scan.catalog)
    if any(entry.lora for entry in settings.models.values()) and settings.engine is EngineKind.LLAMA:
        yield "lora", check_adapters(settings)
    gpu = False
    if settings.engine is EngineKind.FAKE:
        yield "fake", check_scripts(settings)
    else:
        library = check_library()
        gpu = isinstance(library, Ok) and library.note == "gpu"
        yield "llama_cpp", library
        yield "memory", check_memory(settings, memory_bytes(), gpu=gpu)
    yield "addr", check_addresses(listen_binds(os.environ) or (settings.addr,))
    if settings.tls_cert is not None and settings.tls_key is not None:
        yield "tls", check_tls(settings.tls_cert, settings.tls_key)
    yield "state_dir", check_state_dir(settings.state_dir, required="state_dir" in loaded.sources)
    if settings.events_enable and settings.events_file is not None:
        yield "events_file", check_events_file(settings.events_file, rotated=settings.events_max_bytes > 0)


def check_models_dir(folder: Path) -> Verdict:
    """The folder of the models must be there and readable."""
    try:
        with os.scandir(folder) as entries:
            next(entries, None)
    except FileNotFoundError:
        return NotOk(f"there is no folder {folder}; create it, or name another one with --models-dir")
    except NotADirectoryError:
        return NotOk(f"{folder} is no folder; name the folder that holds the *.gguf files")
    except OSError as error:
        return NotOk(f"{folder} cannot be read: {reason_of(error)}")
    return Ok()


def check_models(scan: ScanResult, folder: Path) -> Verdict:
    """No model at all is no reason not to start: new files are noticed while the daemon runs."""
    if scan.error is not None:
        return NotOk(scan.error)
    count = len(scan.catalog.models)
    damaged = [spec.id for spec in scan.catalog.models.values() if spec.error is not None]
    notes = [f"{count} model{'' if count == 1 else 's'}"] if count else []
    if not count:
        notes.append(f"none yet; put *.gguf files into {folder}, they are noticed without a restart")
    if damaged:
        notes.append(f"damaged: {_some(damaged)}")
    if scan.unmatched:
        notes.append(f"no file for these of models: {_some(scan.unmatched)}")
    return Ok("; ".join([*notes, *scan.problems[:3]]))


def check_adapters(settings: Settings) -> Verdict:
    """Each LoRA adapter that the settings name must be there, and be one."""
    problems = adapter_problems(settings)
    return NotOk("; ".join(problems[:3])) if problems else Ok()


def check_default_model(wanted: str | None, catalog: Catalog) -> Verdict:
    """A default model that is named must be there, by file name, stem or alias, and whole."""
    spec = catalog.find(wanted)
    if wanted is None:
        return Ok("none" if spec is None else spec.id)
    if spec is None:
        there = f"there are: {_some(tuple(catalog.models))}" if catalog.models else "the folder has no models"
        return NotOk(f'no model is called "{wanted}"{did_you_mean(wanted, catalog.names)} ({there})')
    if spec.error is not None:
        return NotOk(f"{spec.id} cannot be used: {spec.error}")
    return Ok(spec.id)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def check_library(python: str = sys.executable, probe: str = _PROBE) -> Verdict:
    """llama.cpp must load. In a process of its own: a library for another CPU dies of a signal."""
    try:
        done = subprocess.run(  # noqa: S603  # this interpreter runs a program from this file: nothing of the command is input
            [python, "-P", "-c", probe],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LIBRARY_TIMEOUT_S,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return NotOk(f"the library did not load within {_LIBRARY_TIMEOUT_S:.0f} s")
    except OSError as error:
        return NotOk(f"the probe could not be started: {reason_of(error)}")
    if done.returncode == 0:
        return Ok(done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "")
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        hint = "; it was built for another CPU" if -done.returncode == signal.SIGILL else ""
        return NotOk(f"the library died of {name}{hint}; build it again with ./tools/testctl install")
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return NotOk(f"the library does not load: {last[:300]}; install it with ./tools/testctl install")


def check_scripts(settings: Settings) -> Verdict:
    """The fake engine must understand its script, and those of single models."""
    scripts = {"": settings.fake} | {
        f" of {name}": model.fake for name, model in settings.models.items() if model.fake is not None
    }
    for owner, script in scripts.items():
        try:
            parse_script(script)
        except ValueError as error:
            where = "modeld/engine/fake_script.py"
            return NotOk(f"the script{owner} cannot be read: {error}; {where} lists its keys")
    return Ok()


def check_memory(settings: Settings, machine: int | None, *, gpu: bool) -> Verdict:
    """A budget larger than the machine could never be kept. `machine` is bytes, None is unknown."""
    budget = settings.vram_budget_mb
    if machine is None:
        return Ok("the system does not tell how much memory there is")
    has = machine // MIB
    if budget is None:
        return Ok(f"the machine has {has} MiB")
    if budget == 0:
        return Ok(f"no budget is set; the machine has {has} MiB")
    if gpu:
        return Ok(f"budget {budget} MiB; the devices' own memory is looked at when a model loads")
    if budget > has:
        return NotOk(
            f"the budget of {budget} MiB is more than the {has} MiB that this machine (or its cgroup) has; "
            f"set vram_budget_mb to at most {has}, or to auto"
        )
    return Ok(f"budget {budget} of {has} MiB")


def check_state_dir(folder: Path | None, *, required: bool) -> Verdict:
    """The state folder is made where it is missing. Only one that was asked for must work."""
    if folder is None:
        return Ok()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return Ok()
        reason = "this user may not write there"
    except OSError as error:
        reason = reason_of(error)
    if required:
        return NotOk(f"{folder}: {reason}; choose another folder with --state-dir")
    return Ok(f"nothing is kept between runs: {folder}: {reason}")


def check_events_file(path: Path, *, rotated: bool = False) -> Verdict:
    """The events file must be open to appending. A pipe may get its reader later."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY, 0o640)
    except OSError as error:
        if error.errno == errno.ENXIO and stat.S_ISFIFO(path.stat().st_mode):
            return Ok("it is a pipe, and nobody reads it yet")
        return NotOk(f"{path} cannot be written: {reason_of(error)}")
    plain = stat.S_ISREG(os.fstat(fd).st_mode)
    os.close(fd)
    folder = Path(os.path.realpath(path)).parent
    if plain and rotated and not os.access(folder, os.W_OK | os.X_OK):
        return Ok(f"it cannot be rotated, since this user may not write into {folder}: see events_max_bytes")
    return Ok()
