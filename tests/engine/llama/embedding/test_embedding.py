# SPDX-License-Identifier: GPL-3.0-only
"""Embeddings: held against llama-cpp-python's own, alongside streams, in batches, in pieces, cancelled."""

from __future__ import annotations

import numpy as np
import pytest
from llama_cpp import Llama, llama_cpp
from support.engine_driver import EngineDriver, generate_request, spec
from support.tiny_gguf import BERT_CONTEXT, write_bert
from support.tiny_llama import real_model
from support.tiny_memories import write_recurrent

from modeld.domain.model import LoadOptions
from modeld.domain.request import EmbedRequest, Pooling, TokenizeRequest
from modeld.domain.request_events import FinishReason
from modeld.engine.llama.embedding.job import EmbedJob, pack, pack_whole
from modeld.engine.llama.engine import load
from modeld.engine.llama.footprint import estimate
from modeld.engine.llama.gguf.facts import GgufError, read_facts
from modeld.engine.llama.kv.layout import Layout
from modeld.engine.protocol import RequestAdmitted, RequestDone, RequestFailed, TokenOutput, VectorOutput

pytestmark = pytest.mark.llama

TEXTS = ("hello world", "a b c dog", "cat", *(f"w{number} " * (number + 1) for number in range(60)))


@pytest.fixture(scope="module")
def bert_path(tmp_path_factory):
    """Path of the tiny embedding model."""
    return write_bert(tmp_path_factory.mktemp("bert") / "bert.gguf")


@pytest.fixture(scope="module")
def bert(bert_path):
    """The tiny embedding model in llama.cpp."""
    engine = load(spec(bert_path, slots=2), lambda _fraction: True)
    yield engine
    engine.close()


def vectors_of(driver: EngineDriver, request_id: int) -> np.ndarray:
    """The vectors of a request, checked to have come in order and whole."""
    outputs = driver.outputs[request_id]
    assert isinstance(outputs[-1], RequestDone), outputs[-1]
    assert outputs[-1].reason is FinishReason.STOP
    found = [output for output in outputs if isinstance(output, VectorOutput)]
    firsts = np.cumsum([0, *(len(output.vectors) for output in found)])
    assert [output.first for output in found] == firsts[:-1].tolist()
    return np.array([np.frombuffer(data, "<f4") for output in found for data in output.vectors])


def embed(driver: EngineDriver, *inputs, **more) -> np.ndarray:
    """Serve one request."""
    (request_id,) = driver.run(EmbedRequest(inputs=inputs, **more))
    return vectors_of(driver, request_id)


def theirs(path, texts, **more) -> np.ndarray:
    """What llama-cpp-python makes of these texts, one at a time."""
    model = Llama(str(path), embedding=True, verbose=False, n_threads=1, **more)
    try:
        return np.array([model.embed(text, normalize=True) for text in texts])
    finally:
        model.close()


def test_an_embedding_model_embeds_as_the_library_does(bert, bert_path):
    """Sixty inputs of all lengths, many in a decode, are the library's single ones; their length is 1."""
    driver = EngineDriver(bert)
    found = embed(driver, *TEXTS)
    assert np.abs(found - theirs(bert_path, TEXTS, n_ctx=128)).max() < 1e-5
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-5
    assert len([output for output in driver.order if isinstance(output, VectorOutput)]) <= 6
    singles = np.concatenate([embed(EngineDriver(bert), text) for text in TEXTS[:8]])
    assert np.abs(found[:8] - singles).max() < 1e-5


def test_token_ids_are_taken_as_they_are(bert):
    """The tokens of a text, those of its ends included, give the vector of the text."""
    driver = EngineDriver(bert)
    request_id = driver.submit(TokenizeRequest(content="hello world", add_special=True))
    driver.finish()
    tokens = driver.last(request_id).answer.tokens
    assert np.abs(embed(driver, tokens) - embed(driver, "hello world")).max() < 1e-6


def test_what_is_not_scaled_has_its_own_length(bert):
    """Without `normalize` the direction is the same, the length is the model's."""
    plain, scaled = embed(EngineDriver(bert), "cat", normalize=False), embed(EngineDriver(bert), "cat")
    assert abs(np.linalg.norm(plain) - 1) > 0.01
    assert np.abs(plain / np.linalg.norm(plain) - scaled).max() < 1e-5


def test_several_requests_share_decodes(bert):
    """A short request does not wait for all of a long one; both get their own vectors."""
    driver = EngineDriver(bert)
    long = driver.submit(EmbedRequest(inputs=TEXTS * 4))
    short = driver.submit(EmbedRequest(inputs=("dog",)))
    driver.until(RequestDone, short)
    assert not any(isinstance(output, RequestDone) for output in driver.outputs[long])
    driver.finish()
    once = embed(EngineDriver(bert), *TEXTS)
    assert np.abs(vectors_of(driver, long) - np.tile(once, (4, 1))).max() < 1e-5
    assert np.abs(vectors_of(driver, short) - embed(EngineDriver(bert), "dog")).max() < 1e-5


