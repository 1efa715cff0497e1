# SPDX-License-Identifier: GPL-3.0-only
"""Greedy text of fifty prompts: what llama-cpp-python's own `Llama` generates, alone and beside eight others.

Both take the same number of threads and the same batches. Alongside others bits depend on llama.cpp's
kernels:

- With flash attention on a token's logits are the same to the last bit, as long as no batch has the 64
  rows, and no single row the 512 cells, from which llama.cpp takes other kernels, and as long as the
  cells of a request lie in the order of its tokens (values are summed in the order of the cells). So these
  requests come nine at a time, in batches of 60, into an empty cache.
- With it off one row and several are multiplied by different kernels. How far logits are apart for that
  reason is measured where both runs still have the same tokens; the first difference may only be where
  the two best tokens were closer than that for each of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from support.engine_driver import GREEDY, EngineDriver, generate_request
from support.fifty_prompts import CHATS, RAW
from support.tiny_llama import real_model

from modeld.domain.request import GenerateRequest, Message
from modeld.engine.protocol import RequestDone, TokenOutput

pytestmark = pytest.mark.real

MOST = 7
"""Tokens of each answer."""
TOGETHER = 9
THREADS = 2
SMALL_BATCH = 60
LARGEST_DIFFERENCE = 1.0
"""Of two log-probabilities of one token after the same tokens; measured: 0.4 to 0.6."""


def requests(**fields):
    """Return the fifty, greedy."""
    more = {"max_tokens": MOST} | fields
    chats = (tuple(Message(role=role, content=content) for role, content in chat) for chat in CHATS)
    return [
        *(generate_request(prompt, **more) for prompt in RAW),
        *(GenerateRequest(messages=messages, sampling=GREEDY, **more) for messages in chats),
    ]


def reference(*, flash_attn, batch):
    """Return the fifty texts by `llama_cpp.Llama`, each from an empty cache."""
    from llama_cpp import Llama  # noqa: PLC0415  # only this test needs it

    llama = Llama(
        str(real_model()),
        n_ctx=1024,
        n_batch=batch,
        n_ubatch=batch,
        n_threads=THREADS,
        n_threads_batch=THREADS,
        verbose=False,
        flash_attn=flash_attn,
    )
    greedy = {"max_tokens": MOST, "temperature": 0.0, "repeat_penalty": 1.0}
    texts = []
    for prompt in RAW:
        llama.reset()
        texts.append(llama(prompt, **greedy)["choices"][0]["text"])
    for chat in CHATS:
        llama.reset()
        messages = [{"role": role, "content": content} for role, content in chat]
        texts.append(llama.create_chat_completion(messages, **greedy)["choices"][0]["message"]["content"])
    llama.close()
    return texts


@dataclass
class Answer:
    """What came of one request: its text, its tokens, and the log-probabilities of the best at each place."""

    text: str
    tokens: list[int]
    best: list[dict[int, float]]


def answer(driver, request_id):
    tokens = [output for output in driver.outputs[request_id] if isinstance(output, TokenOutput)]
    places = [each for output in tokens for each in output.logprobs]
    return Answer(
        text=driver.text(request_id),
        tokens=[each.chosen.token_id for each in places],
        best=[{token.token_id: token.logprob for token in each.top} for each in places],
    )


def one_after_another(engine):
    """Serve the fifty, each alone, and close the engine."""
    driver = EngineDriver(engine)
    answers = [answer(driver, driver.run(request)[0]) for request in requests(logprobs=5)]
    engine.close()
    return answers


@pytest.fixture(scope="module")
def alone_by_default(real_lab):
    """The answers under default options, one after another."""
    return one_after_another(real_lab.load(threads=THREADS))


@pytest.fixture(scope="module")
def alone_with_flash_attention(real_lab):
    """The answers with flash attention on, one after another, in small batches."""
    return one_after_another(real_lab.load(threads=THREADS, flash_attn=True, ubatch=SMALL_BATCH))


def as_whole(answers, texts):
    """Return our texts without half a character at their ends, and theirs without that character.

    Where a text is cut inside a character, `Llama` goes on to the end of it.
    """
    assert len(answers) == len(texts) == 50
    ours = [answer.text.rstrip("\ufffd") for answer in answers]
    whole = [answer.text == text for answer, text in zip(answers, ours, strict=True)]
    return ours, [text if is_whole else text[:-1] for text, is_whole in zip(texts, whole, strict=True)]


def test_alone_by_default(alone_by_default):
    """Under default options each text is the library's own."""
    ours, theirs = as_whole(alone_by_default, reference(flash_attn=False, batch=512))
    assert ours == theirs


