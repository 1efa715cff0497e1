# SPDX-License-Identifier: GPL-3.0-only
"""What only the real engine has: tokens, templates, grammars, samplers, faults. On the tiny model."""

from __future__ import annotations

import math
import random
import threading

import pytest
from support.engine_driver import GREEDY, EngineDriver, generate_request
from support.tiny_llama import BOS, EOS, FIRST_BYTE

from modeld.domain.request import Constraint, ConstraintKind, GenerateRequest, Message, Sampling
from modeld.domain.request_events import FinishReason
from modeld.engine.llama.constraints import matcher as constrained
from modeld.engine.llama.kv.prefix_cache import PrefixCache
from modeld.engine.llama.kv.slots import Slots
from modeld.engine.llama.native.library import lib
from modeld.engine.llama.native.vocab import Vocab
from modeld.engine.protocol import RequestDone, RequestFailed, TokenOutput
from modeld.errors import EngineFailed, InvalidGrammar, InvalidRequest, PromptTooLong


@pytest.fixture
def driver(tiny_lab):
    return tiny_lab.driver(slots=2, ctx=512, ubatch=64)


def chat(*contents, **fields):
    """Return a greedy request of messages."""
    messages = tuple(Message(role="user", content=content) for content in contents)
    return GenerateRequest(messages=messages, **{"max_tokens": 4, "sampling": GREEDY} | fields)


def prompt_of(driver, request):
    """Return the tokens that a request is turned into."""
    request_id = driver.submit(request)
    seen = []
    original = driver.engine._schedule

    def watch():
        seen.extend(job.prompt.tolist() for job in driver.engine._running if job.id == request_id)
        return original()

    driver.engine._schedule = watch
    try:
        driver.finish()
    finally:
        del driver.engine._schedule
    assert not isinstance(driver.last(request_id), RequestFailed), driver.last(request_id)
    return seen[0]


def chosen(driver, request_id):
    """Return the ids of the generated tokens (of a request with logprobs)."""
    return [
        logprobs.chosen.token_id
        for output in driver.outputs[request_id]
        if isinstance(output, TokenOutput)
        for logprobs in output.logprobs
    ]


def grammar(text, kind=ConstraintKind.GRAMMAR):
    return Constraint(kind=kind, text=text)


def letters(text):
    return [FIRST_BYTE + byte for byte in text.encode()]


# prompts


def test_a_raw_prompt_parses_control_tokens_and_gets_its_bos(driver):
    """In `prompt` control tokens are control tokens."""
    tokens = prompt_of(driver, generate_request("a</s>b"))
    assert tokens[0] == BOS
    assert tokens.count(EOS) == 1


def test_a_template_that_writes_bos_does_not_get_it_twice(driver):
    """BOS begins the prompt once, though both template and metadata ask for it."""
    tokens = prompt_of(driver, chat("hi"))
    assert tokens[0] == BOS
    assert tokens[1] != BOS


@pytest.mark.parametrize(
    "content", ["a</s>b", "</s>", "<s>", "x<s></s>", "a</s", "s>b", "<<s>s>", "</s>\n\n</s>"]
)
def test_a_message_never_becomes_a_control_token(driver, content):
    """Only the template's own control tokens are in the prompt, and the text is whole."""
    plain = prompt_of(driver, chat("plain"))
    tokens = prompt_of(driver, chat(content))
    for control in (BOS, EOS):
        assert tokens.count(control) == plain.count(control)
    vocab = driver.engine._vocab
    text = b"".join(vocab.piece(token) for token in tokens).decode()
    space = "\u2581"  # before each text, as SentencePiece has it
    assert text == f"{space}user:{content}{space}assistant:"


def test_an_ordinary_message_is_tokenised_as_one_text(driver):
    """Without control texts in it a chat is tokenised as llama.cpp tokenises the rendered prompt."""
    tokens = prompt_of(driver, chat("hello there", "again"))
    rendered = "<s>user:hello there</s><s>user:again</s><s>assistant:"
    whole = driver.engine._vocab.tokenize(rendered, add_special=False, parse_special=True)
    assert tokens == whole.tolist()


