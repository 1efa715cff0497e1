# SPDX-License-Identifier: GPL-3.0-only
"""Group files into models, name them, and resolve a model's name or alias. Pure.

A model's id is the name of its file, of a split model that of its first part. Files of one name
in several folders: the first one (the top folder's, then by name of the folder) has the plain
name as its id, the others are listed as `folder/name`. That longer name is an alias of every
model in a folder, so a client that uses it is never surprised by a new file elsewhere.

A file more than one folder down, or in a repository of Hugging Face's cache, has only the longer name:
with all folders, or `owner/repository/name`. So it never takes a name from a file above it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import msgspec

from modeld.domain.model import Catalog, ModelSpec
from modeld.domain.request import EmbedRequest, GenerateRequest, Request, TemplateRequest
from modeld.errors import InvalidRequest, ModelNotFound, Problem

ENDING = ".gguf"
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})(?P<ending>\.gguf)", re.IGNORECASE)
_SHOWN = 3


class File(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """A file that was found. `folder` is empty for the top folder; `error`: it cannot even be looked at.

    `deep`: it is more than one folder down, or in a repository of a cache. Equal values mean the same
    contents, as far as a file system tells.
    """

    deep: bool = False
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


class ModelFiles(msgspec.Struct, frozen=True, kw_only=True):
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
    match = _SPLIT.fullmatch(name) if "-of-" in name.lower() else None  # Most have none: 1 us less.
    if match is None:
        return None
    part, parts = int(match["part"]), int(match["parts"])
    if not 1 <= part <= parts:
        return None
    return SplitName(match["stem"], part, parts, match["ending"])


def merge_sources(sources: Iterable[Iterable[File]]) -> tuple[list[File], tuple[str, ...]]:
    """Put together what several places hold, such as the commits of a repository, the preferred first.

    Of models with the same folder and name the first complete one counts, with all its parts.

    Returns: the files, and a sentence for each model that is left out although it is another file.
    """
    chosen: dict[tuple[str, str], list[File]] = {}
    others: list[tuple[tuple[str, str], list[File]]] = []
    for source in sources:
        for key, group in _groups(source).items():
            known = chosen.setdefault(key, group)
            if known is not group:
                others.append((key, group))
                if not _is_complete(known) and _is_complete(group):
                    chosen[key] = group
    problems = tuple(
        f"{_long_name(*key)} is there twice: {chosen[key][0].path} is served, and {group[0].path} is not"
        for key, group in others
        if _is_complete(group) and _identities(group) != _identities(chosen[key])
    )
    return [file for group in chosen.values() for file in group], problems


def model_files(files: Iterable[File]) -> list[ModelFiles]:
    """Put the parts of split models together and give every model its id, in the order of folders.

    What is deep, and known by a link already, is one model with it: its name becomes an alias.
    """
    groups = _groups(files)
    taken: set[str] = set()
    known: dict[tuple[tuple[int, int], ...], int] = {}
    found: list[ModelFiles] = []
    for (folder, name), members in sorted(groups.items(), key=lambda item: (item[1][0].deep, item[0])):
        long_name = _long_name(folder, name)
        deep = members[0].deep
        identities = _identities(members)
        model_id = long_name if deep or name in taken else name
        candidate = _candidate(model_id, long_name, members)
        if deep and candidate.error is None and (place := known.get(identities)) is not None:
            same = found[place]
            aliases = tuple(dict.fromkeys((*same.aliases, model_id, *candidate.aliases)))
            found[place] = msgspec.structs.replace(same, aliases=aliases)
            continue
        known.setdefault(identities, len(found))
        taken.add(model_id)
        found.append(candidate)
    return found


def _groups(files: Iterable[File]) -> dict[tuple[str, str], list[File]]:
    """Return the files of each model by folder and name, the latter of its first part."""
    groups: dict[tuple[str, str], list[File]] = {}
    for file in sorted(files):
        split = parse_split(file.name)
        name = file.name if split is None else split.name_of(1)
        groups.setdefault((file.folder, name), []).append(file)
    return groups


def _long_name(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _is_complete(group: Sequence[File]) -> bool:
    """Whether all parts of a model are there and can be looked at."""
    if not group or any(file.error is not None for file in group):
        return False
    split = parse_split(group[0].name)
    return split is None or len(group) == split.parts


def _identities(group: Iterable[File]) -> tuple[tuple[int, int], ...]:
    return tuple((file.device, file.inode) for file in group)


def _candidate(model_id: str, long_name: str, files: Sequence[File]) -> ModelFiles:
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
    return ModelFiles(
        id=model_id,
        path=path,
        files=tuple(files),
        aliases=tuple(aliases),
        parts=1 if split is None else split.parts,
        error=error,
    )


# ----------------------------------------------------------------------
# The model of a name, or what is told to who asks for one that is not there. Pure.

SHOWN_NAME = 100
"""Characters of an unknown model's name that an error repeats."""


def resolve_model(catalog: Catalog, name: str | None, *, listing: str = "GET /models") -> ModelSpec:
    """Return the model of an id or alias, the default one for None; `listing` shows those there are.

    Raises: ModelNotFound.
    """
    spec = catalog.find(name)
    if spec is not None:
        return spec
    if name is None:
        raise ModelNotFound(
            "there is no default model: put a .gguf file into models_dir, or set default_model"
        )
    shown = name if len(name) <= SHOWN_NAME else f"{name[:SHOWN_NAME]}..."
    raise ModelNotFound(f"there is no model {shown!r}; {listing} lists the {len(catalog.models)} there are")


# ----------------------------------------------------------------------
# What a model cannot do by what its file says: refused before anything is loaded for it.


def unsupported_reason(request: Request, spec: ModelSpec) -> Problem | None:
    """Return why this model cannot serve such a request, None if nothing speaks against it."""
    pooling = "" if spec.facts is None else spec.facts.pooling
    match request:
        case GenerateRequest() | TemplateRequest() if pooling:
            reason = (
                f"{spec.id} is an embedding model: it generates no text; POST /embed, or choose another model"
            )
        case EmbedRequest(pooling=asked) if pooling and asked is not None and asked.value != pooling:
            reason = f"{spec.id} pools by {pooling}; leave out `pooling`, or give that (not {asked})"
        case _:
            return None
    return InvalidRequest(reason).as_problem()
