# SPDX-License-Identifier: GPL-3.0-only
"""One model and its context in llama.cpp: load, abort a load, free.

Owns the two pointers and everything C holds an address of. Knows nothing of requests.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from modeld.domain.catalog import parse_split
from modeld.domain.model import Adapter, LoadOptions
from modeld.engine.llama.footprint import output_rows
from modeld.engine.llama.gguf.adapter import adapter_facts, check_fit
from modeld.engine.llama.gguf.facts import GgufError, Header, read_header
from modeld.engine.llama.kv.layout import Layout, first_layout, unified_layout
from modeld.engine.llama.native.library import LogCapture, capture, initialise, lib
from modeld.engine.llama.native.params import context_params, model_params
from modeld.engine.protocol import LoadAborted, LoadSpec, OnProgress
from modeld.errors import ModelFailed, OutOfMemory

# ----------------------------------------------------------------------
# The LoRA adapters of one loaded model: checks their files, loads them, puts them on a context.


class Adapters:
    """Loaded adapters. llama.cpp frees them together with their model.

    They have to be there before a context is made: its graph has room for those that its model has then.
    """

    def __init__(self, model_id: str, path: str, model: int, wanted: Sequence[Adapter]) -> None:
        """Load them into the model at the address `model`, whose file (or first part) is `path`.

        Raises: ModelFailed with the reason. What was loaded till then is freed with the model.
        """
        headers = _model_headers(model_id, Path(path)) if wanted else []
        self._scales = [adapter.scale for adapter in wanted]
        self._pointers = [_load(model_id, headers, model, Path(adapter.path)) for adapter in wanted]

    def put_on(self, context: int) -> None:
        """Use them in a context from its next decode on."""
        count = len(self._pointers)
        if count:
            pointers = (lib.llama_adapter_lora_p_ctypes * count)(*self._pointers)
            scales = (ctypes.c_float * count)(*self._scales)
            lib.llama_set_adapters_lora(context, pointers, count, scales)


def _model_headers(model_id: str, first: Path) -> list[Header]:
    """Read the headers of all parts. They were read before, but a file may change at any time."""
    split = parse_split(first.name)
    names = [first.name] if split is None else [split.name_of(part) for part in range(1, split.parts + 1)]
    try:
        return [read_header(first.with_name(name)) for name in names]
    except (GgufError, OSError) as error:
        raise ModelFailed(f"{model_id} cannot be compared with its LoRA adapters: {error}") from error


def _load(model_id: str, headers: Sequence[Header], model: int, path: Path) -> Any:
    """Return llama.cpp's pointer to the adapter (the bindings have it as one to a pointer)."""
    try:
        architecture = str(headers[0].metadata.get("general.architecture", ""))
        check_fit(adapter_facts(read_header(path)), architecture, headers)
    except GgufError as error:
        raise ModelFailed(f"{model_id}: its LoRA adapter {path.name} cannot be used: {error}") from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ModelFailed(f"{model_id}: its LoRA adapter {path} cannot be read: {reason}") from error
    with capture() as log:
        pointer = lib.llama_adapter_lora_init(model, os.fsencode(path))
    if not pointer:  # NULL, which is not None
        raise ModelFailed(
            f"{model_id}: llama.cpp refuses its LoRA adapter {path.name}: {log.tell() or 'no reason given'}"
        )
    return pointer


# ----------------------------------------------------------------------

_DESCRIPTION_BYTES = 256


_NO_MEMORY = re.compile(
    r"failed to allocate|unable to allocate|out of (\w+ )?memory|OutOf(Device|Host)Memory|bad_alloc",
    re.IGNORECASE,
)
"""How llama.cpp and its backends say that memory ran out."""


def failure_of(log: LogCapture) -> type[ModelFailed]:
    """Return the class of the error that llama.cpp's last words tell of."""
    return OutOfMemory if any(_NO_MEMORY.search(line) for _, line in log.lines) else ModelFailed


