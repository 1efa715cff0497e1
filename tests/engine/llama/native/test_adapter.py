# SPDX-License-Identifier: GPL-3.0-only
"""LoRA adapters in the real engine: what they change, what they cost, and that no file ends the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from support import tiny_gguf
from support.engine_driver import EngineDriver, generate_request, spec
from support.lora_gguf import QUERY, halves, pair_of, write_lora
from support.tiny_llama import real_model

from modeld.domain.model import MIB, Adapter
from modeld.domain.request import EmbedRequest
from modeld.engine.llama.engine import load
from modeld.engine.llama.footprint import estimate
from modeld.engine.llama.gguf.adapter import adapter_facts
from modeld.engine.llama.gguf.facts import read_facts, read_header
from modeld.engine.protocol import VectorOutput
from modeld.errors import ModelFailed

EMBEDDING = "token_embd.weight"
ASK = generate_request("the cat sat on the", max_tokens=24, ignore_eos=True)


def text_of(path, *adapters, request=ASK, **options):
    """What a model generates with these adapters."""
    engine = load(spec(path, lora=tuple(adapters), **options), lambda _fraction: True)
    try:
        return EngineDriver(engine).generate(request)[0]
    finally:
        engine.close()


def vector_of(path, *adapters):
    """What an embedding model makes of an input with these adapters."""
    engine = load(spec(path, lora=tuple(adapters)), lambda _fraction: True)
    driver = EngineDriver(engine)
    (request_id,) = driver.run(EmbedRequest(inputs=("cat hello dog",)))
    (vectors,) = (output.vectors for output in driver.outputs[request_id] if isinstance(output, VectorOutput))
    engine.close()
    return np.frombuffer(vectors[0], "<f4")


def why_not(path, adapter):
    """Why a model cannot be loaded with this adapter file."""
    with pytest.raises(ModelFailed) as caught:
        load(spec(path, lora=(Adapter(path=str(adapter)),)), lambda _fraction: True)
    return str(caught.value)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A random adapter for the tiny model's queries."""
    return str(write_lora(tmp_path_factory.mktemp("lora") / "query.gguf"))


def test_an_adapter_changes_the_text_by_its_scale(tiny_path, adapter):
    """At 0 it is as if it were not there, at 1 the text is another, and -1 takes it back."""
    plain = text_of(tiny_path)
    assert text_of(tiny_path, Adapter(path=adapter, scale=0.0)) == plain
    full = text_of(tiny_path, Adapter(path=adapter))
    assert full != plain
    assert text_of(tiny_path, Adapter(path=adapter), Adapter(path=adapter, scale=-1.0)) == plain
    halved = (Adapter(path=adapter, scale=0.5),) * 2
    assert text_of(tiny_path, *halved) == full


@pytest.mark.llama
def test_an_adapter_adds_the_product_of_its_halves(tmp_path):
    """The text is that of a model into whose weights the product was added before."""
    base = tiny_gguf.write_model(tmp_path / "base.gguf")
    a, b = halves(tiny_gguf.EMBEDDING, tiny_gguf.EMBEDDING)
    adapter = write_lora(tmp_path / "lora.gguf", adapter_lora_alpha=4.0)
    merged = tmp_path / "merged.gguf"
    merged.write_bytes(base.read_bytes())
    reader = gguf.GGUFReader(merged, "r+")
    (weight,) = (tensor for tensor in reader.tensors if tensor.name == QUERY)
    weight.data[:] += (b @ a) * np.float32(0.5 * 4.0 / 8)
    reader.data.flush()
    assert text_of(base, Adapter(path=str(adapter), scale=0.5)) == text_of(merged) != text_of(base)


def test_adapters_stay_when_the_context_is_made_anew(tiny_path, adapter):
    """A request that needs more than its share of a split cache gets the same text as in one cache."""
    long = generate_request("x" * 150, max_tokens=24, ignore_eos=True)
    options = {"slots": 2, "ctx": 512, "request": long}
    unified = text_of(tiny_path, Adapter(path=adapter), kv_unified=True, **options)
    assert text_of(tiny_path, Adapter(path=adapter), kv_unified=None, **options) == unified
    assert text_of(tiny_path, kv_unified=None, **options) != unified


