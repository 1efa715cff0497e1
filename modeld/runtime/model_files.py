# SPDX-License-Identifier: GPL-3.0-only
"""Which model files a folder has. Reads names, sizes and times, never contents; blocks on the disk.

What is looked at: `*.gguf` (in any case) in the folder and in the folders directly below it,
through symbolic links, without hidden names. A folder that is reached twice is read once, so a
link that leads back does no harm.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from modeld.core.catalog import File, is_model_name

_OUR_OWN_LACK = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


def list_files(folder: Path) -> tuple[list[File], tuple[str, ...]]:
    """List the files that may be models, in `folder` and one level below, in order.

    Returns: the files, and a sentence for each folder below that cannot be read.
    Raises: OSError when `folder` itself cannot be read.
    """
    problems: list[str] = []
    seen = {_identity(folder.stat())}
    files, below = _entries(folder, "")
    for subfolder in below:
        try:
            identity = _identity(subfolder.stat())
            if identity not in seen:
                seen.add(identity)
                files += _entries(subfolder, subfolder.name)[0]
        except OSError as error:
            if is_our_own_lack(error):
                raise
            problems.append(f"the folder {_shown(subfolder)} cannot be read: {reason_of(error)}")
    problems += [
        f"the name of {file.path!a} is not UTF-8, so nobody can ask for it; rename it"
        for file in files
        if not _is_text(file.path)
    ]
    return sorted(file for file in files if _is_text(file.path)), tuple(problems)


def _entries(folder: Path, name: str) -> tuple[list[File], list[Path]]:
    """Return what may be models in a folder, and the folders in it by name; nothing hidden."""
    files: list[File] = []
    folders: list[Path] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_folder(entry):
                folders.append(folder / entry.name)
            elif is_model_name(entry.name):
                files.append(_file(name, entry))
    return files, sorted(path for path in folders if not path.name.startswith("."))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_text(name: str) -> bool:
    """Say whether a name can be told to a client (bytes that are no UTF-8 come as surrogates)."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def _shown(path: Path) -> str:
    """The path as text that any encoder takes."""
    return os.fsencode(path).decode(errors="replace")


def _identity(info: os.stat_result) -> tuple[int, int]:
    return info.st_dev, info.st_ino


def _file(folder: str, entry: os.DirEntry[str]) -> File:
    try:
        info = entry.stat()
    except OSError as error:
        return File(
            folder=folder,
            name=entry.name,
            path=entry.path,
            error=f"{entry.name}{_target(entry)} cannot be read: {reason_of(error)}",
        )
    return File(
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
