# SPDX-License-Identifier: GPL-3.0-only
"""The chat template in a GGUF file's metadata, without loading the model. Blocks on the disk."""

from __future__ import annotations

from pathlib import Path

from modeld.engine.llama.gguf_cursor import GgufError
from modeld.engine.llama.gguf_header import read_header
from modeld.engine.llama.template import MAX_SOURCE

KEY = "tokenizer.chat_template"
_MOST_BYTES = 4 * MAX_SOURCE
"""What so many characters take at the most."""


def read_template(path: Path) -> str:
    """Return the template; empty where the file has none, has one that is not used, or cannot be read."""
    try:
        header = read_header(path, keeps={KEY: _MOST_BYTES})
    except (GgufError, OSError):
        return ""
    text = header.metadata.get(KEY)
    if not isinstance(text, str) or header.lengths.get(KEY, 0) > _MOST_BYTES or len(text) > MAX_SOURCE:
        return ""
    return text
