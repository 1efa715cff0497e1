# SPDX-License-Identifier: GPL-3.0-only
"""One look at the models folder: which files are models, what they are called, what is wrong with them."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gguf
import msgspec
import pytest
from support import tiny_gguf

from modeld.config.model_settings import ModelSettings
from modeld.config.settings import Settings
from modeld.domain.model import EngineKind, Isolation, LoadOptions
from modeld.engine.llama.footprint import estimate
from modeld.runtime.catalog import model_files
from modeld.runtime.catalog import scan as scan_module
from modeld.runtime.catalog.scan import Scanner, ScanResult

NOBODY = 65534


def look(folder: Path, **more: object) -> ScanResult:
    return Scanner(Settings(models_dir=folder, **more)).scan()


def ids(scan: ScanResult) -> list[str]:
    return list(scan.catalog.models)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@contextmanager
def unprivileged() -> Iterator[None]:
    """Be somebody whom file modes concern."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that anybody may enter (pytest's own are the user's alone)."""
    folder = Path(tempfile.mkdtemp(prefix="modeld-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


# What is found.


def test_a_file_becomes_a_model_with_its_facts(tmp_path: Path, tiny: Path) -> None:
    """Id, name, size, facts, options and footprint of a sound file."""
    shutil.copy(tiny, tmp_path / "tiny.gguf")
    spec = look(tmp_path).catalog.models["tiny.gguf"]
    assert (spec.id, spec.name, spec.path, spec.error) == (
        "tiny.gguf",
        "Tiny",
        str(tmp_path / "tiny.gguf"),
        None,
    )
    assert spec.size_bytes == tiny.stat().st_size
    assert spec.modified_ns == (tmp_path / "tiny.gguf").stat().st_mtime_ns
    assert spec.facts is not None
    assert spec.facts.architecture == "llama"
    assert spec.footprint == estimate(spec.facts, spec.options)
    assert spec.aliases == ("tiny",)


def test_the_ending_may_be_in_any_case_and_hidden_names_are_left_out(tmp_path: Path, tiny: Path) -> None:
    """`.GGUF` counts; `.hidden.gguf`, files in `.folders` and other endings do not."""
    (tmp_path / ".cache").mkdir()
    for name in ("B.GGUF", "a.gGuf", ".hidden.gguf", ".cache/c.gguf", "notes.txt", "half.gguf.part"):
        shutil.copy(tiny, tmp_path / name)
    assert ids(look(tmp_path)) == ["B.GGUF", "a.gGuf"]


def copy(file: Path, *places: Path) -> None:
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)


def test_folders_are_looked_into_at_any_sensible_depth(tmp_path: Path, tiny: Path) -> None:
    """Files more than one folder down have all folders in their id, and take no name from those above."""
    names = ("sub/x.gguf", "sub/deep/y.gguf", "a/b/x.gguf", "a/b/c/d/e/f/g/h/8.gguf", "a/b/.c/hidden.gguf")
    copy(tiny, *(tmp_path / name for name in names))
    scan = look(tmp_path)
    assert ids(scan) == ["a/b/c/d/e/f/g/h/8.gguf", "a/b/x.gguf", "sub/deep/y.gguf", "x.gguf"]
    assert scan.catalog.names["sub/x.gguf"] == "x.gguf"
    assert scan.catalog.names["x"] == "x.gguf"
    assert scan.catalog.names["a/b/x"] == "a/b/x.gguf"
    assert "y" not in scan.catalog.names
    assert scan.catalog.default == "x.gguf", "as if the deeper files were not there"
    assert scan.problems == ()


def test_folders_beyond_the_depth_are_told(tmp_path: Path, tiny: Path) -> None:
    """Once, however many there are."""
    copy(tiny, tmp_path / "a/b/c/d/e/f/g/h/i/9.gguf", tmp_path / "b/b/c/d/e/f/g/h/i/9.gguf")
    scan = look(tmp_path)
    assert ids(scan) == []
    (problem,) = scan.problems
    assert problem.startswith("folders more than 8 levels below the models folder are not looked into")
    assert problem.endswith(f"such as those in {tmp_path}/a/b/c/d/e/f/g/h")


def test_a_huge_tree_is_looked_at_in_part(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was always found, in the folder and one level below, still is; and a sentence tells what to do."""
    monkeypatch.setattr(model_files, "MOST_ENTRIES", 25)
    copy(tiny, *(tmp_path / f"{number}.gguf" for number in range(30)))
    copy(tiny, *(tmp_path / f"z/{number}.gguf" for number in range(30, 60)))
    for number in range(10):
        copy(tiny, *(tmp_path / f"a/{number}/{name}.gguf" for name in range(10)))
    scan = look(tmp_path)
    assert len([name for name in ids(scan) if "/" not in name]) == 60
    assert len([name for name in ids(scan) if name.startswith("a/")]) == 25
    (problem,) = scan.problems
    assert problem.startswith(f"the models folder {tmp_path} has more than 25 entries beyond its first level")
    assert "set models_dir" in problem


def test_a_deep_file_that_links_make_known_twice_is_listed_once(tmp_path: Path, tiny: Path) -> None:
    """By links to files and to folders; the shortest way counts. What links name near the top stays."""
    copy(tiny, tmp_path / "a/b/x.gguf", tmp_path / "a/b/z.gguf")
    (tmp_path / "near.gguf").symlink_to("a/b/x.gguf")
    (tmp_path / "a" / "c").symlink_to("b")
    (tmp_path / "a" / "b" / "back").symlink_to(tmp_path)
    (tmp_path / "a" / "b" / "y.gguf").hardlink_to(tmp_path / "a/b/x.gguf")
    scan = look(tmp_path)
    assert ids(scan) == ["a/b/z.gguf", "near.gguf"]
    for name in ("a/b/x.gguf", "a/b/x", "a/b/y.gguf"):
        assert scan.catalog.names[name] == "near.gguf"


def test_many_folders_that_cannot_be_read_are_few_sentences(open_folder: Path, tiny: Path) -> None:
    """The models folder may be `/`, and its look must not flood the log."""
    copy(tiny, open_folder / "a.gguf")
    for number in range(20):
        (open_folder / "sub" / f"{number:02}").mkdir(parents=True, mode=0o755)
        (open_folder / "sub" / f"{number:02}").chmod(0)
    (open_folder / "sub").chmod(0o755)
    with unprivileged():
        scan = look(open_folder)
    assert ids(scan) == ["a.gguf"]
    assert scan.problems[0] == f"the folder {open_folder}/sub/00 cannot be read: Permission denied"
    assert scan.problems[-1] == f"more folders below {open_folder} cannot be read"
    assert len(scan.problems) == 9


# The cache of Hugging Face.

OLD, NEW = "a" * 40, "b" * 40


def cached(hub: Path, commit: str, name: str, data: bytes | None, *, repo: str = "owner--name") -> Path:
    """Put a file into a cache as `huggingface_hub` does; without data its download was broken off."""
    root = hub / f"models--{repo}"
    for folder in ("blobs", "refs", f".no_exist/{commit}", f"snapshots/{commit}"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    blob = root / "blobs" / f"{hash(data):x}".lstrip("-")
    if data is None:
        blob.with_suffix(".incomplete").write_bytes(b"GGUF")
    else:
        blob.write_bytes(data)
    (root / "refs" / "main").write_text(commit)
    link = root / "snapshots" / commit / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(os.path.relpath(blob, link.parent))
    return link


def test_models_of_a_cache_have_readable_names(tmp_path: Path, tiny: Path) -> None:
    """From the cache and from the folder above it: owner, repository and name, and never a commit's hash."""
    hub = tmp_path / "hub"
    data = tiny.read_bytes()
    cached(hub, OLD, "x-Q4.gguf", data)
    cached(hub, NEW, "sub/x-Q8.gguf", data + b"\0" * 32)
    cached(hub, NEW, "README.md", b"text")
    cached(hub, OLD, "old.gguf", data, repo="gpt2")
    (hub / ".locks" / "models--owner--name").mkdir(parents=True)
    (hub / "datasets--owner--name" / "snapshots" / OLD).mkdir(parents=True)
    shutil.copy(tiny, hub / "datasets--owner--name" / "snapshots" / OLD / "data.gguf")
    (tmp_path / "token").write_text("secret")
    for folder in (hub, tmp_path):
        scan = look(folder)
        assert ids(scan) == ["gpt2/old.gguf", "owner/name/sub/x-Q8.gguf", "owner/name/x-Q4.gguf"]
        assert scan.catalog.names["owner/name/x-Q4"] == "owner/name/x-Q4.gguf"
        assert scan.catalog.models["owner/name/x-Q4.gguf"].error is None
        assert scan.problems == ()
    repository = look(hub / "models--owner--name")
    assert ids(repository) == ["owner/name/sub/x-Q8.gguf", "owner/name/x-Q4.gguf"]


def test_of_two_versions_that_of_main_is_served(tmp_path: Path, tiny: Path) -> None:
    """The other one is told; what both commits have in common is one model."""
    data = tiny.read_bytes()
    for commit, changed in ((NEW, b"\0" * 32), (OLD, b"")):
        cached(tmp_path, commit, "same.gguf", data + b"\0" * 64)
        cached(tmp_path, commit, "x.gguf", data + changed)
    root = tmp_path / "models--owner--name"
    for main, other in ((OLD, NEW), (NEW, OLD)):
        (root / "refs" / "main").write_text(f"{main}\n")
        scan = look(tmp_path)
        assert scan.catalog.models["owner/name/x.gguf"].path == str(root / "snapshots" / main / "x.gguf")
        told = f"{root}/snapshots/{main}/x.gguf is served, and {root}/snapshots/{other}/x.gguf is not"
        assert scan.problems == (f"owner/name/x.gguf is there twice: {told}",)
        assert not any(commit in name for name in scan.catalog.names for commit in (OLD, NEW))


def test_without_a_main_the_newest_commit_counts(tmp_path: Path, tiny: Path) -> None:
    """As after a download of a tag or of a commit."""
    links = [cached(tmp_path, OLD, "x.gguf", tiny.read_bytes()), cached(tmp_path, NEW, "x.gguf", b"other")]
    (tmp_path / "models--owner--name" / "refs" / "main").unlink()
    for newest in links:
        for link in links:
            os.utime(link.parent, ns=(1, 2 if link is newest else 1))
        assert look(tmp_path).catalog.models["owner/name/x.gguf"].path == str(newest)


def test_a_main_that_is_no_file_is_not_waited_for(tmp_path: Path, tiny: Path) -> None:
    """A FIFO would hold the look at the folder for ever."""
    for commit in (OLD, NEW):
        cached(tmp_path, commit, "x.gguf", tiny.read_bytes())
    main = tmp_path / "models--owner--name" / "refs" / "main"
    main.unlink()
    os.mkfifo(main)
    assert ids(look(tmp_path)) == ["owner/name/x.gguf"]


def test_a_download_that_was_broken_off_is_told_unless_another_commit_has_the_file(
    tmp_path: Path, tiny: Path
) -> None:
    """A link without its blob is a model that cannot be served, and says where the link leads."""
    cached(tmp_path, NEW, "x.gguf", None)
    error = look(tmp_path).catalog.models["owner/name/x.gguf"].error
    assert error is not None
    assert error.startswith("x.gguf (a link to ../../blobs/")
    assert error.endswith("cannot be read: No such file or directory")
    whole = cached(tmp_path, OLD, "x.gguf", tiny.read_bytes())
    (tmp_path / "models--owner--name" / "refs" / "main").write_text(NEW)
    scan = look(tmp_path)
    assert scan.catalog.models["owner/name/x.gguf"].path == str(whole)
    assert scan.problems == ()


def test_parts_of_a_split_model_come_from_one_commit(tmp_path: Path) -> None:
    """llama.cpp finds them side by side, so those of two commits are no model together."""
    parts = [part.read_bytes() for part in tiny_gguf.write_split(tmp_path, "big", 3)]
    hub = tmp_path / "hub"
    for place, data in enumerate(parts, 1):
        cached(hub, OLD, f"big-{place:05}-of-00003.gguf", data)
    for place, data in enumerate(parts[:2], 1):
        cached(hub, NEW, f"big-{place:05}-of-00003.gguf", data + b"\0" * 32)
    scan = look(hub)
    spec = scan.catalog.models["owner/name/big-00001-of-00003.gguf"]
    assert spec.error is None
    assert spec.path == str(hub / f"models--owner--name/snapshots/{OLD}/big-00001-of-00003.gguf")
    assert scan.catalog.names["owner/name/big"] == spec.id
    assert ids(scan) == [spec.id]


def test_models_of_one_name_in_two_caches_are_told(tmp_path: Path, tiny: Path) -> None:
    """The first folder's is served; one cache that is reached twice is no clash."""
    first = cached(tmp_path / "a", OLD, "x.gguf", tiny.read_bytes())
    second = cached(tmp_path / "b", OLD, "x.gguf", tiny.read_bytes())
    (tmp_path / "c").symlink_to("a")
    scan = look(tmp_path)
    assert ids(scan) == ["owner/name/x.gguf"]
    assert scan.problems == (f"owner/name/x.gguf is there twice: {first} is served, and {second} is not",)


def test_an_unchanged_tree_is_looked_at_with_stat_alone(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file of a cache or of a deep folder is opened again, and the second look is the first's."""
    cached(tmp_path, OLD, "x.gguf", tiny.read_bytes())
    copy(tiny, tmp_path / "a/b/y.gguf")
    scanner = Scanner(Settings(models_dir=tmp_path))
    first = scanner.scan()
    assert ids(first) == ["a/b/y.gguf", "owner/name/x.gguf"]
    monkeypatch.setattr(scan_module, "read_header", None)
    assert scanner.scan() is first


def test_links_to_files_and_folders_are_followed(tmp_path: Path, tiny: Path) -> None:
    """A link is a model under its own name; a hard link is one too."""
    models = tmp_path / "models"
    elsewhere = tmp_path / "elsewhere"
    models.mkdir()
    elsewhere.mkdir()
    shutil.copy(tiny, elsewhere / "far.gguf")
    (models / "soft.gguf").symlink_to(tiny)
    (models / "sub").symlink_to(elsewhere)
    shutil.copy(tiny, models / "one.gguf")
    (models / "two.gguf").hardlink_to(models / "one.gguf")
    scan = look(models)
    assert ids(scan) == ["far.gguf", "one.gguf", "soft.gguf", "two.gguf"]
    assert all(spec.error is None for spec in scan.catalog.models.values())


def test_links_that_lead_in_circles_do_no_harm(tmp_path: Path, tiny: Path) -> None:
    """A link to the folder itself adds nothing, a link to itself is a model with an error."""
    shutil.copy(tiny, tmp_path / "a.gguf")
    (tmp_path / "again").symlink_to(tmp_path)
    (tmp_path / "self.gguf").symlink_to("self.gguf")
    scan = look(tmp_path)
    assert ids(scan) == ["a.gguf", "self.gguf"]
    error = scan.catalog.models["self.gguf"].error
    assert error is not None
    assert "self.gguf (a link to self.gguf) cannot be read: Too many levels" in error


def test_a_link_that_is_removed_while_the_folder_is_looked_at_harms_no_other(tmp_path: Path) -> None:
    """It is told as a file that cannot be read; the look itself does not fail for it."""
    link = tmp_path / "gone.gguf"
    link.symlink_to("/nowhere/x.gguf")
    with os.scandir(tmp_path) as entries:
        [entry] = entries
    link.unlink()
    file = model_files._file("", entry)
    assert file.error == "gone.gguf cannot be read: No such file or directory"


def test_a_link_to_nothing_says_where_it_leads(tmp_path: Path) -> None:
    """The error names the target."""
    (tmp_path / "gone.gguf").symlink_to("/nowhere/x.gguf")
    error = look(tmp_path).catalog.models["gone.gguf"].error
    assert error == "gone.gguf (a link to /nowhere/x.gguf) cannot be read: No such file or directory"


def test_a_name_in_two_folders_gets_the_folder_in_front(tmp_path: Path, tiny: Path) -> None:
    """The top folder's file has the plain id; each of the others can be asked for by its long name."""
    for folder in ("", "b", "a"):
        (tmp_path / folder).mkdir(exist_ok=True)
        shutil.copy(tiny, tmp_path / folder / "x.gguf")
    catalog = look(tmp_path).catalog
    assert list(catalog.models) == ["a/x.gguf", "b/x.gguf", "x.gguf"]
    for name in ("x.gguf", "x"):
        found = catalog.find(name)
        assert found is not None
        assert found.path == str(tmp_path / "x.gguf")
    for name in ("b/x.gguf", "b/x"):
        found = catalog.find(name)
        assert found is not None
        assert found.path == str(tmp_path / "b" / "x.gguf")


def test_projectors_and_adapters_are_known_but_no_models(tmp_path: Path, tiny: Path) -> None:
    """They are left out of the catalogue, and cannot become the default."""
    tiny_gguf.write_projector(tmp_path / "a-mmproj.gguf")
    tiny_gguf.write_adapter(tmp_path / "b-lora.gguf")
    shutil.copy(tiny, tmp_path / "model.gguf")
    scan = look(tmp_path)
    assert ids(scan) == ["model.gguf"]
    assert scan.ignored == {"a-mmproj.gguf": "projector", "b-lora.gguf": "adapter"}
    assert scan.catalog.default == "model.gguf"


# Split models.


def test_the_parts_of_a_split_model_are_one_model(tmp_path: Path) -> None:
    """It has the first part's name, the sizes of all, and its name without the part as an alias."""
    parts = tiny_gguf.write_split(tmp_path, "big", 3)
    catalog = look(tmp_path).catalog
    assert list(catalog.models) == ["big-00001-of-00003.gguf"]
    spec = catalog.models["big-00001-of-00003.gguf"]
    assert spec.error is None
    assert spec.path == str(parts[0])
    assert spec.size_bytes == sum(part.stat().st_size for part in parts)
    assert spec.aliases == ("big-00001-of-00003", "big")
    assert catalog.names["big"] == spec.id


@pytest.mark.parametrize(
    ("without", "says"),
    [
        ((2,), "1 of its 3 parts are missing: big-00002-of-00003.gguf"),
        ((1, 3), "2 of its 3 parts are missing: big-00001-of-00003.gguf, big-00003-of-00003.gguf"),
    ],
)
def test_missing_parts_are_named(tmp_path: Path, without: tuple[int, ...], says: str) -> None:
    """Even without its first part the model is listed, under the first part's name."""
    tiny_gguf.write_split(tmp_path, "big", 3, without=without)
    scan = look(tmp_path)
    assert ids(scan) == ["big-00001-of-00003.gguf"]
    assert scan.catalog.models["big-00001-of-00003.gguf"].error == says


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    """The error of a split model says which of its files is at fault."""
    parts = tiny_gguf.write_split(tmp_path, "big", 3)
    parts[1].write_bytes(parts[1].read_bytes()[:-100])
    error = look(tmp_path).catalog.models["big-00001-of-00003.gguf"].error
    assert error is not None
    assert error.startswith("big-00002-of-00003.gguf is cut short")


def test_a_renamed_part_is_no_whole_model(tmp_path: Path) -> None:
    """Metadata that speak of parts and a name that does not make an error that says what to do."""
    tiny_gguf.write_model(tmp_path / "odd.gguf", split=(0, 2))
    error = look(tmp_path).catalog.models["odd.gguf"].error
    assert error is not None
    assert "odd.gguf is part 1 of 2 by its metadata" in error
    assert "<model>-00001-of-00002.gguf" in error


# What is wrong.


def test_bad_files_are_listed_with_their_errors_and_harm_nothing(tmp_path: Path, tiny: Path) -> None:
    """Empty, damaged, cut, special: a sentence each, and the sound one is served."""
    shutil.copy(tiny, tmp_path / "good.gguf")
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "noise.gguf").write_bytes(b"<html>404</html>")
    (tmp_path / "cut.gguf").write_bytes(tiny.read_bytes()[:-1])
    os.mkfifo(tmp_path / "pipe.gguf")
    catalog = look(tmp_path).catalog
    errors = {key: spec.error for key, spec in catalog.models.items() if spec.error is not None}
    assert set(errors) == {"empty.gguf", "noise.gguf", "cut.gguf", "pipe.gguf"}
    assert errors["empty.gguf"] == "empty.gguf is empty"
    assert errors["pipe.gguf"] == "pipe.gguf is not a regular file"
    assert "not a GGUF file" in errors["noise.gguf"]
    assert "cut short" in errors["cut.gguf"]
    assert catalog.default == "good.gguf"


def test_an_unreadable_file_is_found_as_soon_as_its_mode_is_mended(open_folder: Path, tiny: Path) -> None:
    """Nothing about the file changed but its mode; the refusal is not remembered."""
    path = open_folder / "secret.gguf"
    shutil.copy(tiny, path)
    path.chmod(0)
    scanner = Scanner(Settings(models_dir=open_folder))
    with unprivileged():
        error = scanner.scan().catalog.models["secret.gguf"].error
    assert error == "secret.gguf cannot be read: Permission denied"
    path.chmod(0o644)
    with unprivileged():
        assert scanner.scan().catalog.models["secret.gguf"].error is None


def test_an_unreadable_folder_below_costs_only_itself(open_folder: Path, tiny: Path) -> None:
    """The files alongside it are found, and a sentence tells of it."""
    shutil.copy(tiny, open_folder / "a.gguf")
    locked = open_folder / "locked"
    locked.mkdir(mode=0)
    with unprivileged():
        scan = look(open_folder)
    locked.chmod(0o755)
    assert ids(scan) == ["a.gguf"]
    assert scan.problems == (f"the folder {locked} cannot be read: Permission denied",)


def test_a_missing_folder_is_an_error_and_an_empty_catalogue(tmp_path: Path) -> None:
    """The sentence names the folder and what to do; a file in its place has one too."""
    missing = look(tmp_path / "none")
    assert not missing.catalog.models
    assert missing.error is not None
    assert f"{tmp_path / 'none'} cannot be read: No such file or directory; create it" in missing.error
    (tmp_path / "file").touch()
    assert "Not a directory" in str(look(tmp_path / "file").error)


def test_a_name_that_is_no_text_is_left_out(tmp_path: Path, tiny: Path) -> None:
    """No client could ask for it, and it must not break the answers that list all models."""
    shutil.copy(tiny, tmp_path / "gr\u00fcn.gguf")
    shutil.copy(tiny, os.fsencode(tmp_path) + b"/gr\xfcn.gguf")
    scan = look(tmp_path)
    assert ids(scan) == ["gr\u00fcn.gguf"]
    assert len(scan.problems) == 1
    assert "gr\\udcfcn.gguf' is not UTF-8" in scan.problems[0]
    assert scan.problems[0].isascii()
    for number in range(20):
        (tmp_path / os.fsdecode(b"%d\xff.gguf" % number)).touch()
    problems = look(tmp_path).problems
    assert (len(problems), problems[-1]) == (9, "the names of 13 more files are not UTF-8")


def test_a_defect_of_the_reader_stays_with_the_file(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the reader raises becomes the error of that model."""

    def broken(_: Path) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(scan_module, "read_header", broken)
    shutil.copy(tiny, tmp_path / "a.gguf")
    error = look(tmp_path).catalog.models["a.gguf"].error
    assert error == "a.gguf cannot be read: ZeroDivisionError('oops') (a defect of modeld)"


# What is remembered.


def test_an_unchanged_file_is_read_once(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second look opens nothing; a grown, replaced or touched file is read again."""
    reads: list[str] = []
    real = scan_module.read_header
    monkeypatch.setattr(scan_module, "read_header", lambda path: (reads.append(path.name), real(path))[1])
    for name in ("a.gguf", "b.gguf", "bad.gguf"):
        shutil.copy(tiny, tmp_path / name)
    (tmp_path / "bad.gguf").write_bytes(b"noise")
    scanner = Scanner(Settings(models_dir=tmp_path))
    first = scanner.scan()
    assert sorted(reads) == ["a.gguf", "b.gguf", "bad.gguf"]
    reads.clear()
    assert scanner.scan() == first
    assert reads == []
    with (tmp_path / "bad.gguf").open("ab") as file:
        file.write(b"more")
    replacement = tmp_path / "new"
    shutil.copy2(tmp_path / "a.gguf", replacement)
    replacement.rename(tmp_path / "a.gguf")
    os.utime(tmp_path / "b.gguf", ns=(1, 1))
    scanner.scan()
    assert sorted(reads) == ["a.gguf", "b.gguf", "bad.gguf"]


def test_what_is_gone_is_forgotten(tmp_path: Path, tiny: Path) -> None:
    """Memory is kept for the files that are there, not for all that ever were."""
    scanner = Scanner(Settings(models_dir=tmp_path))
    for number in range(5):
        path = tmp_path / f"{number}.gguf"
        shutil.copy(tiny, path)
        assert ids(scanner.scan()) == [path.name]
        path.unlink()
    assert ids(scanner.scan()) == []
    assert scanner._known == {}


# Settings.


def test_options_come_from_the_models_entry_then_from_the_daemon(tmp_path: Path, tiny: Path) -> None:
    """An entry may be keyed by id or stem; what it does not say is the daemon's."""
    for name in ("a.gguf", "b.gguf", "c.gguf"):
        shutil.copy(tiny, tmp_path / name)
    scan = look(
        tmp_path,
        llama_ctx=2048,
        llama_slots=2,
        llama_threads=3,
        llama_mmap=False,
        llama_prefix_cells=512,
        isolation=Isolation.THREAD,
        models={
            "a.gguf": ModelSettings(llama_ctx=512, llama_flash_attn=True, pinned=True, ttl=60.0),
            "c": ModelSettings(llama_prefix_cells=0, isolation=Isolation.PROCESS),
            "b": ModelSettings(
                llama_kv_type="q8_0", llama_mmap=True, preload=True, llama_ngl=0, max_queue_depth=3
            ),
            "typo": ModelSettings(pinned=True),
        },
    )
    a, b, c = scan.catalog.models.values()
    common = LoadOptions(ctx=2048, slots=2, threads=3, mmap=False, prefix_cells=512)
    assert c.options == msgspec.structs.replace(common, prefix_cells=0, isolation=Isolation.PROCESS)
    assert a.options == msgspec.structs.replace(common, ctx=512, flash_attn=True)
    assert b.options == msgspec.structs.replace(common, mmap=True, kv_type="q8_0", gpu_layers=0)
    assert (a.pinned, a.ttl_s, a.preload) == (True, 60.0, False)
    assert (b.pinned, b.ttl_s, b.preload) == (False, None, True)
    assert (a.max_queue_depth, b.max_queue_depth) == (None, 3)
    assert scan.unmatched == ("typo",)


def test_aliases_resolve_and_several_entries_of_one_model_unite(tmp_path: Path, tiny: Path) -> None:
    """Id before stem before alias: what the stronger entry says stays, the rest is added."""
    shutil.copy(tiny, tmp_path / "a.gguf")
    scan = look(
        tmp_path,
        default_model="chat",
        models={
            "friend": ModelSettings(preload=True, llama_ctx=1),
            "a": ModelSettings(aliases=("chat", "talk"), llama_ctx=1024, llama_slots=2),
            "a.gguf": ModelSettings(aliases=("friend",), llama_ctx=512),
        },
    )
    spec = scan.catalog.models["a.gguf"]
    assert spec.aliases == ("a", "friend", "chat", "talk")
    assert (spec.options.ctx, spec.options.slots, spec.preload) == (512, 2, True)
    assert scan.catalog.default == "a.gguf"
    assert scan.unmatched == ()
    assert scan.entries["a.gguf"].llama_slots == 2


def test_a_default_model_that_is_not_there_is_a_problem(tmp_path: Path, tiny: Path) -> None:
    """No other model takes its place, and a sentence tells of it."""
    shutil.copy(tiny, tmp_path / "a.gguf")
    scan = look(tmp_path, default_model="b")
    assert scan.catalog.default is None
    assert scan.problems == ("default_model 'b' names no model",)


def test_without_a_name_in_its_metadata_a_model_is_called_by_its_stem(tmp_path: Path) -> None:
    """`general.name` is optional."""
    tiny_gguf.write_model(tmp_path / "plain.gguf", name=None)
    assert look(tmp_path).catalog.models["plain.gguf"].name == "plain"


def test_the_fake_engine_takes_any_file(tmp_path: Path, tiny: Path) -> None:
    """Facts where there are some, no error where the contents are no GGUF."""
    shutil.copy(tiny, tmp_path / "real.gguf")
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "text.gguf").write_text("hello")
    (tmp_path / "gone.gguf").symlink_to("/nowhere")
    catalog = look(tmp_path, engine=EngineKind.FAKE).catalog
    assert catalog.models["real.gguf"].facts is not None
    text = catalog.models["text.gguf"]
    assert (text.facts, text.error, text.footprint.total) == (None, None, 5)
    assert catalog.models["empty.gguf"].error is None
    assert catalog.models["gone.gguf"].error is not None


def test_quantization_shows_in_the_footprint(tmp_path: Path) -> None:
    """Fewer bits, less memory; the estimate is that of the model's own options."""
    for name, quant in (("f32", gguf.GGMLQuantizationType.F32), ("q8", gguf.GGMLQuantizationType.Q8_0)):
        tiny_gguf.write_model(tmp_path / f"{name}.gguf", quant=quant)
    models = look(tmp_path).catalog.models
    assert models["q8.gguf"].footprint.weights < models["f32.gguf"].footprint.weights


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Let this process open no more files meanwhile."""
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("where", ["", "below"])
def test_want_of_descriptors_takes_no_model_away(tmp_path: Path, tiny: Path, where: str) -> None:
    """A look that fails for our own lack says so, and what was known stays; the next look is as ever."""
    (tmp_path / where).mkdir(exist_ok=True)
    shutil.copy(tiny, tmp_path / where / "a.gguf")
    scanner = Scanner(Settings(models_dir=tmp_path))
    before = scanner.scan()
    with no_descriptor_left():
        meanwhile = scanner.scan()
    assert ids(before) == ids(meanwhile)
    assert len(ids(before)) == 1
    assert "raise the limits of open files" in str(meanwhile.error)
    assert scanner.scan() == before
