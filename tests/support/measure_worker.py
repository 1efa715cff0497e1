# SPDX-License-Identifier: GPL-3.0-only
"""Program: loads a model as a worker process does, fills its context by whole ubatches, tells what it holds.

python tests/support/measure_worker.py MODEL.gguf '{"ctx": 2048, "slots": 1}'

Prints a JSON object in bytes: `ready` after the load, `first` when the context it begins with is full,
`full` when also that is full which it may change to; each with `pss` and `rss` of this process (proc(5),
smaps_rollup). It decodes by itself: the engine makes its chunks smaller when the machine is slow.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec

import modeld.worker.child  # noqa: F401  # what a worker has in memory
from modeld.domain.model import LoadOptions
from modeld.domain.request import EmbedRequest, GenerateRequest
from modeld.engine.llama.engine import LlamaEngine, load
from modeld.engine.llama.footprint import EMBED_SEQUENCES
from modeld.engine.llama.gguf.facts import read_facts
from modeld.engine.llama.native.batch import Batch
from modeld.engine.llama.native.library import lib
from modeld.engine.protocol import LoadSpec


def bytes_held() -> dict[str, int]:
    """Return what this process holds, bytes."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
    return {"pss": sizes["Pss"], "rss": sizes["Rss"]}


def decode(model, batch: Batch, begin: int, sequence: int, count: int) -> None:
    """Decode so many tokens of a sequence from position `begin` on."""
    batch.clear()
    tokens = [(begin + place) % 100 + 5 for place in range(count)]
    batch.add_chunk(tokens, begin, sequence, wants_logits=True)
    if lib.llama_decode(model.context, batch.struct) != 0:
        sys.exit("llama_decode failed")


def fill(model) -> None:
    """Fill one sequence of the layout to its end."""
    batch = Batch(model.batch_tokens, model.sequences)
    lib.llama_memory_clear(model.memory, False)
    count = min(batch.capacity, model.layout.share)
    for begin in range(0, model.layout.share - count + 1, count):
        decode(model, batch, begin, 0, count)


def serve(engine, *requests) -> None:
    """Serve requests to their end: what a first one makes resident is part of what a worker holds."""
    for number, request in enumerate(requests):
        engine.submit(number, request)
    while engine.busy:
        engine.step()


def main() -> None:
    """Print what it holds."""
    path, options = sys.argv[1], msgspec.json.decode(sys.argv[2], type=LoadOptions)
    facts = read_facts(Path(path))
    spec = LoadSpec(model_id="m", path=path, options=options, facts=facts)
    engine = load(spec, lambda _fraction: True)
    told = {"ready": bytes_held()}
    model = engine._model
    if isinstance(engine, LlamaEngine):
        asked = GenerateRequest(prompt="once upon a time there was", max_tokens=8, ignore_eos=True)
        serve(engine, *[asked] * options.slots)
        fill(model)
        told["first"] = bytes_held()
        if not model.layout.unified and options.kv_unified is None:
            model.unify()
            fill(model)
    else:
        inputs = tuple(tuple(range(model.batch_tokens // EMBED_SEQUENCES)) for _ in range(EMBED_SEQUENCES))
        serve(engine, EmbedRequest(inputs=inputs), EmbedRequest(inputs=(tuple(range(engine.info.context)),)))
    told["full"] = bytes_held()
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
