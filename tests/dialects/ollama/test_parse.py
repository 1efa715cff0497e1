# SPDX-License-Identifier: GPL-3.0-only
"""What the dialect of Ollama takes, and what it says about everything else."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from msgspec.structs import replace
from support.backend import TINY
from support.parser_checks import VALUES, is_taken_or_refused

from modeld.dialects.common.body import MAX_INT32
from modeld.dialects.ollama import (
    ParsedOllama,
    order_of,
    parse_chat,
    parse_embed,
    parse_embeddings,
    parse_generate,
    parse_pull,
    parse_show,
)
from modeld.dialects.ollama.common import OPERATORS
from modeld.dialects.ollama.embed import ParsedEmbed
from modeld.domain.model import LoadOptions, ModelFacts
from modeld.domain.request import (
    AS_MANY_AS_FIT,
    Constraint,
    ConstraintKind,
    EmbedRequest,
    GenerateRequest,
    Message,
    Sampling,
    TokenizeRequest,
)
from modeld.errors import InvalidRequest

TALKER = replace(TINY, facts=ModelFacts(architecture="llama", context_length=2048, has_chat_template=True))
DEFAULTS = Sampling(top_p=0.9, min_p=0.0)


def generate(**keys) -> ParsedOllama:
    return parse_generate(json.dumps({"prompt": "Hello", **keys}).encode())


def chat(*turns: dict, **keys) -> ParsedOllama:
    messages = turns or ({"role": "user", "content": "Hello"},)
    return parse_chat(json.dumps({"messages": messages, **keys}).encode())


def sampling(**options) -> Sampling:
    request = generate(options=options).request
    assert request is not None
    return request.sampling


def refusal(parse, **keys) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse(json.dumps(keys).encode())
    return caught.value.message


def test_a_prompt_becomes_a_message_and_takes_the_defaults_of_ollama() -> None:
    """The model's own template renders it; nothing bounds the text but its slot's share."""
    asked = generate()
    assert order_of(asked, TALKER).request == GenerateRequest(
        messages=(Message(role="user", content="Hello"),), max_tokens=AS_MANY_AS_FIT, sampling=DEFAULTS
    )
    assert asked.stream
    assert not asked.unloads


def test_null_means_the_default() -> None:
    """Clients that write null for what they do not set get the default."""
    keys = "model system template raw suffix images context stream format keep_alive think options truncate"
    assert generate(**dict.fromkeys(f"{keys} shift logprobs top_logprobs".split())) == generate()
    assert generate(options=dict.fromkeys(["num_ctx", "top_k", "stop", *OPERATORS])) == generate()


def test_a_system_prompt_comes_before() -> None:
    """`system` is a message of its own, and a text of its own where there is no template."""
    asked = generate(system="Be brief.")
    request = order_of(asked, TALKER).request
    assert isinstance(request, GenerateRequest)
    assert [turn.role for turn in request.messages] == ["system", "user"]
    plain = order_of(asked, TINY).request
    assert isinstance(plain, GenerateRequest)
    assert (plain.prompt, plain.messages) == ("Be brief.\n\nHello", ())


def test_raw_and_template_are_prompts_as_they_are() -> None:
    """Control tokens in them count, so they go past the model's template."""
    raw = generate(raw=True).request
    assert raw is not None
    assert (raw.prompt, raw.messages) == ("Hello", ())
    templated = generate(template="[{{ .System }}] {{ .Prompt }} =>", system="x").request
    assert templated is not None
    assert (templated.prompt, templated.messages) == ("[x] Hello =>", ())


def test_every_option_reaches_the_order() -> None:
    """No option that means something here is silently dropped."""
    options = {
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.5,
        "min_p": 0.1,
        "typical_p": 0.9,
        "repeat_last_n": 5,
        "repeat_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "seed": 11,
    }
    assert sampling(**options) == Sampling(**options)
    request = generate(options={"stop": ["a", "b"], "num_predict": 9}, logprobs=True, top_logprobs=3).request
    assert request is not None
    assert (request.stop, request.max_tokens, request.logprobs) == (("a", "b"), 9, 3)
    assert generate(options={"stop": "a"}).request == generate(options={"stop": ["a"]}).request


@pytest.mark.parametrize(
    ("num_predict", "max_tokens"), [(-1, AS_MANY_AS_FIT), (0, AS_MANY_AS_FIT), (-2, MAX_INT32), (3, 3)]
)
def test_num_predict_bounds_the_text(num_predict: int, max_tokens: int) -> None:
    """-1 is what a slot has, -2 all of the context."""
    request = generate(options={"num_predict": num_predict}).request
    assert request is not None
    assert request.max_tokens == max_tokens