def test_the_token_embedding_can_be_adapted_where_it_makes_no_logits(tmp_path, tiny_path):
    """With a matrix of its own for the logits; a tied one is refused: llama.cpp would end the process."""
    values = {
        f"{EMBEDDING}.lora_a": halves(8, tiny_gguf.VOCABULARY)[1],
        f"{EMBEDDING}.lora_b": halves(8, tiny_gguf.EMBEDDING)[1],
    }
    adapter = write_lora(tmp_path / "embedding.gguf", values)
    assert text_of(tiny_path, Adapter(path=str(adapter))) != text_of(tiny_path)
    tied = tiny_gguf.write_model(tmp_path / "tied.gguf", tied=True)
    assert "which also makes the logits of this model" in why_not(tied, adapter)


@pytest.mark.llama
def test_an_embedding_model_can_be_adapted(tmp_path):
    """Its vectors are others."""
    path = tiny_gguf.write_bert(tmp_path / "bert.gguf")
    size = tiny_gguf.EMBEDDING
    adapter = write_lora(tmp_path / "lora.gguf", pair_of(QUERY, size, size), architecture="bert")
    plain, zero, full = (
        vector_of(path, *lora)
        for lora in ((), (Adapter(path=str(adapter), scale=0.0),), (Adapter(path=str(adapter)),))
    )
    assert np.array_equal(plain, zero)
    assert np.abs(plain - full).max() > 1e-3


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.llama
def test_a_repacked_model_can_be_adapted(tmp_path, mmap):
    """The real Q4_0 model, whose weights are rearranged for the CPU (and mapped, or not)."""
    adapter = write_lora(tmp_path / "lora.gguf", pair_of(QUERY, 576, 576, size=0.3))
    request = generate_request("Once upon a time", max_tokens=12)
    options = {"ctx": 512, "slots": 1, "mmap": mmap, "threads": 2, "request": request}
    plain = text_of(real_model(), **options)
    assert text_of(real_model(), Adapter(path=str(adapter), scale=0.0), **options) == plain
    assert text_of(real_model(), Adapter(path=str(adapter)), **options) != plain


def zeros(*shapes, weight=QUERY, dtype=np.float32):
    """A pair of these shapes (numpy's: the last is the first of ggml)."""
    return {f"{weight}.lora_{half}": np.zeros(shape, dtype) for half, shape in zip("ab", shapes, strict=True)}


