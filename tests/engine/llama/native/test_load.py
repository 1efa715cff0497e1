# SPDX-License-Identifier: GPL-3.0-only
"""Loading models with llama.cpp: what goes wrong is said, what was taken is given back."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from pathlib import Path

import gguf
import numpy as np
import pytest
from support.engine_driver import EngineDriver, generate_request, spec
from support.tiny_gguf import write_split
from support.tiny_llama import real_model, write_tiny

from modeld.domain.request import GenerateRequest, Message
from modeld.engine.llama.engine import load
from modeld.engine.llama.native import library
from modeld.engine.llama.native.load_abort import abortable
from modeld.engine.llama.native.model import AbortFlag
from modeld.engine.protocol import LoadAborted, RequestAdmitted
from modeld.errors import InvalidRequest, ModelFailed

LOAD = """
import sys
from modeld.domain.model import LoadOptions
from modeld.engine.llama.engine import load
from modeld.engine.protocol import LoadSpec
from modeld.errors import ModelFailed
try:
    options = LoadOptions(threads=1, slots=int(sys.argv[2]), ctx=int(sys.argv[3]))
    load(LoadSpec(model_id="m.gguf", path=sys.argv[1], options=options), lambda fraction: True)
except ModelFailed as error:
    print(error.message)
else:
    print("loaded")
