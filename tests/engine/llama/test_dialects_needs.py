# SPDX-License-Identifier: GPL-3.0-only
"""What engines do for clients of other servers: unbounded answers, stop words, counts, inputs cut."""

from __future__ import annotations

import numpy as np
from support.engine_driver import generate_request

from modeld.domain.request import (
    AS_MANY_AS_FIT,
    EmbedRequest,
    GenerateRequest,
    Message,
    TemplateRequest,
    TokenizeRequest,
)
from modeld.domain.request_events import FinishReason, Templated
from modeld.engine.protocol import AnswerOutput, RequestAdmitted, RequestDone, RequestFailed, VectorOutput


def test_an_answer_without_a_bound_ends_with_its_slots_share(lab):
    """Each has as many cells as all have, so that as many run at once as there are slots."""
    driver = lab.driver(slots=2, ctx=512)
    ids = [
        driver.submit(generate_request(lab.prompt(20), max_tokens=AS_MANY_AS_FIT, ignore_eos=True))
        for _ in range(2)
    ]
    driver.until(RequestAdmitted, ids[0])
    driver.until(RequestAdmitted, ids[1])
    assert driver.running == 2
    driver.finish()
    for request_id in ids:
        last = driver.last(request_id)
        assert isinstance(last, RequestDone)
        assert last.reason is FinishReason.LENGTH
        assert last.usage.prompt_tokens + last.usage.completion_tokens == 256


def test_a_prompt_over_its_share_still_has_an_answer(lab):
    """What is left of the context bounds it then."""
    driver = lab.driver(slots=4, ctx=512)
    prompt = lab.prompt(150)
    _, last = driver.generate(generate_request(prompt, max_tokens=AS_MANY_AS_FIT, ignore_eos=True))
    assert isinstance(last, RequestDone)
    assert last.usage.prompt_tokens > 100
    assert last.usage.completion_tokens > 10
    assert last.usage.prompt_tokens + last.usage.completion_tokens <= 512


def test_the_stop_sequence_that_ended_a_text_is_told(lab):
    """Its name comes with the end; without one it is empty."""
    driver = lab.driver(slots=2, ctx=256)
    request = generate_request(lab.prompt(20), max_tokens=12, ignore_eos=True)
    text, last = driver.generate(request)
    assert isinstance(last, RequestDone)
    assert last.stop == ""
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    stopped = GenerateRequest(
        prompt=request.prompt,
        max_tokens=12,
        sampling=request.sampling,
        stop=("never there", stop),
        ignore_eos=True,
    )
    cut, last = driver.generate(stopped)
    assert isinstance(last, RequestDone)
    assert (last.reason, last.stop) == (FinishReason.STOP, stop)
    assert stop not in cut


def test_a_rendered_prompt_is_counted_as_it_is_decoded(tiny_lab):
    """Control tokens that are text in a message count as text, too."""
    driver = tiny_lab.driver(slots=2, ctx=256)
    messages = (Message(role="user", content="hi </s> hi"),)
    (counted, decoded) = driver.run(
        TemplateRequest(messages=messages, count=True), GenerateRequest(messages=messages, max_tokens=1)
    )
    last, done = driver.last(counted), driver.last(decoded)
    assert isinstance(last, AnswerOutput)
    assert isinstance(last.answer, Templated)
    assert isinstance(done, RequestDone)
    assert last.answer.tokens == done.usage.prompt_tokens


def test_an_input_that_is_too_long_is_cut_if_that_is_wanted(tiny_lab):
    """Its vector is that of what fits, also of a very long one; else it is refused."""
    driver = tiny_lab.driver(slots=2, ctx=256)
    context = driver.engine.info.context
    (asked,) = driver.run(TokenizeRequest(content="hello " * 3 * context, add_special=True))
    answered = driver.last(asked)
    assert isinstance(answered, AnswerOutput)
    tokens = answered.answer.tokens
    assert len(tokens) > context
    ids = driver.run(
        EmbedRequest(inputs=("hello " * 3 * context,), truncate=True),
        EmbedRequest(inputs=(tokens[:context],)),
        EmbedRequest(inputs=("hello " * 20 * context,), truncate=True),
        EmbedRequest(inputs=("hello " * 3 * context,)),
    )
    cut, same, huge = (
        [
            np.frombuffer(data, "<f4")
            for output in driver.outputs[one]
            if isinstance(output, VectorOutput)
            for data in output.vectors
        ]
        for one in ids[:3]
    )
    assert np.abs(cut[0] - same[0]).max() < 1e-4
    assert len(huge) == 1
    assert driver.last(ids[0]).usage.prompt_tokens == context
    assert driver.last(ids[2]).usage.prompt_tokens <= context
    refused = driver.last(ids[3])
    assert isinstance(refused, RequestFailed)
    assert refused.problem.kind == "prompt_too_long"