def test_a_cancel_ends_a_long_batch_within_a_step(bert):
    """A client that leaves in the middle of 500 inputs costs one more decode at most."""
    driver = EngineDriver(bert)
    request_id = driver.submit(EmbedRequest(inputs=("w1 " * 60,) * 500))
    driver.until(VectorOutput, request_id)
    driver.engine.cancel(request_id)
    driver.engine.interrupt()
    driver.step()
    assert driver.last(request_id).reason is FinishReason.CANCELLED
    assert not driver.engine.busy


def test_an_input_that_is_too_long_is_told_with_numbers(bert):
    """And so are tokens that there are not, and an embedding model that is asked for text."""
    driver = EngineDriver(bert)
    wrong = [generate_request("x"), EmbedRequest(inputs=((0, 999),)), EmbedRequest(inputs=((),))]
    wrong.append(EmbedRequest(inputs=("cat",), pooling=Pooling.LAST))
    for request in wrong:
        last = driver.last(*driver.run(request))
        assert isinstance(last, RequestFailed)
        assert last.problem.kind == "invalid_request"
    last = driver.last(*driver.run(EmbedRequest(inputs=("cat", "cat " * 127))))
    assert last.problem.kind == "prompt_too_long"
    assert last.problem.details == {"input": 1, "prompt_tokens": 129, "context": BERT_CONTEXT}
    last = driver.last(*driver.run(EmbedRequest(inputs=("cat " * 9999,))))
    assert "about" in last.problem.message


def test_the_file_says_how_a_model_pools(tmp_path):
    """CLS pools by the first token; a file that says nothing gets the mean; a reranker is refused."""
    for number, pooling, constant in ((2, "cls", llama_cpp.LLAMA_POOLING_TYPE_CLS), (None, "mean", 1)):
        path = write_bert(tmp_path / f"{pooling}.gguf", pooling=number)
        assert read_facts(path).pooling == pooling
        engine = load(spec(path), lambda _fraction: True)
        found = embed(EngineDriver(engine), *TEXTS[:3])
        engine.close()
        assert np.abs(found - theirs(path, TEXTS[:3], n_ctx=128, pooling_type=constant)).max() < 1e-5
    with pytest.raises(GgufError, match="reranking"):
        read_facts(write_bert(tmp_path / "rank.gguf", pooling=4))


def test_the_footprint_of_an_embedding_model_counts_its_batch(bert_path):
    """There is no KV cache; a longer batch costs more, for llama.cpp keeps logits of each of its tokens."""
    facts = read_facts(bert_path)
    small, large = (estimate(facts, LoadOptions(ubatch=ubatch)) for ubatch in (128, 1024))
    assert small.kv == large.kv == 0
    assert large.compute - small.compute > 896 * facts.vocabulary * 4


@pytest.mark.real
@pytest.mark.parametrize(
    ("pooling", "constant"),
    [
        (None, llama_cpp.LLAMA_POOLING_TYPE_MEAN),
        (Pooling.MEAN, llama_cpp.LLAMA_POOLING_TYPE_MEAN),
        (Pooling.CLS, llama_cpp.LLAMA_POOLING_TYPE_CLS),
        (Pooling.LAST, llama_cpp.LLAMA_POOLING_TYPE_LAST),
    ],
)
def test_a_model_that_generates_embeds_as_the_library_does(real_lab, pooling, constant):
    """Short inputs share a decode, one of 150 tokens goes in pieces: the vectors are the library's."""
    texts = ("The quick brown fox", "Hello world, how are you?", "lorem ipsum dolor " * 50, "x")
    driver = real_lab.driver(slots=2, ctx=2048)
    found = embed(driver, *texts, pooling=pooling)
    expected = theirs(real_model(), texts, n_ctx=512, pooling_type=constant)
    assert (found * expected).sum(axis=1).min() > 0.999
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-5


def test_a_model_that_generates_embeds_beside_its_streams(tiny_lab):
    """Greedy streams say what they say alone, and the vectors are those of a quiet engine."""
    inputs = tuple(f"w{number} " * (1 + number % 30) for number in range(40))
    driver = tiny_lab.driver(slots=4, ctx=1024)
    quiet = embed(driver, *inputs)
    alone, _ = tiny_lab.driver(slots=4, ctx=1024).generate(
        generate_request("w1 w2 w3", max_tokens=60, ignore_eos=True)
    )
    streams = [driver.submit(generate_request("w1 w2 w3", max_tokens=60, ignore_eos=True)) for _ in range(2)]
    for stream in streams:
        driver.until(TokenOutput, stream)
    request_id = driver.submit(EmbedRequest(inputs=inputs))
    driver.until(VectorOutput, request_id)
    assert all(not isinstance(driver.last(stream), RequestDone) for stream in streams)
    driver.finish()
    assert [driver.text(stream) for stream in streams] == [alone, alone]
    assert np.abs(vectors_of(driver, request_id) - quiet).max() < 1e-4


