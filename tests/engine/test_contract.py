# SPDX-License-Identifier: GPL-3.0-only
"""The contract of an engine, held against every implementation: the fake and llama.cpp."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.engine_driver import EngineDriver, generate_request, spec

from modeld.domain.request import Constraint, ConstraintKind, Sampling
from modeld.domain.request_events import FinishReason
from modeld.engine.protocol import LoadAborted, RequestAdmitted, RequestDone, RequestFailed, TokenOutput
from modeld.errors import InvalidGrammar, InvalidRequest, PromptTooLong


def test_a_request_is_admitted_then_yields_tokens_then_ends(lab):
    """The outputs of a request are Admitted, its Tokens, and one Done, and the counts agree."""
    driver = lab.driver(slots=2, ctx=256)
    (request_id,) = driver.run(generate_request(lab.prompt(20), max_tokens=5, ignore_eos=True))
    first, *tokens, last = driver.outputs[request_id]
    assert isinstance(first, RequestAdmitted)
    assert all(isinstance(output, TokenOutput) for output in tokens)
    assert isinstance(last, RequestDone)
    assert last.reason is FinishReason.LENGTH
    assert driver.tokens(request_id) == last.usage.completion_tokens == 5
    assert first.prompt_tokens == last.usage.prompt_tokens
    assert 10 < first.prompt_tokens <= 20


def test_an_idle_engine_has_nothing_to_do(lab):
    """Without requests a step brings nothing, and the engine is not busy."""
    driver = lab.driver(slots=2, ctx=256)
    assert not driver.engine.busy
    assert driver.step() == []
    driver.run(generate_request(lab.prompt(20)))
    assert not driver.engine.busy
    assert driver.step() == []


def test_slots_are_given_in_the_order_of_submission(lab):
    """More requests than slots are admitted first come, first served."""
    driver = lab.driver(slots=2, ctx=512)
    ids = driver.run(*(generate_request(lab.prompt(20), max_tokens=2 + number % 3) for number in range(6)))
    assert [output.id for output in driver.order if isinstance(output, RequestAdmitted)] == ids
    assert all(isinstance(driver.last(request_id), RequestDone) for request_id in ids)


def test_several_slots_work_in_one_step(lab):
    """Once all are running, each step brings a token for each slot."""
    driver = lab.driver(slots=2, ctx=512)
    ids = [driver.submit(generate_request(lab.prompt(20), max_tokens=20, ignore_eos=True)) for _ in range(2)]
    for request_id in ids:
        driver.until(TokenOutput, request_id)
    assert [output.id for output in driver.step()] == ids
    driver.finish()


def test_a_request_waits_until_its_cells_are_free(lab):
    """A slot alone is not enough: prompt and answer must fit alongside the others; none is cut short."""
    driver = lab.driver(slots=2, ctx=256)
    long = driver.submit(generate_request(lab.prompt(60), max_tokens=150, ignore_eos=True))
    other = driver.submit(generate_request(lab.prompt(60), max_tokens=100, ignore_eos=True))
    small = driver.submit(generate_request(lab.prompt(20), max_tokens=2, ignore_eos=True))
    driver.finish()
    ends = [output for output in driver.order if isinstance(output, RequestAdmitted | RequestDone)]
    assert [(type(output), output.id) for output in ends[:3]] == [
        (RequestAdmitted, long),
        (RequestDone, long),
        (RequestAdmitted, other),
    ]
    for request_id, wanted in ((long, 150), (other, 100), (small, 2)):
        assert driver.last(request_id).reason is FinishReason.LENGTH
        assert driver.tokens(request_id) == wanted


def test_all_cells_can_be_used_at_once(lab):
    """Requests that together need every cell run side by side to their ends."""
    driver = lab.driver(slots=4, ctx=256)
    ids = []
    for _ in range(3):
        for _ in range(4):
            request = generate_request(lab.prompt(24), max_tokens=40, ignore_eos=True)
            ids.append(driver.submit(request))
        driver.finish()
    assert all(driver.tokens(request_id) == 40 for request_id in ids)


def test_max_tokens_is_clipped_to_the_room_in_the_context(lab):
    """A request may ask for more than the context holds; it gets what there is."""
    driver = lab.driver(slots=1, ctx=256)
    (request_id,) = driver.run(generate_request(lab.prompt(200), max_tokens=10_000, ignore_eos=True))
    usage = driver.last(request_id).usage
    assert usage.prompt_tokens + usage.completion_tokens == driver.engine.info.context
    assert driver.last(request_id).reason is FinishReason.LENGTH


def test_a_prompt_longer_than_the_context_is_refused_with_numbers(lab):
    """A prompt that leaves no room for one token is Broken, and says by how much."""
    driver = lab.driver(slots=1, ctx=256)
    (request_id,) = driver.run(generate_request(lab.prompt(400)))
    (broken,) = driver.outputs[request_id]
    assert broken.problem.kind == PromptTooLong.kind
    assert broken.problem.details["prompt_tokens"] > 256
    assert broken.problem.details["context"] == 256


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"prompt": ""}, InvalidRequest),
        ({"sampling": Sampling(logit_bias=((10**6, 1.0),))}, InvalidRequest),
        ({"sampling": Sampling(logit_bias=((-1, 1.0),))}, InvalidRequest),
        ({"constraint": Constraint(kind=ConstraintKind.GRAMMAR, text="rot ::= ?")}, InvalidGrammar),
    ],
    ids=["empty", "bias-above", "bias-below", "grammar"],
)
def test_a_bad_request_is_refused_and_its_neighbours_do_not_notice(lab, fields, error):
    """A bad request is Broken at once, alone; who was served before and after is served the same."""
    driver = lab.driver(slots=2, ctx=512)
    good = generate_request(lab.prompt(20), max_tokens=6)
    alone, _ = driver.generate(good)
    before = driver.submit(good)
    driver.until(TokenOutput, before)
    bad = driver.submit(generate_request(**({"prompt": lab.prompt(20)} | fields)))
    after = driver.submit(good)
    driver.finish()
    (broken,) = driver.outputs[bad]
    assert isinstance(broken, RequestFailed)
    assert broken.problem.kind == error.kind
    assert broken.problem.message
    assert driver.text(before) == alone
    assert isinstance(driver.last(after), RequestDone)


def test_a_stop_sequence_ends_the_text_and_is_not_shown(lab):
    """The text ends before the stop sequence, with reason STOP, wherever tokens split it."""
    driver = lab.driver(slots=1, ctx=512)
    request = generate_request(lab.prompt(30), max_tokens=12, ignore_eos=True)
    whole, _ = driver.generate(request)
    stop = whole[4:7]
    text, last = driver.generate(
        generate_request(request.prompt, max_tokens=12, ignore_eos=True, stop=("never", stop))
    )
    assert text == whole[: whole.index(stop)]
    assert last.reason is FinishReason.STOP
    assert last.usage.completion_tokens < 12


def test_a_stop_sequence_that_never_comes_changes_nothing(lab):
    """Text that was held back for a stop sequence is shown in the end."""
    driver = lab.driver(slots=1, ctx=512)
    request = generate_request(lab.prompt(30), max_tokens=12, ignore_eos=True)
    whole, _ = driver.generate(request)
    almost = whole[-1] + "\0never"
    text, last = driver.generate(
        generate_request(request.prompt, max_tokens=12, ignore_eos=True, stop=(almost,))
    )
    assert text == whole
    assert last.reason is FinishReason.LENGTH


def test_cancelled_while_queued_it_ends_alone(lab):
    """A request that is cancelled before it had a slot yields Done, and nothing else."""
    driver = lab.driver(slots=1, ctx=512)
    first = driver.submit(generate_request(lab.prompt(20), max_tokens=6))
    driver.until(TokenOutput, first)
    queued = driver.submit(generate_request(lab.prompt(20)))
    driver.step()
    driver.engine.cancel(queued)
    last = driver.until(RequestDone, queued)
    assert driver.outputs[queued] == [last]
    assert last.reason is FinishReason.CANCELLED
    driver.finish()
    assert driver.last(first).reason is FinishReason.LENGTH or driver.tokens(first) < 6


def test_cancelled_at_once_it_never_runs(lab):
    """A request that is cancelled before the step after its submission never gets a slot."""
    driver = lab.driver(slots=1, ctx=512)
    request_id = driver.submit(generate_request(lab.prompt(20)))
    driver.engine.cancel(request_id)
    driver.finish()
    assert [type(output) for output in driver.outputs[request_id]] == [RequestDone]


def test_cancelled_in_prefill_it_frees_its_slot(lab):
    """A cancel in the middle of a prefill ends the request and lets the next one in."""
    driver = lab.driver(slots=1, ctx=256, ubatch=32)
    request_id = driver.submit(generate_request(lab.prompt(200)))
    driver.until(RequestAdmitted, request_id)
    waiting = driver.submit(generate_request(lab.prompt(200), max_tokens=2))
    driver.engine.cancel(request_id)
    driver.finish()
    assert [type(output) for output in driver.outputs[request_id]] == [RequestAdmitted, RequestDone]
    assert driver.last(request_id).usage.completion_tokens == 0
    assert isinstance(driver.last(waiting), RequestDone)


def test_cancelled_while_generating_it_keeps_its_counts(lab):
    """A cancel between tokens ends the request; its usage tells what was generated."""
    driver = lab.driver(slots=1, ctx=512)
    request_id = driver.submit(generate_request(lab.prompt(20), max_tokens=400, ignore_eos=True))
    driver.until(TokenOutput, request_id)
    driver.step()
    driver.engine.cancel(request_id)
    driver.finish()
    last = driver.last(request_id)
    assert last.reason is FinishReason.CANCELLED
    assert last.usage.completion_tokens == driver.tokens(request_id) < 400


def test_cancelling_what_is_not_there_means_nothing(lab):
    """Unknown ids, and ids that have ended, are ignored."""
    driver = lab.driver(slots=1, ctx=512)
    driver.engine.cancel(424242)
    (request_id,) = driver.run(generate_request(lab.prompt(20), max_tokens=2))
    driver.engine.cancel(request_id)
    assert driver.step() == []
    assert not driver.engine.busy


def test_an_interrupt_loses_no_work_but_the_current(lab):
    """Interrupted in its first steps, a prefill and its answer come out the same."""
    driver = lab.driver(slots=2, ctx=512, ubatch=32)
    request = generate_request(lab.prompt(200), max_tokens=10)
    undisturbed, _ = driver.generate(request)
    request_id = driver.submit(request)
    for _ in range(10):
        driver.engine.interrupt()
        driver.step()
        driver.step()
    driver.finish()
    assert driver.text(request_id) == undisturbed


def test_an_interrupt_when_idle_does_no_lasting_harm(lab):
    """A stray interrupt costs the next request at most one step."""
    driver = lab.driver(slots=1, ctx=512)
    driver.engine.interrupt()
    driver.step()
    driver.engine.interrupt()
    text, last = driver.generate(generate_request(lab.prompt(20), max_tokens=4))
    assert text
    assert isinstance(last, RequestDone)


def test_the_number_of_threads_changes_no_text(lab):
    """Threads can change between any two steps."""
    driver = lab.driver(slots=1, ctx=512)
    request = generate_request(lab.prompt(30), max_tokens=8)
    text, _ = driver.generate(request)
    request_id = driver.submit(request)
    driver.until(TokenOutput, request_id)
    driver.engine.set_threads(2)
    driver.finish()
    driver.engine.set_threads(1)
    assert driver.text(request_id) == text


def test_the_same_seed_gives_the_same_text(lab):
    """Alone, a seed decides the text, at any temperature."""
    driver = lab.driver(slots=1, ctx=512)
    request = generate_request(lab.prompt(20), max_tokens=12, sampling=Sampling(temperature=1.5, seed=7))
    assert driver.generate(request)[0] == driver.generate(request)[0]


def test_log_probabilities_come_only_when_asked_for(lab):
    """Each token carries those of itself and of the N best, or nothing."""
    driver = lab.driver(slots=1, ctx=512)
    (plain,) = driver.run(generate_request(lab.prompt(20), max_tokens=3))
    assert not any(output.logprobs for output in driver.outputs[plain] if isinstance(output, TokenOutput))
    (asked,) = driver.run(generate_request(lab.prompt(20), max_tokens=3, logprobs=1, ignore_eos=True))
    for output in driver.outputs[asked]:
        if isinstance(output, TokenOutput) and output.count:
            (logprobs,) = output.logprobs
            assert logprobs.chosen.logprob <= 0
            assert len(logprobs.top) == 1


def test_a_load_reports_progress_and_can_be_given_up(lab):
    """Progress rises within [0, 1]; returning False aborts the load."""
    fractions = []
    engine = lab.load_engine(spec(lab.path), lambda fraction: fractions.append(fraction) or True)
    engine.close()
    assert fractions == sorted(fractions)
    assert 0 <= fractions[0] <= fractions[-1] <= 1
    with pytest.raises(LoadAborted):
        lab.load_engine(spec(lab.path), lambda _fraction: False)


def test_closing_twice_and_with_work_inside_is_fine(lab):
    """Close frees what runs and waits, and may be repeated."""
    engine = lab.load(slots=1, ctx=256)
    driver = EngineDriver(engine)
    for _ in range(3):
        driver.submit(generate_request(lab.prompt(20), max_tokens=50))
    driver.step()
    engine.close()
    engine.close()
    assert not engine.busy


def test_the_engine_says_what_it_is(lab):
    """The context of one request is bounded by the training and by the cells."""
    engine = lab.load(slots=2, ctx=256)
    info = engine.info
    assert (info.slots, info.cells, info.context) == (2, 256, 256)
    assert info.trained_context == lab.context
    engine.close()
    engine = lab.load(slots=1, ctx=10**9) if lab.name != "real" else lab.load(slots=1, ctx=512)
    assert engine.info.cells <= engine.info.trained_context
    engine.close()


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(10, 300), st.integers(1, 60)),
        st.tuples(st.just("cancel"), st.integers(1, 8), st.just(0)),
        st.tuples(st.just("step"), st.integers(1, 6), st.just(0)),
        st.tuples(st.just("interrupt"), st.just(0), st.just(0)),
    ),
    max_size=25,
)


@pytest.mark.parametrize("kind", ["fake", "tiny"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=ACTIONS)
@pytest.mark.llama
def test_whatever_happens_every_request_ends_exactly_once(request, kind, actions):
    """Any order of submits, cancels, steps and interrupts ends each request once, and frees all."""
    lab = request.getfixturevalue(f"{kind}_lab")
    driver = lab.driver(slots=3, ctx=512, ubatch=32)
    ids = []
    for action, first, second in actions:
        match action:
            case "submit":
                ids.append(driver.submit(generate_request(lab.prompt(first), max_tokens=second)))
            case "cancel":
                driver.engine.cancel(first)
            case "step":
                for _ in range(first):
                    driver.step()
            case _:
                driver.engine.interrupt()
    driver.finish()
    assert driver.running == 0
    for request_id in ids:
        assert isinstance(driver.last(request_id), RequestDone | RequestFailed)
        assert (
            sum(isinstance(output, RequestDone | RequestFailed) for output in driver.outputs[request_id]) == 1
        )