def test_what_the_template_objects_to_is_told(driver):
    """The template's own words reach the client."""
    bad = GenerateRequest(messages=(Message(role="bad", content="x"),))
    _, last = driver.generate(bad)
    assert last.problem.kind == InvalidRequest.kind
    assert "no bad roles, please" in last.problem.message


def test_a_long_prompt_is_tokenised_in_pieces_without_a_difference(driver):
    """Cutting a long text behind control tokens, which saves time, changes no token."""
    vocab = driver.engine._vocab
    pieces = ["<s>", "</s>", "hello", " ", "\n", "<", "s>", "é", "w1"]
    chooser = random.Random(1)  # noqa: S311  # a seed that repeats it, no secret
    for _ in range(10):
        text = "".join(chooser.choice(pieces) for _ in range(4000))
        whole = vocab._tokenize(text, True, True)
        assert vocab.tokenize(text, add_special=True, parse_special=True).tolist() == whole.tolist()


@pytest.mark.parametrize("text", ["x" * 10**6, "</s>" * 10**5, "word " * 10**5])
def test_a_hopeless_prompt_is_refused_by_its_beginning(driver, text):
    """A megabyte is not tokenised to say that it is too long, as prompt or as message."""
    for request in (generate_request(text), chat(text)):
        _, last = driver.generate(request)
        assert last.problem.kind == PromptTooLong.kind
        assert last.problem.details["prompt_tokens"] > 10 * last.problem.details["context"]
        assert len(driver.engine._vocab._room) < 20_000


def test_no_request_without_a_single_token_to_generate(driver):
    """A negative max_tokens is refused; 0 is as many as fit (`AS_MANY_AS_FIT`), and no dialect's own word."""
    _, last = driver.generate(generate_request("hi", max_tokens=-1))
    assert last.problem.kind == InvalidRequest.kind


def test_lone_surrogates_are_text_too(driver):
    """Text that is no Unicode is replaced, not a crash."""
    _, last = driver.generate(generate_request("a\ud800b"))
    assert isinstance(last, RequestDone)


# grammars


def test_the_text_matches_its_grammar(driver):
    """With a grammar the text is in its language, and ends when nothing more can follow."""
    text, last = driver.generate(
        generate_request("x", constraint=grammar('root ::= "yes" | "no"'), max_tokens=20)
    )
    assert text in {"yes", "no"}
    assert last.reason is FinishReason.STOP


def test_a_finished_grammar_ends_even_if_the_end_is_banned(driver):
    """ignore_eos cannot force a token where the grammar allows none."""
    request = generate_request("x", constraint=grammar('root ::= "ab"'), ignore_eos=True, max_tokens=20)
    text, last = driver.generate(request)
    assert text == "ab"
    assert last.reason is FinishReason.STOP


def test_a_grammar_whose_every_token_is_banned_ends_at_once(driver):
    """When logit_bias bans what the grammar requires, there is nothing to say."""
    sampling = Sampling(temperature=0.0, logit_bias=((letters("a")[0], -math.inf),))
    text, last = driver.generate(generate_request("x", constraint=grammar('root ::= "a"'), sampling=sampling))
    assert text == ""
    assert last.reason is FinishReason.STOP


def test_characters_that_span_tokens_match_a_grammar(driver):
    """Several byte tokens make one character of the grammar."""
    text, _ = driver.generate(
        generate_request("x", constraint=grammar('root ::= "€" [äöü] "😀"'), max_tokens=20)
    )
    assert text[0] == "€"
    assert text[1] in "äöü"
    assert text[2:] == "😀"


def test_constrained_and_free_requests_share_steps(driver):
    """A grammar binds only its own request."""
    free = generate_request("hello", max_tokens=10, ignore_eos=True)
    alone, _ = driver.generate(free)
    bound = generate_request("x", constraint=grammar("root ::= [a-c]{8}"), max_tokens=20)
    first, second = driver.run(free, bound)
    assert driver.text(first) == alone
    assert len(driver.text(second)) == 8


