# SPDX-License-Identifier: GPL-3.0-only
"""The units in contrib/systemd: systemd understands every line, and the service is locked down."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from modeld.config.settings import Settings

pytestmark = pytest.mark.process

UNITS = Path(__file__).resolve().parents[2] / "contrib" / "systemd"
EXPOSURE_LIMIT = 2.0

CALLBACK_WITHOUT_WRITABLE_CODE = """
import ctypes, mmap, sys
libc = ctypes.CDLL(None, use_errno=True)
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
if libc.prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) != 0:
    sys.exit(77)
try:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    sys.exit("the kernel gave writable code, so this proves nothing")
except PermissionError:
    pass
pointer = ctypes.POINTER(ctypes.c_int)
compare = ctypes.CFUNCTYPE(ctypes.c_int, pointer, pointer)(lambda a, b: a[0] - b[0])
numbers = (ctypes.c_int * 3)(3, 1, 2)
libc.qsort(numbers, 3, 4, compare)
assert list(numbers) == [1, 2, 3]
import llama_cpp
llama_cpp.llama_backend_init()
"""


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """A folder with the units, whose program is one that exists on every machine."""
    for name in ("modeld.service", "modeld.socket"):
        text = (UNITS / name).read_text()
        (tmp_path / name).write_text(re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", text))
    return tmp_path


def analyze(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        if "CI" in os.environ:
            pytest.fail("no systemd-analyze: run the tests through tools/testctl test, which brings one")
        pytest.skip("no systemd-analyze on this system")
    env = {**os.environ, "SYSTEMD_UNIT_PATH": f"{folder}:", "SYSTEMD_COLORS": "0", "LC_ALL": "C.UTF-8"}
    return subprocess.run([program, *arguments], env=env, capture_output=True, text=True, check=False)


def exposure(folder: Path) -> float:
    done = analyze(folder, "security", "--offline=true", "--no-pager", str(folder / "modeld.service"))
    found = re.search(r"Overall exposure level for modeld\.service: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    return float(found.group(1))


def add_gpu(folder: Path) -> None:
    drop_in = folder / "modeld.service.d"
    drop_in.mkdir()
    shutil.copy(UNITS / "gpu.conf", drop_in)


@pytest.mark.parametrize("gpu", [False, True])
def test_systemd_accepts_every_line(units: Path, gpu: bool) -> None:
    """`systemd-analyze verify` says nothing at all, with and without the GPU drop-in."""
    if gpu:
        add_gpu(units)
    done = analyze(units, "verify", "--man=no", str(units / "modeld.service"), str(units / "modeld.socket"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_service_is_exposed_to_little(units: Path) -> None:
    """`systemd-analyze security` rates the service 2.0 or better."""
    assert exposure(units) <= EXPOSURE_LIMIT


def test_a_gpu_opens_devices_and_little_else(units: Path) -> None:
    """The drop-in applies, and leaves the service within the limit."""
    before = exposure(units)
    add_gpu(units)
    assert before < exposure(units) <= EXPOSURE_LIMIT


def test_the_daemon_works_without_writable_code() -> None:
    """Callbacks from C into Python work under the rule that MemoryDenyWriteExecute=yes sets."""
    done = subprocess.run(
        [sys.executable, "-c", CALLBACK_WITHOUT_WRITABLE_CODE], capture_output=True, text=True, check=False
    )
    if done.returncode == 77:
        pytest.skip("this kernel has no PR_SET_MDWE (Linux 6.3)")
    assert done.returncode == 0, done.stderr


def test_the_unit_waits_longer_than_the_daemon_takes_to_stop() -> None:
    """TimeoutStopSec and WatchdogSec leave room for the daemon's own deadlines."""
    unit = dict(
        re.findall(r"(?m)^(TimeoutStopSec|WatchdogSec)=(\d+)$", (UNITS / "modeld.service").read_text())
    )
    assert int(unit["TimeoutStopSec"]) > Settings().shutdown_timeout + 1
    assert int(unit["WatchdogSec"]) > Settings().stall_timeout


def test_the_example_settings_exist() -> None:
    """Every key of the example configuration is a setting."""
    keys = yaml.safe_load((UNITS / "modeld.yaml").read_text())
    assert set(keys) <= set(Settings.__struct_fields__)