def test_mirostat_takes_the_place_of_what_it_replaces() -> None:
    """As in Ollama, the others are off alongside it, and it is off when greedy; the answer says so."""
    drawn = sampling(mirostat=2, top_k=5, mirostat_tau=3, mirostat_eta=0.2)
    assert (drawn.mirostat, drawn.mirostat_tau, drawn.mirostat_eta) == (2, 3, 0.2)
    assert (drawn.top_k, drawn.top_p, drawn.min_p) == (0, 1.0, 0.0)
    assert sampling(mirostat=1, temperature=0).mirostat == 0
    assert "top_k" in generate(options={"mirostat": 1, "top_k": 5}).terms.notice(TALKER)
    assert "mirostat" in generate(options={"mirostat": 1, "temperature": 0}).terms.notice(TALKER)


def test_seeds_of_any_size_are_taken() -> None:
    """Clients of Ollama draw 64 bits; a negative one draws afresh."""
    assert sampling(seed=-1).seed is None
    assert sampling(seed=2**40 + 3).seed == (2**40 + 3) % (2**32 - 1)
    assert sampling(top_k=-1).top_k == 0


def test_num_ctx_is_clamped_and_the_answer_can_say_so() -> None:
    """Whatever a client asks for, the model keeps the context it was loaded with."""
    spec = replace(TALKER, options=LoadOptions(ctx=8192, slots=4))
    terms = generate(options={"num_ctx": 32768}).terms
    assert terms.context(spec) == 2048
    assert terms.notice(spec).startswith("num_ctx 32768 became 2048, the context that tiny-q4.gguf")
    assert generate(options={"num_ctx": 2048}).terms.notice(spec) == ""
    assert generate().terms.context(spec) is None
    split = replace(spec, options=LoadOptions(ctx=4096, slots=4, kv_unified=False))
    assert terms.context(split) == 1024


def test_options_of_the_operator_change_nothing_and_are_named() -> None:
    """They would load the model again; they are accepted, and the answer names them."""
    asked = generate(options={"num_gpu": 1, "num_thread": 8, "use_mmap": True})
    assert asked.request == generate().request
    assert asked.terms.notice(TALKER) == "no effect here: num_gpu, num_thread, use_mmap"


def test_format_is_a_constraint() -> None:
    """`json` is any object; a schema is taken as it is; nothing is nothing."""
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}}
    request = generate(format=schema).request
    assert request is not None
    assert request.constraint is not None
    assert json.loads(request.constraint.text) == schema
    request = generate(format="json").request
    assert request is not None
    assert request.constraint == Constraint(kind=ConstraintKind.JSON_SCHEMA, text='{"type":"object"}')
    assert generate(format="") == generate()


def test_without_a_prompt_a_model_is_loaded_or_unloaded() -> None:
    """The order needs no slot; `keep_alive` 0 says that the model goes."""
    for load in (parse_generate(b'{"model":"tiny"}'), parse_chat(b'{"model":"tiny","messages":[]}')):
        assert not load.stream
        assert not load.unloads
        assert order_of(load, TALKER).request == TokenizeRequest(content="")
    unload = parse_generate(b'{"model":"tiny","keep_alive":0}')
    assert unload.unloads
    assert order_of(unload, TALKER).keep_alive_s == 0
    assert not generate(keep_alive=0).unloads


@pytest.mark.parametrize(("written", "seconds"), [("5m", 300.0), (2.5, 2.5), (-1, -1.0), ("-1", -1.0)])
def test_keep_alive_is_a_duration(written: str | float, seconds: float) -> None:
    """Numbers are seconds; negative is for ever."""
    assert order_of(generate(keep_alive=written), TALKER).keep_alive_s == seconds