def test_a_grammar_that_takes_too_long_ends_its_request_only(driver, monkeypatch):
    """Its neighbour goes on, and its slot is free again."""
    monkeypatch.setattr(constrained, "MAX_DRAW", -1.0)
    slow, free = driver.run(
        generate_request("x", constraint=grammar("root ::= [a-c]{8}"), max_tokens=20),
        generate_request("y", max_tokens=9),
    )
    assert isinstance(driver.outputs[slow][-1], RequestFailed)
    assert "took more than" in driver.outputs[slow][-1].problem.message
    assert isinstance(driver.outputs[free][-1], RequestDone)
    assert not driver.engine.busy


def test_sampling_with_a_grammar_follows_the_seed(driver):
    """Same seed, same constrained text; other seeds give others."""
    texts = {}
    for seed in (1, 1, 2, 3, 4):
        request = generate_request(
            "x",
            constraint=grammar("root ::= [a-z]{12}"),
            max_tokens=20,
            sampling=Sampling(temperature=2.0, seed=seed, top_k=0, top_p=1.0, min_p=0.0),
        )
        text, _ = driver.generate(request)
        assert texts.setdefault(seed, text) == text
    assert len(set(texts.values())) > 1


@pytest.mark.parametrize("text", ['root ::= root "a"', "root ::= a\na ::= b\nb ::= a"])
def test_a_grammar_that_only_llama_can_judge_is_refused(driver, text):
    """Left recursion passes our own check; llama.cpp refuses it, and nothing breaks."""
    _, last = driver.generate(generate_request("x", constraint=grammar(text)))
    assert last.problem.kind == InvalidGrammar.kind


def test_a_json_schema_binds_the_text(driver):
    """With a schema the text is JSON of that schema."""
    schema = '{"type":"object","properties":{"ok":{"type":"boolean"}},"required":["ok"]}'
    text, last = driver.generate(
        generate_request("x", constraint=grammar(schema, ConstraintKind.JSON_SCHEMA), max_tokens=60)
    )
    assert "".join(text.split()) in {'{"ok":true}', '{"ok":false}'}
    assert last.reason is FinishReason.STOP


def test_lone_surrogates_in_a_constraint_break_nothing(driver):
    """Text that is no Unicode is replaced in a grammar; in a schema it is refused, as no text can have it."""
    bound = grammar('root ::= "\ud800"', ConstraintKind.GRAMMAR)
    _, last = driver.generate(generate_request("x", constraint=bound, max_tokens=20))
    assert isinstance(last, RequestDone)
    bound = grammar('{"const": "\\ud800"}', ConstraintKind.JSON_SCHEMA)
    _, last = driver.generate(generate_request("x", constraint=bound, max_tokens=20))
    assert isinstance(last, RequestFailed)
    assert "surrogate" in last.problem.message


def test_a_defect_in_preparing_one_request_ends_only_that_one(driver, monkeypatch):
    """Whatever goes wrong with a request before it runs, its neighbours are served."""
    running = driver.submit(generate_request("hello", max_tokens=20, ignore_eos=True))
    driver.until(TokenOutput, running)

    def fail(*_args, **_kwargs):
        raise ZeroDivisionError

    monkeypatch.setattr(driver.engine._vocab, "tokenize_parts", fail)
    broken = driver.submit(generate_request("bye"))
    driver.finish()
    assert driver.last(broken).problem.kind == EngineFailed.kind
    assert driver.last(running).reason is FinishReason.LENGTH


# samplers


def test_log_probabilities_are_those_of_the_raw_model(driver):
    """They sum to one over the vocabulary, come most probable first, and greedy takes the first."""
    (request_id,) = driver.run(generate_request("hello", max_tokens=3, logprobs=10_000, ignore_eos=True))
    for output in driver.outputs[request_id]:
        if isinstance(output, TokenOutput) and output.logprobs:
            (logprobs,) = output.logprobs
            values = [token.logprob for token in logprobs.top]
            assert len(values) == driver.engine.info.vocabulary
            assert math.isclose(sum(map(math.exp, values)), 1.0, rel_tol=1e-6)
            assert values == sorted(values, reverse=True)
            by_id = {token.token_id: token for token in logprobs.top}
            assert by_id[logprobs.chosen.token_id] == logprobs.chosen == logprobs.top[0]


