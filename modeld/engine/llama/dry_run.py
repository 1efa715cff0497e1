# SPDX-License-Identifier: GPL-3.0-only
"""Measure a model's memory needs by llama.cpp itself: load it without allocating (`no_alloc`).

llama.cpp reads the header, builds the vocabulary and the graphs, chooses the buffers and computes their
sizes, but allocates nothing of them. To be called in a process of its own (`worker.oneshot`): a bad file
can end the process, and the overhead is read off this very process, which has the same libraries and
tables in memory as a worker with this model.

| part     | where it comes from                                                                   |
|----------|---------------------------------------------------------------------------------------|
| weights  | buffers by llama.cpp's account; where the file stays mapped, what is rearranged for   |
|          | the CPU counts twice, as a copy and as pages of the file; tensors of LoRA adapters    |
| kv       | the cells and recurrent states, by the same account                                   |
| compute  | what becomes resident while it serves: the graphs' buffers by the same account; the   |
|          | CPU threads' work area, which llama.cpp allocates with the first decode and tells     |
|          | nowhere (the largest operand that is converted for a product), and what malloc keeps  |
|          | of smaller ones before it; what a first decode touches (`served_bytes`); of an        |
|          | embedding model the rows of a whole batch                                             |
| overhead | resident set of this process (of a thread: its growth), adapters taken out; the rows  |
|          | of logits by its log, which llama.cpp clears, so that they are resident from the      |
|          | beginning (guesses and embeddings alongside streams may raise them to 32)                |

Of a KV cache that is split first and may become one (`kv_unified` None), both are asked for.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from modeld.domain.model import MIB, DeviceUse, DryRun, Footprint, Isolation, LoadOptions, ModelFacts
from modeld.engine.llama.embedding.engine import EmbeddingModel
from modeld.engine.llama.footprint import (
    embedding_rows,
    estimate,
    kept_bytes,
    served_bytes,
    uses_flash_attention,
)
from modeld.engine.llama.native.ggml import base
from modeld.engine.llama.native.library import capture, initialise, lib, loaded
from modeld.engine.llama.native.model import Model
from modeld.engine.llama.native.vocab import Vocab
from modeld.engine.protocol import LoadSpec

# ----------------------------------------------------------------------
# llama.cpp's own account of the buffers of a context: how many bytes on which device, and for what.
#
# The account is a C++ function that the library exports and the C API leaves out; it returns a
# `std::map`, whose tree is walked here. That is for a process that may fail in any way (`dry_run`), with
# the very library that the bindings are pinned to, and what it says is held against llama.cpp's log. A
# library without it (another compiler, another version) is no error: then the log alone is read, in
# hundredths of a MiB, and what the weights take per buffer is not known.

_SYMBOL = "_Z26llama_get_memory_breakdownPK13llama_context"
_TOLERANCE = 64 * 1024
"""Bytes by which the account may differ from the log: that is rounded to hundredths of a MiB a line."""
_MOST_BUFFERS = 256

_KV = re.compile(r"^llama_(?:kv_cache|memory_recurrent)\w*: size =\s*([\d.]+) MiB")
_KV_PLACE = re.compile(r"\s(\S+)\s+(?:KV|RS) buffer size =")
_COMPUTE = re.compile(r"\s(\S+)\s+compute buffer size =\s*([\d.]+) MiB")
_OUTPUT = re.compile(r"\s(\S+)\s+output buffer size =\s*([\d.]+) MiB")


class Buffer(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes in one kind of buffer (`CPU`, `CPU_REPACK`, `CUDA0`), by cause."""

    kind: str
    device: str
    weights: int = 0
    kv: int = 0
    compute: int = 0


