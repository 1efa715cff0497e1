# SPDX-License-Identifier: GPL-3.0-only
"""Choose and load an engine. llama.cpp is imported only where it is used."""

from __future__ import annotations

from pathlib import Path

from modeld.domain.catalog import parse_split
from modeld.domain.model import MIB, EngineKind
from modeld.engine.fake import load as load_fake
from modeld.engine.protocol import Engine, LoadSpec, OnProgress
from modeld.errors import FileChanged

# ----------------------------------------------------------------------
# Whether a model's file is still the one that was looked at: its memory was planned for that one.

_AGAIN = "It is looked at again within seconds; if it is being copied, wait until that is done"


def check_file_unchanged(spec: LoadSpec) -> None:
    """Raise FileChanged if a part of the file is gone, or if size or time of modification are others.

    A spec that does not say what the file was like is not checked. What changes after this look is
    llama.cpp's to find, or ends the process that mapped it.
    """
    if not spec.size_bytes:
        return
    first = Path(spec.path)
    split = parse_split(first.name)
    names = [first.name] if split is None else [split.name_of(part + 1) for part in range(split.parts)]
    try:
        found = [first.with_name(name).stat() for name in names]
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise FileChanged(f"{spec.model_id} cannot be loaded: its file {spec.path}: {reason}") from None
    size = sum(info.st_size for info in found)
    if size != spec.size_bytes:
        change = "grew" if size > spec.size_bytes else "shrank"
        raise FileChanged(
            f"{spec.model_id} was not loaded: its file {change} from {spec.size_bytes / MIB:.1f} to "
            f"{size / MIB:.1f} MiB since it was last looked at. {_AGAIN}"
        )
    if max(info.st_mtime_ns for info in found) != spec.modified_ns:
        raise FileChanged(
            f"{spec.model_id} was not loaded: its file was replaced or written to since it was last looked "
            f"at. {_AGAIN}"
        )


# ----------------------------------------------------------------------


def load_engine(spec: LoadSpec, on_progress: OnProgress) -> Engine:
    """Load a model.

    Raises: LoadAborted when `on_progress` said so; ModelFailed when it cannot be loaded.
    """
    if spec.kind is EngineKind.FAKE:
        return load_fake(spec, on_progress)
    check_file_unchanged(spec)
    from modeld.engine.llama.engine import load  # noqa: PLC0415  # loads llama.cpp, 40 MiB and 0.2 s: a fake engine does without

    return load(spec, on_progress)