def test_log_probabilities_do_not_depend_on_how_tokens_are_drawn(driver):
    """Bias, temperature, penalties and grammars change which token is chosen, not what the model held."""
    plain, *others = (
        generate_request("hello", max_tokens=1, logprobs=320, **fields)
        for fields in (
            {},
            {"sampling": Sampling(temperature=0.0, logit_bias=((letters("q")[0], 100.0),))},
            {"sampling": Sampling(temperature=3.0, seed=1, repeat_penalty=1.5, presence_penalty=2.0)},
            {"constraint": Constraint(kind=ConstraintKind.GRAMMAR, text='root ::= "z"')},
        )
    )
    (first,) = driver.run(plain)
    expected = driver.outputs[first][1].logprobs[0]
    for request in others:
        (request_id,) = driver.run(request)
        found = driver.outputs[request_id][1].logprobs[0]
        assert found.chosen != expected.chosen
        assert found.top == expected.top


def test_zero_log_probabilities_tell_of_the_chosen_token_only(driver):
    """N = 0 is not the same as none."""
    (request_id,) = driver.run(generate_request("hello", max_tokens=1, logprobs=0))
    (logprobs,) = driver.outputs[request_id][1].logprobs
    assert logprobs.top == ()
    assert logprobs.chosen.logprob < 0


def test_a_bias_forces_and_bans_tokens(driver):
    """A large bias decides; minus infinity never lets a token through."""
    letter = letters("q")[0]
    text, _ = driver.generate(
        generate_request("hello", sampling=Sampling(temperature=0.0, logit_bias=((letter, 100.0),)))
    )
    assert text == "q" * 8
    bans = tuple((token, -math.inf) for token in range(320) if token not in letters("z"))
    text, _ = driver.generate(generate_request("hello", sampling=Sampling(temperature=1.0, logit_bias=bans)))
    assert text == "z" * 8


def test_a_bias_of_a_text_is_one_of_each_of_its_tokens(driver):
    """As if the tokens were named one by one; control tokens in it are text."""

    def choose(*biases, temperature=0.0):
        sampling = Sampling(temperature=temperature, seed=1, logit_bias=biases)
        return driver.generate(generate_request("hello", sampling=sampling))[0]

    q, z = letters("qz")
    assert choose(("qz", 100.0), (z, 1.0)) == choose((q, 100.0), (z, 101.0)) == "z" * 8
    assert choose(("qq", 50.0), (z, 99.0)) == "q" * 8, "a token that is there twice has it twice"
    bans = ((token, -math.inf) for token in range(320) if token not in letters("qz"))
    assert choose(("q", -math.inf), *bans, temperature=1.0) == "z" * 8


def test_a_text_without_tokens_is_refused(driver, monkeypatch):
    """In a sentence with the text."""
    real = Vocab.tokenize

    def without_line_ends(vocab, text, **how):
        return real(vocab, "" if text == "\n" else text, **how)

    monkeypatch.setattr(Vocab, "tokenize", without_line_ends)
    (request_id,) = driver.run(generate_request("hello", sampling=Sampling(logit_bias=(("\n", 1.0),))))
    (broken,) = driver.outputs[request_id]
    assert broken.problem.message == r"logit_bias: this model has no tokens for the text '\n'"


def test_a_stop_token_ends_the_text_and_has_none(driver):
    """The text ends before the token, which counts no more than an end-of-generation token does."""
    forced = Sampling(temperature=0.0, logit_bias=((letters("q")[0], 100.0),))
    text, last = driver.generate(generate_request("hello", sampling=forced, stop_tokens=tuple(letters("xq"))))
    assert (text, last.reason, last.usage.completion_tokens) == ("", FinishReason.STOP, 0)
    text, last = driver.generate(generate_request("hello", sampling=forced, stop_tokens=tuple(letters("x"))))
    assert (text, last.reason) == ("q" * 8, FinishReason.LENGTH)