class _Map(ctypes.Structure):
    """`std::map` of libstdc++: the comparison, the head of the tree, the number of its nodes."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("compare", "color", "root", "left", "right", "count")]
    root: int
    count: int


class _Node(ctypes.Structure):
    """A node of the tree: its links, then the key (a buffer type) and the three sizes."""

    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("color", "parent", "left", "right", "type")),
        *((name, ctypes.c_size_t) for name in ("weights", "kv", "compute")),
    ]
    left: int
    right: int
    type: int
    weights: int
    kv: int
    compute: int


def buffers_of(context: int, log: Iterable[str]) -> tuple[Buffer, ...] | None:
    """Return the buffers of a context; None where the library does not tell, or its log says otherwise.

    `log`: the lines llama.cpp wrote when it made the context.
    """
    function = getattr(loaded, _SYMBOL, None)
    if function is None:
        return None
    function.restype, function.argtypes = _Map, [ctypes.c_void_p]
    tree = function(context)
    if tree.count > _MOST_BUFFERS:
        return None
    found = tuple(_buffer(node) for node in _walk(tree.root))
    said = read_log(log)
    kv, compute = sum(it.kv for it in found), sum(it.compute for it in found)
    if max(abs(kv - said.kv), abs(compute - said.compute)) > _TOLERANCE:
        return None
    return found


def _walk(address: int) -> Iterator[_Node]:
    if address:
        node = _Node.from_address(address)
        yield from _walk(node.left)
        yield node
        yield from _walk(node.right)


def _buffer(node: _Node) -> Buffer:
    ggml = base()
    device = ggml.ggml_backend_buft_get_device(node.type)
    return Buffer(
        kind=ggml.ggml_backend_buft_name(node.type).decode(errors="replace"),
        device=ggml.ggml_backend_dev_name(device).decode(errors="replace") if device else "CPU",
        weights=node.weights,
        kv=node.kv,
        compute=node.compute,
    )


class DryRunLog(msgspec.Struct, frozen=True, kw_only=True):
    """What the log says of a context, bytes; `places`: where its buffers are."""

    kv: int = 0
    compute: int = 0
    output: int = 0
    places: tuple[str, ...] = ()


def read_log(log: Iterable[str]) -> DryRunLog:
    """Read the sizes out of llama.cpp's lines for one context. Those of several buffers are added."""
    kv = compute = output = 0.0
    places: dict[str, None] = {}
    for line in log:
        if found := _KV.search(line):
            kv += float(found[1])
        elif found := _KV_PLACE.search(line):
            places[found[1]] = None
        elif found := _COMPUTE.search(line):
            compute += float(found[2])
            places[found[1]] = None
        elif found := _OUTPUT.search(line):
            output += float(found[2])
    return DryRunLog(
        kv=int(kv * MIB), compute=int(compute * MIB), output=int(output * MIB), places=tuple(places)
    )


# ----------------------------------------------------------------------

_INFO = 2
_LINES = 4096
_Q8_0 = 34 / 32
"""Bytes a number of an operand that is converted for a product with quantised weights."""
CPU = "CPU"


class _Unallocated(Model):
    """A model of which only the outlines are loaded."""

    def _load_params(self, options: LoadOptions) -> Any:
        params = super()._load_params(options)
        params.no_alloc = True
        params.load_mode = lib.LLAMA_LOAD_MODE_NONE  # With mmap llama.cpp aborts.
        return params


class _UnallocatedEmbedding(_Unallocated, EmbeddingModel):
    """The same of an embedding model."""


class _Accounting(msgspec.Struct, frozen=True):
    """The buffers of one context, and what is not among them."""

    buffers: tuple[Buffer, ...]
    served: int
    """What else becomes resident while it serves, bytes, on the CPU."""
    rows: int
    """Of logits, bytes."""