"""


def load_elsewhere(path, slots=1, ctx=256):
    """Load in a process of its own; return what came of it. llama.cpp may abort on bad files."""
    result = subprocess.run(
        [sys.executable, "-c", LOAD, str(path), str(slots), str(ctx)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.process
def test_the_package_alone_does_not_load_the_library():
    """`modeld.engine.llama` and its readers of metadata work without llama.cpp."""
    program = (
        "import sys, modeld.engine.llama, modeld.engine.llama.gguf.facts; print('llama_cpp' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.llama
def test_the_library_says_what_it_is():
    """Version and system information are there for `modeld doctor` and the log."""
    library.initialise()
    library.initialise()
    assert library.version()
    assert "CPU" in library.system_info()


@pytest.mark.parametrize("damage", ["empty", "garbage", "cut", "cut-header"])
def test_a_damaged_file_is_refused_with_llamas_own_words(tmp_path, tiny_path, damage):
    """An unreadable file is a ModelFailed that names model, file and reason."""
    whole = tiny_path.read_bytes()
    data = {
        "empty": b"",
        "garbage": b"GGUF" + bytes(range(256)) * 20,
        "cut": whole[: len(whole) * 2 // 3],
        "cut-header": whole[:500],
    }[damage]
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    message = load_elsewhere(path)
    assert message.startswith("m.gguf could not be loaded; llama.cpp says: ")
    assert "says: nothing" not in message
    assert str(path) in message


@pytest.mark.llama
def test_a_split_model_is_loaded_by_its_first_part(tmp_path):
    """llama.cpp finds the other parts next to the first; without one the load fails with a reason."""
    parts = write_split(tmp_path, "tiny", 3)
    driver = EngineDriver(load(spec(parts[0], ctx=256, slots=1), lambda _fraction: True))
    assert driver.generate(generate_request("hello", ignore_eos=True))[0]
    driver.engine.close()
    parts[1].unlink()
    assert "could not be loaded; llama.cpp says: " in load_elsewhere(parts[0])


def test_an_abort_of_our_own_is_no_error_in_the_log(tiny_lab, caplog):
    """llama.cpp reports an aborted decode as an error; the log of the daemon does not."""
    driver = tiny_lab.driver(slots=1, ctx=256)
    request_id = driver.submit(generate_request("hello"))
    driver.until(RequestAdmitted, request_id)
    with caplog.at_level("INFO"):
        driver.engine.interrupt()
        assert driver.step() == []
    driver.finish()
    assert not caplog.records


@pytest.mark.llama
def test_a_file_that_is_gone_is_refused(tmp_path):
    """No file: the path is in the error."""
    with pytest.raises(ModelFailed, match="there is no file"):
        load(spec(tmp_path / "gone.gguf"), lambda _fraction: True)


@pytest.mark.llama
def test_weights_that_are_no_numbers_are_found_before_any_client(tmp_path):
    """A model that computes NaN does not load."""
    path = write_tiny(tmp_path)
    reader = gguf.GGUFReader(path, "r+")
    tensor = next(tensor for tensor in reader.tensors if tensor.name == "output_norm.weight")
    tensor.data[:] = np.nan
    del reader, tensor
    gc.collect()
    with pytest.raises(ModelFailed, match="no numbers"):
        load(spec(path, ctx=256, slots=1), lambda _fraction: True)


def test_options_that_cannot_be_are_refused_with_advice(tiny_path):
    """An unknown KV type names those there are; too many slots come back as an error, not an abort."""
    with pytest.raises(ModelFailed, match="q8_0"):
        load(spec(tiny_path, kv_type="q77"), lambda _fraction: True)
    message = load_elsewhere(tiny_path, slots=100_000, ctx=512)
    assert "100000 slots" in message


@pytest.mark.parametrize(
    "options", [{"kv_type": "bf16"}, {"flash_attn": True}, {"mmap": False}, {"kv_type": "f32"}]
)
def test_the_options_of_a_load_work(tmp_path, tiny_path, options):
    """KV types, flash attention and mmap lead to an engine that generates."""
    driver = EngineDriver(load(spec(tiny_path, ctx=256, slots=1, **options), lambda _fraction: True))
    text, _ = driver.generate(generate_request("hello", ignore_eos=True))
    assert text
    driver.engine.close()


def test_a_quantised_cache_needs_flash_attention(tiny_path):
    """Turned off by hand it cannot work, and the error tells which settings to change."""
    with pytest.raises(ModelFailed, match="llama_flash_attn"):
        load(spec(tiny_path, kv_type="q8_0", flash_attn=False, slots=1, ctx=256), lambda _fraction: True)


@pytest.mark.llama
def test_a_model_without_a_template_takes_prompts_only(tmp_path):
    """Messages are refused with advice, prompts work."""
    driver = EngineDriver(
        load(spec(write_tiny(tmp_path, chat_template=None), ctx=256), lambda _fraction: True)
    )
    assert not driver.engine.info.has_chat_template
    _, last = driver.generate(GenerateRequest(messages=(Message(role="user", content="hi"),)))
    assert last.problem.kind == InvalidRequest.kind
    assert "send `prompt`" in last.problem.message
    driver.engine.close()


def test_an_exception_of_the_callback_comes_back(tiny_path):
    """What `on_progress` raises is not lost in C."""

    def fail(_fraction):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        load(spec(tiny_path), fail)


@pytest.mark.parametrize("after", [1, 2])
def test_a_load_can_be_given_up_after_the_weights(tiny_path, after):
    """`on_progress` is asked again before the context, and before the first decode."""
    told = []

    def until(fraction):
        told.append(fraction)
        return told.count(1.0) <= after

    with pytest.raises(LoadAborted):
        load(spec(tiny_path), until)
    assert told.count(1.0) == after + 1


def test_a_first_decode_can_be_given_up():
    """While llama.cpp decodes, a thread asks, and raises the flag that ends the decode."""
    flag = AbortFlag()
    answers = iter([True, True, False])

    def decode():
        while not flag.raised:
            threading.Event().wait(0.01)

    with pytest.raises(LoadAborted), abortable(flag, lambda _fraction: next(answers), "m"):
        decode()
    assert not flag.raised


@pytest.mark.real
def test_a_load_can_be_given_up_in_the_middle():
    """The first False after the beginning ends the load of a real model."""
    fractions = []

    def until_half(fraction):
        fractions.append(fraction)
        return fraction < 0.5

    with pytest.raises(LoadAborted):
        load(spec(real_model()), until_half)
    assert 0.5 <= fractions[-1] < 1


@pytest.mark.real
def test_a_quantised_cache_turns_flash_attention_on():
    """q8_0 works without another setting."""
    driver = EngineDriver(load(spec(real_model(), kv_type="q8_0", ctx=256, slots=1), lambda _fraction: True))
    text, _ = driver.generate(generate_request("Once upon a time", ignore_eos=True))
    assert text
    driver.engine.close()


def resident_bytes():
    """Return the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_loading_and_closing_leaks_nothing(tiny_path):
    """After fifty lives of an engine the process is hardly larger than after ten."""

    def live():
        driver = EngineDriver(load(spec(tiny_path, ctx=256, slots=2), lambda _fraction: True))
        driver.run(generate_request("hello", max_tokens=3), generate_request("bye", max_tokens=3))
        driver.submit(generate_request("never ends", max_tokens=100))
        driver.step()
        driver.engine.close()

    for _ in range(10):
        live()
    gc.collect()
    before = resident_bytes()
    for _ in range(40):
        live()
    gc.collect()
    assert resident_bytes() - before < 4 * 1024 * 1024


@pytest.mark.real
def test_closing_gives_the_memory_back():
    """Most of what a real model took is returned by close."""
    before = resident_bytes()
    driver = EngineDriver(load(spec(real_model(), slots=2, ctx=2048), lambda _fraction: True))
    driver.run(generate_request("hello " * 200, max_tokens=3))
    grown = resident_bytes() - before
    driver.engine.close()
    gc.collect()
    assert grown > 100 * 1024 * 1024
    assert resident_bytes() - before < grown / 4