def test_end_tokens_still_end_a_text_with_stop_tokens(driver):
    """Stop tokens come in addition."""
    forced = Sampling(temperature=0.0, logit_bias=((EOS, 100.0),))
    text, last = driver.generate(generate_request("hello", sampling=forced, stop_tokens=tuple(letters("x"))))
    assert (text, last.reason) == ("", FinishReason.STOP)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"stop_tokens": (320,)}, "names token 320; this model has tokens 0 to 319"),
        ({"stop_tokens": (5, -1)}, "names token -1"),
        ({"stop_tokens": (EOS,), "ignore_eos": True}, "which ignore_eos bans"),
    ],
)
def test_stop_tokens_that_cannot_be_are_refused(driver, fields, told):
    """A token that the model does not have, or that is banned, is named."""
    _, last = driver.generate(generate_request("hello", **fields))
    assert last.problem.kind == InvalidRequest.kind
    assert told in last.problem.message


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(logit_bias=((320, 1.0),)),
        Sampling(logit_bias=((5, math.nan),)),
        Sampling(logit_bias=((5, math.inf),)),
        Sampling(logit_bias=tuple((token, -math.inf) for token in range(320))),
        Sampling(temperature=math.nan),
        Sampling(top_p=math.inf),
        Sampling(repeat_penalty=0.0),
        Sampling(repeat_penalty=-1.0),
        Sampling(presence_penalty=math.inf),
        Sampling(frequency_penalty=math.nan),
    ],
)
def test_values_that_llama_would_abort_on_are_refused(driver, sampling):
    """Not finite, out of range, or nothing left to choose: InvalidRequest."""
    _, last = driver.generate(generate_request("hello", sampling=sampling))
    assert isinstance(last, RequestFailed)
    assert last.problem.kind == InvalidRequest.kind


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1e-30, seed=1),
        Sampling(temperature=1e30, seed=1),
        Sampling(temperature=1.0, top_p=0.0, seed=1),
        Sampling(temperature=1.0, min_p=5.0, seed=1),
        Sampling(temperature=1.0, typical_p=0.0, seed=1),
        Sampling(temperature=1.0, top_k=10**9, seed=1),
        Sampling(temperature=1.0, top_k=-5, seed=1),
        Sampling(temperature=1.0, seed=-(2**70)),
        Sampling(temperature=1.0, seed=2**32 - 1),
        Sampling(repeat_penalty=1e30, presence_penalty=-1e30, frequency_penalty=1e30, seed=1),
        Sampling(logit_bias=((5, 1e300), (5, 1e300), (6, -1e300)), seed=1),
    ],
)
def test_extreme_values_still_yield_text(driver, sampling):
    """Whatever is in range works, and works the same twice."""
    request = generate_request("hello", sampling=sampling, ignore_eos=True)
    (text, last), (again, _) = driver.generate(request), driver.generate(request)
    assert last.reason is FinishReason.LENGTH
    assert text == again