BAD = {
    "another architecture": (
        {"architecture": "qwen2"},
        "for models of the architecture 'qwen2', and this one is",
    ),
    "no adapter": ({"general_type": "model", "adapter_type": None}, "its general.type is not `adapter`"),
    "a number for a type": ({"adapter_type": 3}, "adapter.type is no text"),
    "a control vector": ({"adapter_type": "control"}, "of the type 'control', not lora"),
    "an alpha of 64 bits": (
        {"adapter_lora_alpha": None, "more": lambda writer: writer.add_float64("adapter.lora.alpha", 16.0)},
        "adapter.lora.alpha is no finite number of 32 bits",
    ),
    "an alpha that is no number": ({"adapter_lora_alpha": float("nan")}, "no finite number"),
    "an activated one": (
        {"more": lambda writer: writer.add_array("adapter.alora.invocation_tokens", [1, 2])},
        "acts only behind certain tokens",
    ),
    "half a pair": (
        {"tensors": {f"{QUERY}.lora_b": np.zeros((64, 8), np.float32)}},
        "has no .lora_a alongside it",
    ),
    "no pairs": ({"tensors": {}}, "no pairs of LoRA tensors"),
    "a whole weight": ({"tensors": {QUERY: np.zeros((64, 64), np.float32)}}, "no half of a LoRA pair"),
    "another weight": ({"tensors": pair_of("blk.7.attn_q.weight", 64, 64)}, "which this model does not have"),
    "another width": (
        {"tensors": pair_of(QUERY, 32, 64)},
        "[32, 8] and [8, 64], do not fit the weight's, [64, 64]",
    ),
    "another height": ({"tensors": pair_of(QUERY, 64, 32)}, "do not fit the weight's"),
    "no rank": ({"tensors": zeros((0, 64), (64, 0))}, "do not fit the weight's"),
    "two ranks": ({"tensors": zeros((8, 64), (64, 4))}, "do not fit the weight's"),
    "two ranks of the embedding": (
        {"tensors": zeros((320, 8), (64, 4), weight=EMBEDDING)},
        "do not fit the weight's, [64, 320]",
    ),
    "a third dimension": ({"tensors": zeros((2, 8, 64), (2, 64, 8))}, "do not fit the weight's"),
    "whole numbers": ({"tensors": zeros((8, 64), (64, 8), dtype=np.int32)}, "has the type I32"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_adapter_is_refused_with_the_reason(name, tmp_path, tiny_path):
    """Before llama.cpp sees it, which would end the process over seven of these."""
    fields, reason = BAD[name]
    adapter = write_lora(tmp_path / "bad.gguf", **fields)
    why = why_not(tiny_path, adapter)
    assert why.startswith("m.gguf: its LoRA adapter bad.gguf cannot be used: ")
    assert reason in why


def test_an_adapter_that_is_not_there_or_cut_short_is_refused(tmp_path, tiny_path, adapter):
    """With the path and what the system says, or with the bytes that are missing."""
    assert "none.gguf cannot be read: no such file" in why_not(tiny_path, tmp_path / "none.gguf")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(Path(adapter).read_bytes()[:-100])
    assert "cut short" in why_not(tiny_path, cut)


@pytest.mark.parametrize("quant", ["F16", "BF16", "Q8_0"])
def test_adapters_of_the_usual_types_work(quant, tmp_path, tiny_path):
    """Those that the converter of llama.cpp writes."""
    tensors = pair_of(QUERY, 64, 64, rank=32)
    adapter = write_lora(tmp_path / "lora.gguf", tensors, quant=gguf.GGMLQuantizationType[quant])
    assert text_of(tiny_path, Adapter(path=str(adapter))) != text_of(tiny_path)


DAMAGE = """
import random, sys
from pathlib import Path
from support.engine_driver import EngineDriver, generate_request, spec
from modeld.domain.model import Adapter
from modeld.engine.llama.engine import load
from modeld.errors import ModelFailed

model, sound, folder = map(Path, sys.argv[1:])
whole = sound.read_bytes()
header = whole.rindex(b"lora_b") + 64
choose = random.Random(7)
served = refused = 0
for number in range(150):
    damaged = bytearray(whole)
    for _ in range(choose.randint(1, 3)):
        place = choose.randrange(4, header)
        damaged[place] = choose.choice((0, 1, 2, 6, 8, 12, 24, 255, choose.randrange(256)))
    if number % 5 == 0:
        del damaged[choose.randrange(len(whole)):]
    path = folder / f"damaged-{number}.gguf"
    path.write_bytes(damaged)
    print("adapter", number, flush=True)
    try:
        engine = load(spec(model, slots=1, ctx=256, lora=(Adapter(path=str(path)),)), lambda fraction: True)
    except ModelFailed as error:
        refused += 1
        continue
    EngineDriver(engine).generate(generate_request("x", max_tokens=1))
    engine.close()
    served += 1
print("end", served, refused)
"""


def test_no_damaged_adapter_ends_the_process(tmp_path, tiny_path, adapter):
    """Of 150 adapters with damaged headers each is refused or served, in a process that lives on."""
    done = subprocess.run(
        [sys.executable, "-c", DAMAGE, str(tiny_path), adapter, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    end = done.stdout.splitlines()[-1].split()
    assert done.returncode == 0, done.stdout[-200:] + done.stderr[-2000:]
    assert end[0] == "end"
    served, refused = map(int, end[1:])
    assert served + refused == 150
    assert refused > 50


def test_adapters_are_in_the_estimate(tmp_path):
    """With the bytes of their halves."""
    adapter = write_lora(tmp_path / "large.gguf", pair_of(QUERY, 4096, 4096, rank=256))
    size = adapter_facts(read_header(adapter)).bytes
    assert size == 8 * MIB
    facts = read_facts(tiny_gguf.write_model(tmp_path / "m.gguf"))
    plain, adapted = (
        estimate(facts, spec("m", lora=lora).options).weights
        for lora in ((), (Adapter(path=str(adapter), bytes=size),) * 2)
    )
    assert adapted == plain + 2 * size