def test_a_conversation_is_taken_as_it_is() -> None:
    """Roles in any case, as Ollama; thoughts are not sent again."""
    asked = chat(
        {"role": "System", "content": "Be brief."},
        {"role": "assistant", "content": "Hm.", "thinking": "..."},
        {"role": "user", "content": "Hello", "images": []},
    )
    assert asked.request is not None
    assert asked.request.messages == (
        Message(role="system", content="Be brief."),
        Message(role="assistant", content="Hm."),
        Message(role="user", content="Hello"),
    )


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"suffix": "x"}, "`suffix` is not served"),
        ({"images": ["aGk="]}, "no model has vision"),
        ({"context": [1, 2]}, "`context` is not served"),
        ({"think": True}, "`think` is not served"),
        ({"think": "high"}, "`think` is not served"),
        ({"raw": True, "system": "x"}, "leave out `template` and `system`"),
        ({"format": "yaml"}, '`format` must be "json" or a JSON schema'),
        ({"format": ["object"]}, '`format` must be "json" or a JSON schema'),
        ({"top_logprobs": 3}, "needs `logprobs`"),
        ({"top_logprobs": 21, "logprobs": True}, "`top_logprobs` must be"),
        ({"template": "{{ range .Messages }}"}, "`template`: `range` is not known"),
        ({"keep_alive": "soon"}, "`keep_alive`"),
        ({"promt": "x"}, 'unknown key "promt"; did you mean prompt'),
        ({"options": {"num_cxt": 1}}, 'unknown key "num_cxt" in `options`; did you mean num_ctx'),
        ({"options": {"temperature": -1}}, "`options.temperature` must be a number >= 0"),
        ({"options": {"tfs_z": 0.5}}, "`options.tfs_z`"),
        ({"options": {"stop": [""]}}, "`options.stop[0]`"),
        ({"width": 512}, 'unknown key "width"'),
        ({"prompt": ["x"]}, "`prompt` must be a string, not a list"),
    ],
)
def test_what_is_not_served_is_named(keys: dict, said: str) -> None:
    """A sentence with the key, and what to do."""
    assert said in refusal(parse_generate, **{"prompt": "Hello", **keys})


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        (
            {"role": "robot", "content": "x"},
            "`messages[0].role` must be one of system, user",
        ),
        ({"role": "user", "content": [{"type": "text"}]}, "`messages[0].content` must be a string"),
        ({"role": "user", "content": "x", "images": ["aGk="]}, "`messages[0].images`: no model has vision"),
        ({"content": "x"}, 'lacks the key "role"'),
        ({"role": "user", "text": "x"}, 'unknown key "text" in `messages[0]`'),
        ("x", "`messages[0]` must be an object"),
    ],
)
def test_bad_messages_are_told(turn: object, said: str) -> None:
    """Which message it is, and what is wrong with it."""
    assert said in refusal(parse_chat, messages=[turn])


def test_half_a_surrogate_is_told() -> None:
    """JSON can spell half a character, which no text has."""
    with pytest.raises(InvalidRequest, match="half of a character"):
        parse_chat(b'{"messages":[{"role":"user","content":"\\ud83d"}]}')


def test_ten_thousand_messages_are_parsed() -> None:
    """How many fit is the model's matter, not the parser's."""
    asked = chat(*[{"role": "user", "content": "x"}] * 10_000)
    assert asked.request is not None
    assert len(asked.request.messages) == 10_000


def test_inputs_of_vectors() -> None:
    """One text or several; too long ones are cut, as Ollama does, unless the client forbids it."""
    assert parse_embed(b'{"input":"a"}').request == EmbedRequest(inputs=("a",), truncate=True)
    assert parse_embed(b'{"input":["a","b"],"truncate":false}').request == EmbedRequest(inputs=("a", "b"))
    assert parse_embeddings(b'{"prompt":"a"}').request == EmbedRequest(
        inputs=("a",), normalize=False, truncate=True
    )
    for nothing in (b'{"input":[]}', b'{"input":""}', b"{}"):
        assert parse_embed(nothing).order(TINY).request == TokenizeRequest(content="")
    assert "`input[1]` is empty" in refusal(parse_embed, input=["a", ""])
    assert "`input[0]` must be a string" in refusal(parse_embed, input=[1])
    assert "`dimensions`" in refusal(parse_embed, input="a", dimensions=0)


def test_names_of_models_have_two_spellings() -> None:
    """Older clients write `name`."""
    assert parse_show(b'{"name":"a"}') == parse_show(b'{"model":"a"}') == "a"
    assert parse_pull(b'{"model":"a","stream":false}') == ("a", False)


@given(VALUES)
@settings(max_examples=50)
def test_no_body_breaks_the_parsers(value: object) -> None:
    """Whatever comes is taken or refused."""
    for body in (value, {"prompt": value, "messages": value, "options": value, "format": value}):
        assert is_taken_or_refused(parse_generate, body, ParsedOllama)
        assert is_taken_or_refused(parse_chat, body, ParsedOllama)
        assert is_taken_or_refused(parse_embed, body, ParsedEmbed)
        assert is_taken_or_refused(parse_embeddings, body, ParsedEmbed)
        assert is_taken_or_refused(parse_show, body, str, None)
        assert is_taken_or_refused(parse_pull, body, tuple)
