# SPDX-License-Identifier: GPL-3.0-only
"""Program: loads a model as the engine does, fills one context, prints by how many bytes its process grew.

python tests/support/resident_set.py MODEL.gguf '{"ctx": 2048, "slots": 1}'
"""

from __future__ import annotations

import sys
from pathlib import Path

import llama_cpp
import msgspec

from modeld.domain.model import LoadOptions
from modeld.engine.llama.kv.layout import unified_layout
from modeld.engine.llama.native.params import context_params, model_params


def resident_set() -> int:
    """Return the resident set of this process, bytes (proc(5), statm)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


def main() -> None:
    """Print the growth."""
    path, options = sys.argv[1], msgspec.json.decode(sys.argv[2], type=LoadOptions)
    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, None)
    llama_cpp.llama_backend_init()
    before = resident_set()
    model = llama_cpp.llama_model_load_from_file(path.encode(), model_params(options))
    layout = unified_layout(options, llama_cpp.llama_model_n_ctx_train(model))
    params = context_params(options, layout)
    context = llama_cpp.llama_init_from_model(model, params)
    cells, chunk = llama_cpp.llama_n_ctx(context), llama_cpp.llama_n_ubatch(context)
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    for begin in range(0, cells - chunk + 1, chunk):
        batch = llama_cpp.llama_batch_init(chunk, 0, 1)
        batch.n_tokens = chunk
        for place in range(chunk):
            batch.token[place] = (begin + place) % vocabulary
            batch.pos[place] = begin + place
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = 0
            batch.logits[place] = place == chunk - 1
        if llama_cpp.llama_decode(context, batch) != 0:
            sys.exit("llama_decode failed")
        llama_cpp.llama_batch_free(batch)
    sys.stdout.write(f"{resident_set() - before}\n")


if __name__ == "__main__":
    main()
