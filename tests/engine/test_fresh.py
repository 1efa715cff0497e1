# SPDX-License-Identifier: GPL-3.0-only
"""A file that changed since it was looked at is not loaded, and the error says what happened to it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from modeld.engine.llama.native.library import LogCapture
from modeld.engine.llama.native.model import failure_of
from modeld.engine.load import check_file_unchanged
from modeld.engine.protocol import LoadSpec
from modeld.errors import ModelFailed, OutOfMemory


def looked_at(path: Path, *others: Path) -> LoadSpec:
    """A spec for the file as it is now."""
    infos = [each.stat() for each in (path, *others)]
    return LoadSpec(
        model_id=path.name,
        path=str(path),
        size_bytes=sum(info.st_size for info in infos),
        modified_ns=max(info.st_mtime_ns for info in infos),
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of 3 MiB."""
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(3 << 20))
    return path


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(bytes(3 << 20))
    os.utime(other, ns=(1, 1))
    other.replace(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: os.truncate(path, 5 << 20), "grew from 3.0 to 5.0 MiB"),
        (lambda path: os.truncate(path, 1 << 20), "shrank from 3.0 to 1.0 MiB"),
        (lambda path: path.unlink(), "no such file"),
        (replaced, "was replaced or written to"),
    ],
    ids=["grew", "shrank", "vanished", "replaced"],
)
def test_a_changed_file_is_told_by_what_happened_to_it(
    file: Path, change: Callable[[Path], None], words: str
) -> None:
    """Its memory was planned for the file that was looked at."""
    spec = looked_at(file)
    check_file_unchanged(spec)
    change(file)
    with pytest.raises(ModelFailed) as caught:
        check_file_unchanged(spec)
    assert words in caught.value.message
    assert "model.gguf" in caught.value.message


def test_all_parts_of_a_split_model_are_looked_at(tmp_path: Path) -> None:
    """The size is that of all, the time that of the newest."""
    parts = [tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    for part in parts:
        part.write_bytes(b"x" * 100)
    spec = looked_at(*parts)
    check_file_unchanged(spec)
    parts[1].write_bytes(b"x" * 90)
    with pytest.raises(ModelFailed, match="shrank"):
        check_file_unchanged(spec)


def complaint(spec: LoadSpec) -> str | None:
    try:
        check_file_unchanged(spec)
    except ModelFailed as error:
        return error.message
    return None


def test_a_file_of_which_nothing_is_known_is_not_compared(tmp_path: Path) -> None:
    """Whoever loads a file without a look at the folder takes it as it is."""
    assert complaint(LoadSpec(model_id="m", path=str(tmp_path / "none"))) is None
    assert complaint(LoadSpec(model_id="m", path=str(tmp_path / "none"), size_bytes=1)) is not None


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 99", OutOfMemory),
        (
            "ggml_backend_cuda: allocating 9 MiB: cudaMalloc failed: out of memory",
            OutOfMemory,
        ),
        ("ggml_vulkan: Device memory allocation failed: ErrorOutOfDeviceMemory", OutOfMemory),
        ("alloc_tensor_range: unable to allocate CPU buffer", OutOfMemory),
        ("llama_model_load: error loading model: check_tensor_dims: wrong shape", ModelFailed),
    ],
)
def test_memory_that_ran_out_is_known_by_llama_cpps_words(line: str, kind: type[ModelFailed]) -> None:
    """So that the load can be planned again with more."""
    log = LogCapture()
    log.lines.append((4, line))
    assert failure_of(log) is kind
