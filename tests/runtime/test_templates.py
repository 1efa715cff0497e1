# SPDX-License-Identifier: GPL-3.0-only
"""Chat templates of models that nobody loaded."""

from __future__ import annotations

from pathlib import Path

from support.tiny_gguf import write_model

from modeld.domain.model import ModelSpec
from modeld.engine.llama.gguf.facts import read_facts
from modeld.engine.llama.prompts.template import MAX_SOURCE
from modeld.runtime.daemon import KEPT, ChatTemplates, read_template

LONG = "{# " + "x" * 5000 + " #}{{ messages }}é"


def spec_of(path: Path) -> ModelSpec:
    info = path.stat()
    return ModelSpec(
        id=path.name,
        path=str(path),
        size_bytes=info.st_size,
        modified_ns=info.st_mtime_ns,
        facts=read_facts(path),
    )


def test_a_template_is_read_whole(tmp_path: Path) -> None:
    """Also a long one; none, one that is too long to be used, and a file that is none are empty."""
    assert read_template(write_model(tmp_path / "long.gguf", chat_template=LONG)) == LONG
    assert read_template(write_model(tmp_path / "none.gguf", chat_template=None)) == ""
    huge = "x" * (MAX_SOURCE + 1)
    assert read_template(write_model(tmp_path / "huge.gguf", chat_template=huge)) == ""
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    assert read_template(tmp_path / "bad.gguf") == ""
    assert read_template(tmp_path / "gone.gguf") == ""


async def test_templates_are_read_once_for_each_version_of_a_file(tmp_path: Path) -> None:
    """What is remembered is told when the file has gone; a new version of it is read again."""
    templates = ChatTemplates()
    path = write_model(tmp_path / "m.gguf", chat_template="{{ one }}")
    first = spec_of(path)
    assert await templates.of(first) == "{{ one }}"
    write_model(path, chat_template="{{ another }}")
    assert await templates.of(first) == "{{ one }}"
    assert await templates.of(spec_of(path)) == "{{ another }}"
    bare = spec_of(write_model(tmp_path / "bare.gguf", chat_template=None))
    assert await templates.of(bare) == ""
    for number in range(KEPT):
        other = write_model(tmp_path / f"{number}.gguf", chat_template=f"{{{{ x{number} }}}}")
        assert await templates.of(spec_of(other)) == f"{{{{ x{number} }}}}"
    path.unlink()
    assert await templates.of(first) == "", "only so many are remembered"
