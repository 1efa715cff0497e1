# SPDX-License-Identifier: GPL-3.0-only
"""List the model files of a folder by name, size and time. Blocks on the disk.

What is looked at: `*.gguf` (in any case) in the folder and below it, through symbolic links, without
hidden names. A folder that is reached twice is read once, so a link that leads back does no harm. How
deep, and how many entries beyond the first level, is bounded: the folder may be `/`.

A repository in Hugging Face's cache is read as one folder: `models--owner--name/snapshots/<commit>/x.gguf`,
a link to `../../blobs/<hash>`, is `owner/name/x.gguf`. The files of all its commits count, since each has
only what was downloaded from it. Where two have the same name, the commit in `refs/main` is preferred, then
the newest.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from modeld.domain.catalog import File, is_model_name, merge_sources

MOST_LEVELS = 8
"""Folders so far below the models folder are looked into."""
MOST_ENTRIES = 20_000
"""So many entries are looked at beyond the first level below it."""

_OUR_OWN_LACK = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_MOST_TOLD = 8
_REPOSITORIES = ("models--", "datasets--", "spaces--")
"""How folders of repositories begin; only the first kind has models."""
_LONGEST_COMMIT = 100


def list_files(folder: Path) -> tuple[list[File], tuple[str, ...]]:
    """List the files that may be models, in `folder` and below, in order.

    Returns: the files, and a sentence for each folder or file below that is left out.
    Raises: OSError when `folder` itself cannot be read.
    """
    walk = _Walk(folder)
    files, clashes = merge_sources(walk.sources())
    problems = [*walk.problems, *clashes]
    unnamed = [file for file in files if not _is_text(file.path)]
    problems += [
        f"the name of {file.path!a} is not UTF-8, so nobody can ask for it; rename it"
        for file in unnamed[:_MOST_TOLD]
    ]
    if len(unnamed) > _MOST_TOLD:
        problems.append(f"the names of {len(unnamed) - _MOST_TOLD} more files are not UTF-8")
    return sorted(file for file in files if _is_text(file.path)), tuple(problems)


class _Place(NamedTuple):
    """A folder to look into. `name`: what files in it are told with; `level`: how far down it is."""

    path: str
    name: str
    level: int
    cached: bool = False
    """It belongs to a commit of a repository in a cache."""

    @property
    def deep(self) -> bool:
        return self.cached or self.level > 1


class _Walk:
    """One walk through the folders, level by level, each in the order of names.

    Attributes:
      problems: a sentence for each folder that is not looked into.
    """

    def __init__(self, folder: Path) -> None:
        self.problems: list[str] = []
        self._folder = folder
        self._seen = {_identity(folder.stat())}
        self._entries = 0
        self._unreadable = 0
        self._full = False
        self._cut_off = False

    def sources(self) -> list[list[File]]:
        """Return the files of all folders, then those of each repository's commits, the preferred first."""
        files: list[File] = []
        commits: list[list[File]] = []
        top = _Place(str(self._folder), "", 0)
        below = self._look(top, files)
        if _is_repository(top.path):
            return [files, *self._commits(top)]
        todo = deque(below)
        while todo and not self._full:
            place = todo.popleft()
            with self._telling(place.path):
                if not self._is_new(place.path):
                    continue
                if _is_repository(place.path):
                    commits += self._commits(place)  # Now: deeper folders may exhaust the bound.
                else:
                    todo += self._look(place, files)
        return [files, *commits]

    def _commits(self, repository: _Place) -> list[list[File]]:
        """Return the files of each commit of a repository."""
        kind, *names = Path(repository.path).name.split("--")
        if f"{kind}--" != _REPOSITORIES[0]:
            return []
        root = f"{repository.path}/snapshots"
        with os.scandir(root) as entries:
            found = [
                (entry.name, entry.stat().st_mtime_ns)
                for entry in entries
                if not entry.name.startswith(".") and _is_folder(entry)
            ]
        main = self._main(repository.path) if len(found) > 1 else ""
        found.sort(key=lambda commit: (commit[0] != main, -commit[1], commit[0]))
        return [
            self._files_of(_Place(f"{root}/{commit}", "/".join(names), repository.level, cached=True))
            for commit, _ in found
        ]

    def _files_of(self, commit: _Place) -> list[File]:
        files: list[File] = []
        todo = deque([commit])
        while todo and not self._full:
            place = todo.popleft()
            with self._telling(place.path):
                if self._is_new(place.path):
                    todo += self._look(place, files)
        return files

    def _main(self, repository: str) -> str:
        path = Path(repository, "refs", "main")
        with self._telling(str(path)):
            if not stat.S_ISREG(path.stat().st_mode):
                return ""  # A FIFO would be waited for.
            with path.open(encoding="ascii", errors="replace") as file:
                return file.read(_LONGEST_COMMIT).strip()
        return ""

    def _is_new(self, path: str) -> bool:
        identity = _identity(Path(path).stat())
        new = identity not in self._seen
        self._seen.add(identity)
        return new

    def _look(self, place: _Place, files: list[File]) -> list[_Place]:
        """Add to `files` what may be models in a folder; return the folders in it. Nothing hidden."""
        folders: list[tuple[str, str]] = []
        with os.scandir(place.path) as entries:
            for entry in entries:
                if place.deep and not self._counted():
                    break
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    folders.append((entry.name, entry.path))
                elif is_model_name(entry.name):
                    files.append(_file(place.name, entry, deep=place.deep))
        if place.level >= MOST_LEVELS and folders:
            self._cut(place.path)
            return []
        prefix = f"{place.name}/" if place.name else ""
        return [_Place(path, prefix + name, place.level + 1, place.cached) for name, path in sorted(folders)]

    def _counted(self) -> bool:
        """Count one more entry; False, and told, when there are too many."""
        if self._entries < MOST_ENTRIES:
            self._entries += 1
            return True
        self._full = True
        self.problems.append(
            f"the models folder {_shown(self._folder)} has more than {MOST_ENTRIES} entries beyond its first "
            "level, and the rest is not looked at; set models_dir to a folder with models and little else"
        )
        return False

    def _cut(self, path: str) -> None:
        if not self._cut_off:
            self._cut_off = True
            self.problems.append(
                f"folders more than {MOST_LEVELS} levels below the models folder are not looked into, such "
                f"as those in {_shown(path)}"
            )

    @contextmanager
    def _telling(self, path: str) -> Generator[None]:
        """Tell of a folder that cannot be read; one that was removed a moment ago is no problem."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            if is_our_own_lack(error):
                raise
            self._unreadable += 1
            if self._unreadable <= _MOST_TOLD:
                self.problems.append(f"the folder {_shown(path)} cannot be read: {reason_of(error)}")
            elif self._unreadable == _MOST_TOLD + 1:
                self.problems.append(f"more folders below {_shown(self._folder)} cannot be read")


def _is_repository(path: str) -> bool:
    """Whether a folder is a repository in a cache, of whatever kind."""
    folder = Path(path)
    return folder.name.startswith(_REPOSITORIES) and (folder / "snapshots").is_dir()


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_text(name: str) -> bool:
    """Say whether a name can be told to a client (bytes that are no UTF-8 come as surrogates)."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def _shown(path: str | Path) -> str:
    """The path as text that any encoder takes."""
    return os.fsencode(path).decode(errors="replace")