def dry_run(spec: LoadSpec, facts: ModelFacts, resident_bytes: Callable[[], int]) -> DryRun:
    """Ask llama.cpp what a model takes with these options. Takes 0.1 s and some MiB for 135M.

    `resident_bytes` tells the resident set of this process.

    Raises: ModelFailed when it cannot be loaded so.
    """
    initialise()
    before = resident_bytes()
    kind = _UnallocatedEmbedding if facts.pooling else _Unallocated
    with capture(_INFO, _LINES) as log:
        model = kind(spec, lambda _fraction: True, facts.pooling)
    try:
        accounts = [_accounting(model, spec.options, facts, [line for _, line in log.lines])]
        if not facts.pooling and not model.layout.unified and spec.options.kv_unified is None:
            with capture(_INFO, _LINES) as log:
                model.unify()
            accounts.append(_accounting(model, spec.options, facts, [line for _, line in log.lines]))
        vocab = Vocab(model.vocab)  # Its tables are part of what a worker holds.
        after = resident_bytes()
    finally:
        model.close()
    del vocab
    lora = sum(adapter.bytes for adapter in spec.options.lora)
    overhead = after - lora - accounts[-1].rows  # Its context is there, and the rows are allocated.
    overhead = max(0, overhead - (before if spec.options.isolation is Isolation.THREAD else 0))
    footprints = [_footprint(account, spec.options, lora, overhead) for account in accounts]
    place = max(range(len(footprints)), key=lambda place: footprints[place].total)
    devices = _devices(accounts[place], spec.options, lora)
    return DryRun(peak=footprints[place], before_use=footprints[0], devices=devices)


def _accounting(model: Model, options: LoadOptions, facts: ModelFacts, log: list[str]) -> _Accounting:
    buffers = buffers_of(model.context, log)
    said = read_log(log)
    if buffers is None:
        outline = estimate(facts, options)
        place = next((place for place in said.places if not place.startswith(CPU)), CPU)
        buffers = (
            Buffer(kind=place, device=place, weights=outline.weights, kv=said.kv, compute=said.compute),
        )
    on_cpu = any(buffer.kv for buffer in buffers if buffer.device == CPU)
    served = served_bytes(facts, options) + on_cpu * _work(model, options, facts)
    if facts.pooling:
        served += max(0, embedding_rows(facts, options) - said.output)
    return _Accounting(buffers, served, said.output)


def _work(model: Model, options: LoadOptions, facts: ModelFacts) -> int:
    """The largest operand of a product, as the CPU's threads convert it: of a ubatch, once a graph.

    That of scores grows with the depth of a context, step by step, and malloc keeps what small steps leave.
    """
    widest = max(facts.feed_forward_length, facts.embedding_length)
    products = int(model.batch_tokens * widest * _Q8_0)
    if facts.pooling or not any(facts.kv_heads) or uses_flash_attention(options) or options.kv_type == "f32":
        return products
    cells = model.cells if model.layout.unified else model.layout.share
    step = model.batch_tokens * min(model.batch_tokens, cells) * facts.heads * 2
    scores = model.batch_tokens * cells * facts.heads * 2
    return max(products, scores) + kept_bytes(step, scores)


def _footprint(account: _Accounting, options: LoadOptions, lora: int, overhead: int) -> Footprint:
    return Footprint(
        weights=sum(_weights(buffer, options) for buffer in account.buffers) + lora,
        kv=sum(buffer.kv for buffer in account.buffers),
        compute=sum(buffer.compute for buffer in account.buffers) + account.served,
        overhead=overhead + account.rows,
    )


def _weights(buffer: Buffer, options: LoadOptions) -> int:
    """Bytes of a buffer's weights; what is rearranged out of a mapped file stays there, too."""
    mapped = options.mmap and lib.llama_supports_mmap()
    copied = buffer.device == CPU and buffer.kind != CPU
    return buffer.weights * (2 if mapped and copied else 1)


def _devices(account: _Accounting, options: LoadOptions, lora: int) -> tuple[DeviceUse, ...]:
    names = dict.fromkeys((CPU, *(buffer.device for buffer in account.buffers)))
    uses: list[DeviceUse] = []
    for name in names:
        own = [buffer for buffer in account.buffers if buffer.device == name]
        host = name == CPU
        uses.append(
            DeviceUse(
                device=name,
                weights=sum(_weights(buffer, options) for buffer in own) + (lora if host else 0),
                kv=sum(buffer.kv for buffer in own),
                compute=sum(buffer.compute for buffer in own) + (account.served if host else 0),
            )
        )
    return tuple(use for use in uses if use.weights or use.kv or use.compute)
