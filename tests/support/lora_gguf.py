# SPDX-License-Identifier: GPL-3.0-only
"""Writes LoRA adapters with random halves, with the `gguf` package; sound ones and all kinds of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
from support.tiny_gguf import EMBEDDING, finish

QUERY = "blk.0.attn_q.weight"
RANK = 8


def halves(
    inputs: int, outputs: int, *, rank: int = RANK, size: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Two halves for a weight with so many inputs and outputs, the same every time."""
    generator = np.random.default_rng(inputs + outputs + rank)
    a = generator.standard_normal((rank, inputs), dtype=np.float32) * size
    b = generator.standard_normal((outputs, rank), dtype=np.float32) * size
    return a, b


def write_lora(
    path: Path,
    tensors: Mapping[str, np.ndarray] | None = None,
    *,
    architecture: str = "llama",
    more: Callable[[gguf.GGUFWriter], None] | None = None,
    quant: gguf.GGMLQuantizationType | None = None,
    **keys: str | float | None,
) -> Path:
    """Write an adapter: by default a pair for the tiny model's queries.

    `keys` replace metadata, written with `_` for dots; None leaves one out. `more` adds to the file.
    """
    if tensors is None:
        tensors = pair_of(QUERY, EMBEDDING, EMBEDDING)
    writer = gguf.GGUFWriter(path, architecture)
    metadata = {"general_type": "adapter", "adapter_type": "lora", "adapter_lora_alpha": 16.0} | keys
    for key, value in metadata.items():
        name = key.replace("_", ".")
        if isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif value is not None:
            writer.add_uint32(name, value)
    if more is not None:
        more(writer)
    for name, values in tensors.items():
        if quant is None:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quantize(values, quant), raw_dtype=quant)
    return finish(writer, path)


def pair_of(
    weight: str, inputs: int, outputs: int, *, rank: int = RANK, size: float = 0.5
) -> dict[str, np.ndarray]:
    """The two tensors for one weight."""
    a, b = halves(inputs, outputs, rank=rank, size=size)
    return {f"{weight}.lora_a": a, f"{weight}.lora_b": b}