def _identity(info: os.stat_result) -> tuple[int, int]:
    return info.st_dev, info.st_ino


def _file(folder: str, entry: os.DirEntry[str], *, deep: bool = False) -> File:
    try:
        info = entry.stat()
    except OSError as error:
        return File(
            deep=deep,
            folder=folder,
            name=entry.name,
            path=entry.path,
            error=f"{entry.name}{_target(entry)} cannot be read: {reason_of(error)}",
        )
    return File(
        deep=deep,
        folder=folder,
        name=entry.name,
        path=entry.path,
        size=info.st_size,
        modified_ns=info.st_mtime_ns,
        device=info.st_dev,
        inode=info.st_ino,
        error=None if stat.S_ISREG(info.st_mode) else f"{entry.name} is not a regular file",
    )


def _target(entry: os.DirEntry[str]) -> str:
    """Say where a link leads; nothing of what is none, or was removed a moment ago."""
    try:
        return f" (a link to {_shown(Path(entry.path).readlink())})" if entry.is_symlink() else ""
    except OSError:
        return ""


def is_our_own_lack(error: OSError | RuntimeError) -> bool:
    """Whether a look failed for want of descriptors or memory: that says nothing of the files."""
    return isinstance(error, OSError) and error.errno in _OUR_OWN_LACK


def folder_error(folder: Path, error: OSError | RuntimeError) -> str:
    """Return what is told of a models folder that cannot be read."""
    hint = (
        "create it, or set models_dir"
        if isinstance(error, FileNotFoundError)
        else "mend it, or set models_dir"
    )
    if is_our_own_lack(error):
        hint = "what is shown was known before; raise the limits of open files or memory"
    return f"the models folder {_shown(folder)} cannot be read: {reason_of(error)}; {hint}"


def reason_of(error: OSError | RuntimeError) -> str:
    """Return the system's words for an error, without number and name of the file."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