@pytest.mark.parametrize(
    "narrow",
    [{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {"temperature": 1e-4}],
    ids=lambda narrow: next(iter(narrow)),
)
def test_the_narrowest_choice_is_greedy(driver, narrow):
    """top-k, top-p, min-p and temperature at their ends leave only the most probable token."""
    fields = {"temperature": 2.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 5} | narrow
    greedy, _ = driver.generate(generate_request("hello", ignore_eos=True, max_tokens=20))
    text, _ = driver.generate(
        generate_request("hello", ignore_eos=True, max_tokens=20, sampling=Sampling(**fields))
    )
    assert text == greedy


def test_typical_sampling_narrows_the_choice(driver):
    """At its end typical-p leaves one token, so that the seed does not matter."""
    texts = {
        driver.generate(
            generate_request(
                "hello",
                ignore_eos=True,
                sampling=Sampling(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, typical_p=1e-9, seed=seed),
            )
        )[0]
        for seed in range(5)
    }
    assert len(texts) == 1


def test_seeds_differ_and_no_seed_is_a_fresh_one(driver):
    """Other seeds, and no seed, give other texts."""
    wide = {"temperature": 2.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    for seeds in (range(5), [None] * 5):
        texts = {
            driver.generate(generate_request("hello", ignore_eos=True, sampling=Sampling(seed=seed, **wide)))[
                0
            ]
            for seed in seeds
        }
        assert len(texts) > 1


def test_penalties_see_the_prompt_and_the_answer(driver):
    """A large presence penalty keeps every token from coming twice, those of the prompt included."""
    sampling = Sampling(temperature=0.0, presence_penalty=1000.0)
    request = generate_request("abcdefgh", max_tokens=30, sampling=sampling, ignore_eos=True, logprobs=0)
    prompt = prompt_of(driver, request)
    (request_id,) = driver.run(request)
    tokens = chosen(driver, request_id)
    assert len({*tokens, *prompt}) == 30 + len(set(prompt))


def test_penalties_look_back_so_far_and_no_farther(driver):
    """Of a long prompt only the last 64 tokens count."""
    sampling = Sampling(temperature=0.0, presence_penalty=1000.0, logit_bias=((letters("q")[0], 500.0),))
    text, _ = driver.generate(generate_request("q" + "a" * 80, max_tokens=1, sampling=sampling))
    assert text == "q"
    text, _ = driver.generate(generate_request("a" * 80 + "q", max_tokens=1, sampling=sampling))
    assert text != "q"


def test_an_end_token_ends_the_text_and_can_be_banned(driver):
    """EOS is STOP and no text; with ignore_eos it never comes."""
    sampling = Sampling(temperature=0.0, logit_bias=((EOS, 1000.0),))
    text, last = driver.generate(generate_request("hello", sampling=sampling))
    assert (text, last.reason, last.usage.completion_tokens) == ("", FinishReason.STOP, 0)
    _, last = driver.generate(generate_request("hello", sampling=sampling, ignore_eos=True))
    assert last.reason is FinishReason.LENGTH


# faults


def test_interrupts_from_another_thread_lose_nothing(driver):
    """However often and whenever another thread interrupts, the text is the same."""
    request = generate_request("x" * 150, max_tokens=30, ignore_eos=True)
    undisturbed, _ = driver.generate(request)
    ids = [driver.submit(request), driver.submit(request)]
    going = threading.Event()

    def hammer():
        going.wait()
        for _ in range(300):
            driver.engine.interrupt()

    thread = threading.Thread(target=hammer)
    thread.start()
    going.set()
    driver.finish()
    thread.join()
    driver.engine.interrupt()
    assert [driver.text(request_id) for request_id in ids] == [undisturbed] * 2


def test_when_cells_run_out_the_newest_pays_and_the_rest_goes_on(tiny_lab):
    """Should the cache be full against all accounts, one request fails and the others end well."""
    driver = EngineDriver(tiny_lab.load(slots=2, ctx=256))
    driver.engine._places.cache = PrefixCache(Slots(2, 10_000), 0)
    old = driver.submit(generate_request("x" * 100, max_tokens=150, ignore_eos=True))
    new = driver.submit(generate_request("x" * 100, max_tokens=150, ignore_eos=True))
    driver.finish()
    assert driver.last(old).reason is FinishReason.LENGTH
    assert driver.tokens(old) == 150
    assert driver.last(new).problem.kind == EngineFailed.kind
    assert "KV cells" in driver.last(new).problem.message
    driver.engine.close()


def test_a_decode_that_keeps_failing_breaks_the_engine(tiny_lab, monkeypatch):
    """Each fault costs one request; after the third in a row the engine says that it is broken."""
    driver = EngineDriver(tiny_lab.load(slots=4, ctx=512))
    ids = [driver.submit(generate_request("hello")) for _ in range(4)]
    driver.step()
    monkeypatch.setattr(lib, "llama_decode", lambda _context, _batch: -3)
    driver.step()
    driver.step()
    assert [isinstance(driver.last(request_id), RequestFailed) for request_id in ids] == [
        False,
        False,
        True,
        True,
    ]
    with pytest.raises(EngineFailed, match="3 times in a row"):
        driver.step()
    driver.engine.close()


def test_one_failed_decode_costs_one_request(tiny_lab, monkeypatch):
    """After a passing fault the other requests go on and end as if nothing had been."""
    driver = EngineDriver(tiny_lab.load(slots=2, ctx=512))
    alone, _ = driver.generate(generate_request("hello", max_tokens=20))
    old, new = (
        driver.submit(generate_request("hello", max_tokens=20)),
        driver.submit(generate_request("bye", max_tokens=20)),
    )
    driver.until(TokenOutput, new)
    with monkeypatch.context() as patch:
        patch.setattr(lib, "llama_decode", lambda _context, _batch: -3)
        driver.step()
    driver.finish()
    assert driver.text(old) == alone
    assert driver.last(new).problem.kind == EngineFailed.kind
    driver.engine.close()
