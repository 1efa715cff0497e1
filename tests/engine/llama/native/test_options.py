# SPDX-License-Identifier: GPL-3.0-only
"""Options of a load: what llama.cpp itself says it was told, also when nothing was asked for."""

from __future__ import annotations

import re

import pytest
from support.engine_driver import EngineDriver, generate_request, spec
from support.tiny_gguf import write_model
from support.tiny_llama import real_model

from modeld.engine.llama.engine import load
from modeld.engine.llama.native.library import capture, lib
from modeld.errors import ModelFailed

pytestmark = pytest.mark.real

INFO, LINES = 2, 4000
QUANTISED = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")


def said(**options):
    """Return llama.cpp's account of a load, after which the engine generated."""
    usual = {"slots": 2, "ctx": 512}
    with capture(INFO, LINES) as log:
        driver = EngineDriver(load(spec(real_model(), **usual | options), lambda _fraction: True))
        text, _ = driver.generate(generate_request("Once upon a time", ignore_eos=True))
        driver.engine.close()
    assert text
    lines = [line for _, line in log.lines]
    found = {
        name: value
        for line in lines
        if (match := re.search(r"llama_context: +(\w+) += (\S+)", line))
        for name, value in [match.groups()]
    }
    cache = next(line for line in lines if "llama_kv_cache: size" in line)
    return found | {
        "types": tuple(re.findall(r"[KV] \((\w+)\)", cache)),
        "mapped": any("CPU_Mapped model buffer" in line for line in lines),
    }


def threads_of(engine):
    """Return with how many threads llama.cpp generates, and reads prompts."""
    context = engine._model.context
    return lib.llama_n_threads(context), lib.llama_n_threads_batch(context)


def test_what_is_not_asked_for_is_the_measured_default():
    """Without a GPU: no flash attention, KV in f16, batches of 512, the file mapped, a cache each."""
    found = said()
    assert found["flash_attn"] == "disabled"
    assert found["types"] == ("f16", "f16")
    assert found["n_ubatch"] == "512"
    assert found["kv_unified"] == "false"
    assert found["mapped"]


def test_each_option_reaches_llama_cpp():
    """Flash attention, the size of a batch, one cache, no mapping, and cells and slots as asked for."""
    found = said(flash_attn=True, ubatch=64, kv_unified=True, prefix_cells=0, mmap=False, slots=3, ctx=768)
    assert found["flash_attn"] == "enabled"
    assert found["n_ubatch"] == "64"
    assert found["kv_unified"] == "true"
    assert not found["mapped"]
    assert (found["n_seq_max"], found["n_ctx"]) == ("3", "768")


@pytest.mark.parametrize("kv_type", ["f32", "bf16", *QUANTISED])
def test_keys_and_values_have_the_type_that_was_asked_for(kv_type):
    """Both of them; a quantised type turns flash attention on by itself, another does not."""
    found = said(kv_type=kv_type)
    assert found["types"] == (kv_type, kv_type)
    assert found["flash_attn"] == ("enabled" if kv_type in QUANTISED else "disabled")


def test_a_quantised_cache_needs_flash_attention():
    """Turned off by hand it cannot work: llama.cpp says so, and the error tells which settings to change."""
    with pytest.raises(ModelFailed, match=r"quantized V cache.*flash_attn.*llama_flash_attn") as caught:
        said(kv_type="q8_0", flash_attn=False)
    assert "q8_0" in caught.value.message


def test_threads_change_while_a_model_is_loaded(tmp_path):
    """llama.cpp has the number that was given last, also after the cache was made again as one."""
    path = write_model(tmp_path / "wide.gguf", context=1024)
    engine = load(spec(path, slots=2, ctx=1024, threads=3), lambda _fraction: True)
    counts = [threads_of(engine)]
    engine.set_threads(2)
    counts.append(threads_of(engine))
    EngineDriver(engine).generate(generate_request("x " * 200, max_tokens=800, ignore_eos=True))
    layout = engine._model.layout
    counts.append(threads_of(engine))
    engine.close()
    assert layout.unified
    assert counts == [(3, 3), (2, 2), (2, 2)]
