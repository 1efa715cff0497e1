# SPDX-License-Identifier: GPL-3.0-only
"""Locate and check the LoRA adapters that the settings name.

Synchronous; blocks on the disk. A header is read again only when path, size, time of modification or inode
of the file changed; an error of the operating system is never remembered.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from modeld.config.model_settings import LoraSettings
from modeld.config.settings import Settings
from modeld.domain.model import Adapter
from modeld.engine.llama.gguf.adapter import AdapterFacts, adapter_facts, check_architecture
from modeld.engine.llama.gguf.facts import GgufError, read_header


class FileStamp(msgspec.Struct, frozen=True):
    """What tells one state of a file from another. Only the path: it cannot be looked at."""

    path: str
    size: int = 0
    modified_ns: int = 0
    inode: int = 0


class AdapterLook(msgspec.Struct, frozen=True):
    """What the adapters of one model are, and a sentence where they cannot be used.

    `refused`: the error is the operating system's, and may be gone next time though no file changed.
    """

    adapters: tuple[Adapter, ...] = ()
    error: str | None = None
    refused: bool = False


class AdapterFiles:
    """Looks at adapters again and again. Use it from one thread at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._known: dict[FileStamp, AdapterFacts | str] = {}

    def stamps(self) -> tuple[FileStamp, ...]:
        """Return the states of all adapters that the settings name, at the cost of a `stat` each."""
        paths = sorted({path for entry in self._settings.models.values() for path in self._paths(entry.lora)})
        found = tuple(map(_stamp, paths))
        self._known = {stamp: facts for stamp, facts in self._known.items() if stamp in found}
        return found

    def look(self, wanted: Sequence[LoraSettings], architecture: str | None) -> AdapterLook:
        """Look at the adapters of one model; `architecture` is its own, None where that is not known.

        All of them are returned in any case, so that they can be shown.
        """
        adapters: list[Adapter] = []
        errors: list[str] = []
        refused = False
        for setting, path in zip(wanted, self._paths(wanted), strict=True):
            stamp = _stamp(path)
            size = 0
            try:
                facts = self._facts(stamp)
                size = facts.bytes
                if architecture is not None:
                    check_architecture(facts, architecture)
            except GgufError as error:
                errors.append(f"its LoRA adapter {Path(path).name} cannot be used: {error}")
            except OSError as error:
                refused = True
                reason = (error.strerror or str(error)).lower()
                errors.append(f"its LoRA adapter {path} cannot be read: {reason}")
            adapters.append(
                Adapter(path=path, scale=setting.scale, bytes=size, modified_ns=stamp.modified_ns)
            )
        return AdapterLook(tuple(adapters), errors[0] if errors else None, refused)

    def _paths(self, wanted: Iterable[LoraSettings]) -> list[str]:
        """Where the adapters are. What is no UTF-8 is replaced (any message carries it), and not found."""
        folder = self._settings.models_dir.expanduser()
        return [os.fsencode(folder / setting.path).decode(errors="replace") for setting in wanted]

    def _facts(self, stamp: FileStamp) -> AdapterFacts:
        """Raises: GgufError, OSError."""
        known = self._known.get(stamp)
        if known is None:
            try:
                known = adapter_facts(read_header(Path(stamp.path)))
            except GgufError as error:
                known = str(error)
            self._known[stamp] = known
        if isinstance(known, str):
            raise GgufError(known)
        return known


def adapter_problems(settings: Settings) -> list[str]:
    """Return a sentence for each adapter that the settings name and that cannot be used.

    Whether it fits the model it is for shows only alongside that model's file.
    """
    files = AdapterFiles(settings)
    looks = [
        (name, files.look([setting], None))
        for name, entry in settings.models.items()
        for setting in entry.lora
    ]
    return [f"models.{name}: {look.error}" for name, look in looks if look.error is not None]


def _stamp(path: str) -> FileStamp:
    try:
        info = Path(path).stat()
    except (OSError, ValueError):
        return FileStamp(path)
    return FileStamp(path, info.st_size, info.st_mtime_ns, info.st_ino)
