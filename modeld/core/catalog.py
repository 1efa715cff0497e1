# SPDX-License-Identifier: GPL-3.0-only
"""From names of files to models: which files are one model, and what each model is called.

A model's id is the name of its file, of a split model that of its first part. Files of one name
in several folders: the first one (the top folder's, then by name of the folder) has the plain
name as its id, the others are listed as `folder/name`. That longer name is an alias of every
model in a folder, so a client that uses it is never surprised by a new file elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import msgspec

ENDING = ".gguf"
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})(?P<ending>\.gguf)", re.IGNORECASE)
_SHOWN = 3


class File(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """A file that was found. `folder` is empty for the top folder; `error`: it cannot even be looked at.

    Equal values mean the same contents, as far as a file system tells.
    """

    folder: str
    name: str
    path: str
    size: int = 0
    modified_ns: int = 0
    device: int = 0
    inode: int = 0
    error: str | None = None


class SplitName(msgspec.Struct, frozen=True):
    """The name of one part: `stem-00002-of-00003.gguf`, as llama.cpp's gguf-split writes it."""

    stem: str
    part: int
    parts: int
    ending: str

    def name_of(self, part: int) -> str:
        """Return the name of another part of the same model."""
        return f"{self.stem}-{part:05d}-of-{self.parts:05d}{self.ending}"


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """What may be one model: its parts in order, and its names."""

    id: str
    path: str
    """Of the first part, whether or not it is there."""
    files: tuple[File, ...]
    aliases: tuple[str, ...]
    """The stem first; then the name without the part, and the name with the folder."""
    parts: int = 1
    error: str | None = None

    @property
    def stem(self) -> str:
        """The id without its ending."""
        return self.aliases[0]


def is_model_name(name: str) -> bool:
    """Say whether a file of this name is looked into: it ends in .gguf and is not hidden."""
    return name.lower().endswith(ENDING) and not name.startswith(".")


def parse_split(name: str) -> SplitName | None:
    """Take the name of a part apart; None for any other name."""
    match = _SPLIT.fullmatch(name)
    if match is None:
        return None
    part, parts = int(match["part"]), int(match["parts"])
    if not 1 <= part <= parts:
        return None
    return SplitName(match["stem"], part, parts, match["ending"])


def candidates_of(files: Iterable[File]) -> list[Candidate]:
    """Put the parts of split models together and give every model its id, in the order of folders."""
    groups: dict[tuple[str, str], list[File]] = {}
    for file in sorted(files):
        split = parse_split(file.name)
        name = file.name if split is None else split.name_of(1)
        groups.setdefault((file.folder, name), []).append(file)
    taken: set[str] = set()
    found: list[Candidate] = []
    for (folder, name), members in sorted(groups.items()):
        long_name = f"{folder}/{name}" if folder else name
        model_id = long_name if name in taken else name
        taken.add(model_id)
        found.append(_candidate(model_id, long_name, members))
    return found


def _candidate(model_id: str, long_name: str, files: Sequence[File]) -> Candidate:
    first = files[0]
    split = parse_split(first.name)
    aliases = [model_id[: -len(ENDING)]]
    path = first.path
    missing: list[str] = []
    if split is not None:
        path = first.path.removesuffix(first.name) + split.name_of(1)
        aliases.append(aliases[0].removesuffix(f"-00001-of-{split.parts:05d}"))
        there = {file.name for file in files}
        missing = [name for part in range(1, split.parts + 1) if (name := split.name_of(part)) not in there]
    if long_name != model_id:
        aliases.append(long_name)
    error = next((file.error for file in files if file.error is not None), None)
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (" and so on" if len(missing) > _SHOWN else "")
        error = f"{len(missing)} of its {len(missing) + len(files)} parts are missing: {shown}"
    return Candidate(
        id=model_id,
        path=path,
        files=tuple(files),
        aliases=tuple(aliases),
        parts=1 if split is None else split.parts,
        error=error,
    )
