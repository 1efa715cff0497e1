# SPDX-License-Identifier: GPL-3.0-only
"""Generate with a bare loop over llama.cpp's low-level bindings: the ceiling that modeld is measured against.

N sequences in one context, a KV cache each, as modeld and llama-server have them here; prompts in full
batches, then one `llama_decode` a step for all; greedy, through a C sampler chain that bans
end-of-generation tokens. No HTTP, no scheduler, no text. A program of its own, which reads commands as JSON
lines from stdin and answers each with one line on stdout:

    {"open": {"model", "slots", "ctx", "threads", "ubatch"}}  ->  {"version", "system"}
    {"single": [word, ...]}                                   ->  those that are one token after a blank
    {"run": {"prompts": [...], "max_tokens"}}                 ->  streams, in the form of load_generator.py
"""

from __future__ import annotations

import ctypes
import json
import math
import sys
import time
from collections.abc import Iterator
from typing import Any

from llama_cpp import llama_cpp as lib

_NO_LOG = lib.llama_log_callback(lambda _level, _text, _data: None)


class Loop:
    """A model, a context of `slots` sequences, and one sampler chain for each."""

    def __init__(self, *, model: str, slots: int, ctx: int, threads: int, ubatch: int) -> None:
        lib.llama_log_set(_NO_LOG, None)
        lib.llama_backend_init()
        params = lib.llama_model_default_params()
        self.model = lib.llama_model_load_from_file(model.encode(), params)
        if not self.model:
            sys.exit(f"llama.cpp cannot load {model}")
        self.vocab = lib.llama_model_get_vocab(self.model)
        wanted = lib.llama_context_default_params()
        wanted.n_ctx = ctx
        wanted.n_batch = wanted.n_ubatch = self.batch_tokens = max(ubatch, slots)
        wanted.n_seq_max = wanted.n_outputs_max = slots
        wanted.n_threads = wanted.n_threads_batch = threads
        wanted.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        wanted.kv_unified = False
        wanted.no_perf = True
        context = lib.llama_init_from_model(self.model, wanted)
        if not context:
            sys.exit(f"llama.cpp cannot make a context of {ctx} cells for {slots} sequences")
        self.context: int = context
        memory = lib.llama_get_memory(self.context)
        if not memory:
            sys.exit("llama.cpp gives this model no KV cache")
        self.memory: int = memory
        self.batch = lib.llama_batch_init(self.batch_tokens, 0, 1)
        self.chains = [self._chain() for _ in range(slots)]

    def _chain(self) -> Any:
        size = lib.llama_vocab_n_tokens(self.vocab)
        ends = [token for token in range(size) if lib.llama_vocab_is_eog(self.vocab, token)]
        params = lib.llama_sampler_chain_default_params()
        params.no_perf = True
        chain = lib.llama_sampler_chain_init(params)
        bias = (lib.llama_logit_bias * len(ends))(*(lib.llama_logit_bias(end, -math.inf) for end in ends))
        if ends:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_logit_bias(size, len(ends), bias))
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_greedy())
        return chain

    def tokenize(self, text: str) -> list[int]:
        """Return the tokens of a prompt, as modeld makes them."""
        data = text.encode()
        room = (ctypes.c_int32 * (len(data) + 16))()
        count = lib.llama_tokenize(self.vocab, data, len(data), room, len(room), True, True)
        return list(room[:count])

    def piece(self, token: int) -> bytes:
        """Return the bytes of a token."""
        buffer = ctypes.create_string_buffer(256)
        length = lib.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, False)
        return buffer.raw[: max(length, 0)]

    def single(self, words: list[str]) -> list[str]:
        """Return the words that are one token each when a blank stands before them."""
        base = len(self.tokenize(" a a")) - len(self.tokenize(" a"))
        return [
            word
            for word in words
            if len(self.tokenize(f" a {word}")) - len(self.tokenize(" a")) == 1 and base == 1
        ]

    def run(self, prompts: list[str], max_tokens: int) -> list[dict[str, Any]]:
        """Generate `max_tokens` for each prompt, all together.

        Time starts before the prompts are tokenised, as it does for a server.
        """
        lib.llama_memory_clear(self.memory, False)
        began = time.perf_counter()
        inputs = [self.tokenize(prompt) for prompt in prompts]
        pending = [0] * len(prompts)
        outputs: list[list[int]] = [[] for _ in prompts]
        times: list[list[float]] = [[] for _ in prompts]
        now = 0.0
        for seq, row, decoded in self._prefill(inputs):
            if decoded:
                now = time.perf_counter() - began
            pending[seq] = lib.llama_sampler_sample(self.chains[seq], self.context, row)
            outputs[seq].append(pending[seq])
            times[seq].append(now)
        positions = [len(tokens) for tokens in inputs]
        batch, everyone = self.batch, range(len(prompts))
        for _ in range(max_tokens - 1):
            batch.n_tokens = len(prompts)
            for seq in everyone:
                self._put(seq, pending[seq], positions[seq], seq, wanted=True)
                positions[seq] += 1
            self._decode()
            for seq in everyone:
                pending[seq] = lib.llama_sampler_sample(self.chains[seq], self.context, seq)
                outputs[seq].append(pending[seq])
            now = time.perf_counter() - began
            for seq in everyone:
                times[seq].append(now)
        return [self._stream(inputs[seq], outputs[seq], times[seq]) for seq in everyone]

    def _prefill(self, inputs: list[list[int]]) -> Iterator[tuple[int, int, bool]]:
        """Decode the prompts in full batches; yield (sequence, row, first of its batch) for each."""
        todo = [
            (seq, at, token, at == len(tokens) - 1)
            for seq, tokens in enumerate(inputs)
            for at, token in enumerate(tokens)
        ]
        for begin in range(0, len(todo), self.batch_tokens):
            part = todo[begin : begin + self.batch_tokens]
            self.batch.n_tokens = len(part)
            for row, (seq, at, token, last) in enumerate(part):
                self._put(row, token, at, seq, wanted=last)
            self._decode()
            ends = [(seq, row) for row, (seq, _, _, last) in enumerate(part) if last]
            for order, (seq, row) in enumerate(ends):
                yield seq, row, order == 0

    def _put(self, row: int, token: int, position: int, seq: int, *, wanted: bool) -> None:
        batch = self.batch
        batch.token[row] = token
        batch.pos[row] = position
        batch.n_seq_id[row] = 1
        batch.seq_id[row][0] = seq
        batch.logits[row] = wanted

    def _decode(self) -> None:
        result = lib.llama_decode(self.context, self.batch)
        if result != 0:
            sys.exit(f"llama_decode returned {result} for {self.batch.n_tokens} tokens")

    def _stream(self, tokens: list[int], output: list[int], times: list[float]) -> dict[str, Any]:
        text = b"".join(self.piece(token) for token in output).decode(errors="replace")
        return {
            "status": 200,
            "sent": 0.0,
            "times": times,
            "tokens": len(output),
            "prompt_tokens": len(tokens),
            "text": text,
            "finish": "length",
            "error": None,
        }


def main() -> None:
    """Answer commands until stdin ends."""
    loop: Loop | None = None
    for line in sys.stdin:
        command = json.loads(line)
        if "open" in command:
            loop = Loop(**command["open"])
            system = lib.llama_print_system_info().decode().strip()
            answer: Any = {"version": lib.llama_version().decode(), "system": system}
        elif loop is None:
            sys.exit("open a model first")
        elif "single" in command:
            answer = loop.single(command["single"])
        else:
            answer = loop.run(**command["run"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