def test_alone_with_flash_attention(alone_with_flash_attention):
    """With flash attention on, too."""
    ours, theirs = as_whole(alone_with_flash_attention, reference(flash_attn=True, batch=SMALL_BATCH))
    assert ours == theirs


def test_beside_eight_others_with_flash_attention(real_lab, alone_with_flash_attention):
    """Then every token is the same one, while nine are decoded together all the time."""
    engine = real_lab.load(
        threads=THREADS, slots=TOGETHER, flash_attn=True, ubatch=SMALL_BATCH, prefix_cells=0
    )
    driver = EngineDriver(engine)
    asked = requests(max_tokens=200, ignore_eos=True, logprobs=0)
    pairs = list(zip(asked, alone_with_flash_attention, strict=True))
    for begin in range(0, 50, TOGETHER):
        group = (pairs + pairs)[begin : begin + TOGETHER]
        ids = [driver.submit(request) for request, _ in group]
        while driver.running < TOGETHER:  # Messages are rendered meanwhile.
            driver.step()
        while any(driver.tokens(request_id) < MOST for request_id in ids):
            driver.step()
            assert driver.running == TOGETHER
        for request_id, (_, alone) in zip(ids, group, strict=True):
            assert answer(driver, request_id).tokens[: len(alone.tokens)] == alone.tokens
            engine.cancel(request_id)
        driver.finish()
    engine.close()


def test_beside_eight_others_by_default(real_lab, alone_by_default):
    """Without it texts part only where two tokens are nearly as good, by what the kernels differ."""
    engine = real_lab.load(threads=THREADS, slots=TOGETHER, prefix_cells=0)
    driver = EngineDriver(engine)
    ids = [driver.submit(request) for request in requests(logprobs=5)]
    for number in range(TOGETHER - 1):
        driver.submit(generate_request(f"{number} bottles of", max_tokens=300, ignore_eos=True))
    full = []
    while not all(
        driver.outputs[request_id] and isinstance(driver.last(request_id), RequestDone) for request_id in ids
    ):
        outputs = driver.step()
        if any(isinstance(output, TokenOutput) for output in outputs):
            ended = sum(isinstance(output, RequestDone) for output in outputs)
            full.append(driver.running + ended == TOGETHER)
    assert sum(full) > 0.8 * len(full)  # The rest are steps in which messages were still being rendered.
    together = [answer(driver, request_id) for request_id in ids]
    engine.close()
    difference, gaps = 0.0, []
    for ours, alone in zip(together, alone_by_default, strict=True):
        same = common(ours.tokens, alone.tokens)
        for here, there in zip(ours.best[:same], alone.best[:same], strict=True):
            both = here.keys() & there.keys()
            difference = max(difference, *(abs(here[token] - there[token]) for token in both))
        if ours.tokens == alone.tokens:
            assert ours.text == alone.text
        elif same < len(alone.best):
            first, second, *_ = sorted(alone.best[same].values(), reverse=True)
            gaps.append(first - second)
    assert difference < LARGEST_DIFFERENCE
    assert max(gaps, default=0.0) <= 2 * difference
    assert len(gaps) <= 25


def common(one, other):
    """Return how many tokens two answers have in common from their beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
