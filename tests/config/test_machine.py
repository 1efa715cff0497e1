# SPDX-License-Identifier: GPL-3.0-only
"""What the machine has: read from a made-up /proc and /sys."""

from pathlib import Path

from modeld.config.machine import memory_bytes, memory_now, own_names, usable_cores


def put(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="ascii")


def test_this_machine_has_something() -> None:
    """The real files of this machine give at least a core and some memory."""
    assert usable_cores() >= 1
    assert (memory_bytes() or 0) > 2**20


def test_a_container_has_what_its_groups_leave(tmp_path: Path) -> None:
    """The tightest limit of the own cgroup and all its parents counts."""
    put(tmp_path, "proc/meminfo", "MemFree: 1 kB\nMemTotal:  8000000 kB\n")
    put(tmp_path, "proc/self/cgroup", "0::/system.slice/modeld.service\n")
    assert memory_bytes(tmp_path) == 8_000_000 * 1024
    put(tmp_path, "sys/fs/cgroup/system.slice/memory.max", "4000000000\n")
    put(tmp_path, "sys/fs/cgroup/system.slice/modeld.service/memory.max", "max\n")
    put(tmp_path, "sys/fs/cgroup/system.slice/modeld.service/cpu.max", "50000 100000\n")
    assert memory_bytes(tmp_path) == 4_000_000_000
    assert usable_cores(tmp_path) == 1


def test_an_old_cgroup_without_a_limit_is_none(tmp_path: Path) -> None:
    """Version 1 writes a huge number for "no limit"; a machine without any file tells nothing."""
    put(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert memory_bytes(tmp_path) is None
    put(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824\n")
    assert memory_bytes(tmp_path) == 2**30


def test_what_is_available_is_what_the_machine_and_all_groups_leave(tmp_path: Path) -> None:
    """Pages of files that a group is charged for could be taken back, so they count as available."""
    put(tmp_path, "proc/meminfo", "MemTotal: 8000000 kB\nMemAvailable: 6000000 kB\n")
    put(tmp_path, "proc/self/cgroup", "0::/system.slice/modeld.service\n")
    assert memory_now(tmp_path)[1] == 6_000_000 * 1024
    own = "sys/fs/cgroup/system.slice/modeld.service"
    put(tmp_path, f"{own}/memory.max", "4000000000\n")
    put(tmp_path, f"{own}/memory.current", "3000000000\n")
    assert memory_now(tmp_path)[1] == 1_000_000_000
    put(tmp_path, f"{own}/memory.stat", "anon 5\ninactive_file 200000000\nactive_file 50000000\nodd\n")
    assert memory_now(tmp_path)[1] == 1_250_000_000
    put(tmp_path, "sys/fs/cgroup/system.slice/memory.max", "5000000000\n")
    put(tmp_path, "sys/fs/cgroup/system.slice/memory.current", "6000000000\n")
    assert memory_now(tmp_path)[1] == 0, "a group over its limit leaves nothing, and not less"


def test_an_old_cgroup_tells_what_is_available_of_its_limit(tmp_path: Path) -> None:
    """Version 1 has other names, and those of its groups below are `total_`; no file tells nothing."""
    assert memory_now(tmp_path)[1] is None
    put(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", "1000\n")
    put(tmp_path, "sys/fs/cgroup/memory/memory.usage_in_bytes", "900\n")
    put(tmp_path, "sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 300\n")
    assert memory_now(tmp_path)[1] == 400


def test_a_machine_has_the_names_of_its_hosts_file(tmp_path: Path) -> None:
    """Those in the lines with its host name, and the name in multicast DNS; no other line counts."""
    assert own_names("", tmp_path) == set()
    assert own_names("GPUbox", tmp_path) == {"gpubox", "gpubox.local"}
    put(
        tmp_path,
        "etc/hosts",
        "127.0.0.1 localhost\n127.0.1.1\tgpubox.example.com GPUBOX # gpubox a\n10.0.0.9 b gpubox2\n\nx\n",
    )
    assert own_names("gpubox", tmp_path) == {"gpubox", "gpubox.local", "gpubox.example.com"}
    full = {"gpubox.example.com", "gpubox", "gpubox.local"}
    assert own_names("gpubox.example.com", tmp_path) == full
