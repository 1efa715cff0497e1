# SPDX-License-Identifier: GPL-3.0-only
"""What is remembered of footprints between runs: dry runs, and what loads have taught. A file in `state_dir`.

It is a convenience: what cannot be read or written is told once, and never stops anything.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from importlib.metadata import version
from pathlib import Path

import msgspec
import structlog
from msgspec.structs import replace

from modeld.core.learned import Learned
from modeld.core.models import DryRun, ModelSpec
from modeld.engine.llama.footprint import repacked_types

FILE = "footprints.json"
MOST_ENTRIES = 1000
"""The oldest are forgotten beyond that."""
_MOST_BYTES = 16 << 20
_FORMAT = 1

_log = structlog.stdlib.get_logger("modeld.scales")


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one file with certain options."""

    model: str
    """Its id, for people who read the file."""
    run: DryRun | None = None
    learned: Learned | None = None


class _File(msgspec.Struct, frozen=True, kw_only=True):
    format: int = _FORMAT
    entries: dict[str, Entry] = {}


class Book:
    """The entries, in the order of their last change. `load` and `save` block on the disk."""

    def __init__(self, folder: Path | None) -> None:
        """`folder`: None remembers nothing."""
        self._path = None if folder is None else folder.expanduser() / FILE
        self._entries: dict[str, Entry] = {}
        self._told = False
        engine = version("llama-cpp-python")
        self._machine = f"{engine} {','.join(sorted(repacked_types()))}"

    def key(self, spec: ModelSpec) -> str:
        """Return what stands for this file with these options, on this machine."""
        options = replace(spec.options, threads=0)  # They come and go with the load of the machine.
        facts = (spec.path, spec.size_bytes, spec.modified_ns, options, self._machine)
        return hashlib.sha256(msgspec.json.encode(facts)).hexdigest()[:32]

    def find(self, key: str) -> Entry | None:
        """Return what is known."""
        return self._entries.get(key)

    def put(self, key: str, entry: Entry) -> None:
        """Remember; `save` makes it last."""
        self._entries.pop(key, None)
        self._entries[key] = entry
        while len(self._entries) > MOST_ENTRIES:
            del self._entries[next(iter(self._entries))]

    def load(self) -> None:
        """Read the file. A file that cannot be used is ignored, with a warning."""
        if self._path is None:
            return
        try:
            self._entries = _read(self._path)
        except FileNotFoundError:
            return
        except (OSError, ValueError, RecursionError) as error:
            _log.warning("what was learned of footprints is ignored", file=str(self._path), reason=str(error))

    def frozen(self) -> bytes:
        """Return what `save` is to write."""
        return msgspec.json.format(msgspec.json.encode(_File(entries=self._entries)), indent=1)

    def save(self, content: bytes) -> None:
        """Write the file as a whole: a reader sees the old one or the new one. Never raises."""
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{FILE}.")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                Path(name).replace(self._path)
            except BaseException:  # whatever it is: no half-written file stays
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            if not self._told:
                self._told = True
                reason = error.strerror or str(error)
                _log.warning(
                    "what is learned of footprints cannot be kept", file=str(self._path), reason=reason
                )


def _read(path: Path) -> dict[str, Entry]:
    """Return the entries of a file. Raises: OSError, ValueError."""
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES >> 20} MiB")
    found = msgspec.json.decode(path.read_bytes(), type=_File)
    if found.format != _FORMAT:
        raise ValueError(f"its format is {found.format}, and {_FORMAT} is known here")
    return dict(list(found.entries.items())[-MOST_ENTRIES:])