def test_others_get_slots_beside_embeddings(tiny_lab):
    """A generation and more embeddings that come during a long batch run alongside it to their ends."""
    driver = tiny_lab.driver(slots=4, ctx=1024)
    long = driver.submit(EmbedRequest(inputs=("w1 w2 w3 " * 20,) * 40))
    driver.until(VectorOutput, long)
    stream = driver.submit(generate_request("w1 w2 w3", max_tokens=10, ignore_eos=True))
    short = driver.submit(EmbedRequest(inputs=("w4", "w5")))
    driver.until(RequestDone, short)
    driver.until(RequestDone, stream)
    assert not any(isinstance(output, RequestDone) for output in driver.outputs[long])
    assert driver.tokens(stream) == 10
    driver.finish()
    assert len(vectors_of(driver, long)) == 40
    assert len(vectors_of(driver, short)) == 2


def test_embeddings_leave_no_cells_behind(tiny_lab):
    """After embeddings that ended, were cancelled or interrupted, all cells are there for one request."""
    driver = tiny_lab.driver(slots=2, ctx=256)
    embed(driver, "w1 " * 40, *(f"w{number}" for number in range(30)))
    request_id = driver.submit(EmbedRequest(inputs=("w2 " * 50,) * 20))
    driver.until(RequestAdmitted, request_id)
    driver.engine.interrupt()
    driver.step()
    driver.until(VectorOutput, request_id)
    driver.engine.cancel(request_id)
    driver.finish()
    assert driver.last(request_id).reason is FinishReason.CANCELLED
    text, last = driver.generate(generate_request("x", max_tokens=250, ignore_eos=True))
    assert last.usage.completion_tokens == 250
    assert text
    assert np.abs(embed(driver, "cat") - embed(driver, "dog", "cat")[1]).max() < 1e-5


def test_an_input_may_fill_the_context(tiny_lab):
    """Where there are no cells for more than one input, they go one at a time."""
    driver = tiny_lab.driver(slots=2, ctx=256)
    full = tuple([5] * 256)
    found = embed(driver, full, (7, 8), full)
    assert np.abs(found[0] - found[2]).max() < 1e-5
    last = driver.last(*driver.run(EmbedRequest(inputs=((5,) * 257,))))
    assert last.problem.details == {"input": 0, "prompt_tokens": 257, "context": 256}


def test_a_recurrent_model_embeds_too(tmp_path):
    """It has no sequences to spare and a state that cannot be cut: inputs go one after the other."""
    engine = load(spec(write_recurrent(tmp_path / "mamba.gguf"), slots=2, ctx=512), lambda _fraction: True)
    together = embed(EngineDriver(engine), "w1 w2 " * 20, "w3", "w4 w5")
    single = np.concatenate([embed(EngineDriver(engine), text) for text in ("w1 w2 " * 20, "w3", "w4 w5")])
    engine.close()
    assert np.abs(together - single).max() < 1e-4


def test_the_fake_engine_embeds(fake_lab):
    """The same input has the same vector, of length 1."""
    found = embed(fake_lab.driver(slots=2, ctx=256), "a b", "c", (1, 2), "a b")
    assert np.array_equal(found[0], found[3])
    assert not np.array_equal(found[0], found[1])
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-5


def _job(request_id: int, *lengths: int) -> EmbedJob:
    inputs = [np.zeros(length, dtype=np.int32) for length in lengths]
    job = EmbedJob(request_id, EmbedRequest(inputs=()), inputs)
    job.reserve(32, Layout(True, 1000, 36, 1000), 1000)
    job.begin(request_id)
    return job


def test_what_does_not_fit_whole_goes_in_pieces_into_its_own_sequence():
    """Only inputs that end in this decode go into spare sequences."""
    job = _job(0, 10, 5, 40, 3)
    shown = [(part.index, part.begin, part.end, part.sequence) for part in pack([job], 32, [8, 9])]
    assert shown == [(0, 0, 10, 0), (1, 0, 5, 9)]
    job.index = 2
    shown = [(part.index, part.begin, part.end, part.sequence) for part in pack([job], 32, [8, 9])]
    assert shown == [(2, 0, 32, 0)]
    job.kept = 32
    shown = [(part.index, part.begin, part.end, part.sequence) for part in pack([job], 32, [8, 9])]
    assert shown == [(2, 32, 40, 0), (3, 0, 3, 9)]


def test_whole_inputs_are_taken_from_each_job_in_turn():
    """A decode has inputs of every job, in the order of each, as many as tokens and sequences allow."""
    one, two = _job(1, 10, 10, 10, 10), _job(2, 10, 90, 10)
    shown = [(part.job.id, part.index) for part in pack_whole([one, two], 50, 32)]
    assert shown == [(1, 0), (2, 0), (1, 1), (1, 2), (1, 3)]
    assert len(pack_whole([one, two], 500, 3)) == 3