class AbortFlag:
    """A flag that llama.cpp polls during a decode, and any thread may raise.

    llama.cpp asks some 500 times a step and from its own threads. A Python callback would fight
    for the interpreter's lock, so libc's `strlen` over a buffer of one byte and its end answers: 0
    while the byte is 0, else 1, which C reads as a bool.
    """

    def __init__(self) -> None:
        self._buffer = ctypes.create_string_buffer(2)
        self.address = ctypes.addressof(self._buffer)
        self.callback: Any = ctypes.cast(ctypes.CDLL(None).strlen, lib.ggml_abort_callback)

    @property
    def raised(self) -> bool:
        """Whether the flag is up."""
        return self._buffer[0] != b"\0"

    def up(self) -> None:
        """Make a running decode return soon, and the next one at once."""
        self._buffer[0] = b"\1"

    def down(self) -> None:
        """Let decodes run."""
        self._buffer[0] = b"\0"


class Model:
    """A loaded model with one context.

    Attributes:
      id: its name.
      pointer, context, memory, vocab: addresses for calls into llama.cpp.
      flag: aborts a running decode (on the CPU; on a GPU only the size of a batch bounds it).
      layout: of the context's KV cache; `unify` changes it.
      cells, sequences, batch_tokens: what the context has room for.
      rows: most rows of logits of one decode.
    """

    def __init__(self, spec: LoadSpec, on_progress: OnProgress, pooling: str = "") -> None:
        """Load. Raises LoadAborted, or ModelFailed with the last words of llama.cpp.

        `pooling`: of an embedding model, how it pools.
        """
        initialise()
        self.id = spec.model_id
        self.pooling = pooling
        self.flag = AbortFlag()
        self._options = spec.options
        self._threads = spec.options.threads
        self._pointer: int | None = None
        self._context: int | None = None
        try:
            self.pointer = self._pointer = self._load(spec, on_progress)
            self._refuse(spec)
            self.vocab = lib.llama_model_get_vocab(self.pointer)
            self.trained_context = lib.llama_model_n_ctx_train(self.pointer)
            self._adapters = Adapters(self.id, spec.path, self.pointer, spec.options.lora)
            self._ask_once_more(on_progress)
            self._open(first_layout(spec.options, self.trained_context, recurrent=self.recurrent))
        except BaseException:  # whatever it is: what llama.cpp holds is freed
            self.close()
            raise

    @property
    def unified_layout(self) -> Layout:
        """The layout that `unify` changes to."""
        return unified_layout(self._options, self.trained_context, recurrent=self.recurrent)

    def unify(self) -> None:
        """Replace the context by one whose slots share one KV cache. What the old one held is gone.

        The old one is freed before, so that no more memory is taken than one of them needs.
        Raises: ModelFailed; then there is no context, and all that is left is `close`.
        """
        lib.llama_free(self.context)
        self._context = None
        self._open(self.unified_layout)

    @contextlib.contextmanager
    def uninterrupted(self) -> Generator[None]:
        """Let no decode in here be aborted: one that turns keys to new positions begins again after that.

        What it had turned already would be turned twice, in every slot that shifted.
        """
        lib.llama_set_abort_callback(self.context, lib.ggml_abort_callback(), None)
        try:
            yield
        finally:
            if not self.recurrent:
                lib.llama_set_abort_callback(self.context, self.flag.callback, self.flag.address)

    def set_threads(self, threads: int) -> None:
        """Use so many CPU threads from the next decode on."""
        self._threads = threads
        lib.llama_set_n_threads(self.context, threads, threads)

    @property
    def recurrent(self) -> bool:
        """Whether a sequence has a state that cannot be wound back, in all or some layers."""
        return lib.llama_model_is_recurrent(self.pointer) or lib.llama_model_is_hybrid(self.pointer)

    @property
    def windowed(self) -> bool:
        """Whether some layers attend only to the last tokens."""
        return lib.llama_model_n_swa(self.pointer) > 0

    @property
    def weights_bytes(self) -> int:
        """Size of all tensors, bytes."""
        return lib.llama_model_size(self.pointer)

    @property
    def output_width(self) -> int:
        """Numbers of an embedding."""
        return int(lib.llama_model_n_embd_out(self.pointer))

    @property
    def description(self) -> str:
        """What llama.cpp calls it: architecture, size, quantisation."""
        buffer = ctypes.create_string_buffer(_DESCRIPTION_BYTES)
        lib.llama_model_desc(self.pointer, buffer, len(buffer))
        return buffer.value.decode("utf-8", errors="replace")

    @property
    def chat_template(self) -> str | None:
        """The chat template of the file, None if there is none."""
        text = lib.llama_model_chat_template(self.pointer, None)
        return None if not text else text.decode("utf-8", errors="replace")

    def close(self) -> None:
        """Free context and model, and with it its adapters. Idempotent."""
        if self._context is not None:
            lib.llama_free(self._context)
            self._context = None
        if self._pointer is not None:
            lib.llama_model_free(self._pointer)
            self._pointer = None

    def _load(self, spec: LoadSpec, on_progress: OnProgress) -> int:
        fault: list[Exception] = []
        given_up = False

        def progress(fraction: float, _user_data: object) -> bool:
            nonlocal given_up
            try:
                given_up = not on_progress(fraction)
            except Exception as error:  # noqa: BLE001  # no exception can pass through llama.cpp, which calls this: it is kept, and raised below
                fault.append(error)
                given_up = True
            return not given_up

        if not Path(spec.path).is_file():
            raise ModelFailed(f"{spec.model_id} could not be loaded: there is no file {spec.path}")
        params = self._load_params(spec.options)
        params.progress_callback = lib.llama_progress_callback(progress)
        with capture() as log:
            pointer = lib.llama_model_load_from_file(os.fsencode(spec.path), params)
        if fault or given_up:
            if pointer is not None:
                lib.llama_model_free(pointer)
            raise fault[0] if fault else LoadAborted(f"the load of {spec.model_id} was given up")
        if pointer is None:
            raise failure_of(log)(
                f"{spec.model_id} could not be loaded; llama.cpp says: {log.tell() or 'nothing'}. "
                f"Check that {spec.path} is complete and made for llama.cpp {lib.llama_version().decode()}"
            )
        return pointer

    def _load_params(self, options: LoadOptions) -> Any:
        return model_params(options)

    def _ask_once_more(self, on_progress: OnProgress) -> None:
        if not on_progress(1.0):
            raise LoadAborted(f"the load of {self.id} was given up before its context was made")

    def _refuse(self, spec: LoadSpec) -> None:
        """Refuse what cannot generate."""
        if lib.llama_model_has_encoder(self.pointer) or not lib.llama_model_has_decoder(self.pointer):
            raise ModelFailed(
                f"{spec.model_id} is no decoder-only model; modeld generates text with those only"
            )

    def _open(self, layout: Layout) -> None:
        self.layout = layout
        self.context = self._context = self._new_context(layout)
        self._adapters.put_on(self.context)
        self.memory = self._find_memory()
        self.cells = lib.llama_n_ctx(self.context)
        self.sequences = lib.llama_n_seq_max(self.context)
        self.rows = output_rows(layout.sequences)
        self.batch_tokens = lib.llama_n_ubatch(self.context)

    def _find_memory(self) -> int:
        memory: int | None = lib.llama_get_memory(self.context)
        if memory is None:
            raise ModelFailed(f"{self.id} has no KV cache (an embedding model?): it cannot generate text")
        return memory

    def _params(self, layout: Layout) -> Any:
        return context_params(self._options, layout)

    def _new_context(self, layout: Layout) -> int:
        params = self._params(layout)
        params.n_threads = params.n_threads_batch = self._threads
        if not self.recurrent:
            # A recurrent state that was half updated cannot be wound back: there only chunks bound a wait.
            params.abort_callback = self.flag.callback
            params.abort_callback_data = self.flag.address
        with capture() as log:
            context = lib.llama_init_from_model(self.pointer, params)
        if context is None:
            raise failure_of(log)(
                f"{self.id} was loaded, but a context of {params.n_ctx} KV cells of type "
                f"{self._options.kv_type} for {self._options.slots} slots could not be made; llama.cpp says: "
                f"{log.tell() or 'nothing'}. Lower llama_ctx, or change llama_kv_type or llama_flash_attn"
            )
        return context
