# SPDX-License-Identifier: GPL-3.0-only
"""Calls that a model begins by itself: bound by the schemas of the functions that were offered."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace
from support.engine_driver import spec
from support.grammars import calls_of, compiler_for, until_compiled
from support.logits_row import GREEDY, LogitsRow
from support.tiny_gguf import VOCABULARY, write_model
from support.tiny_llama import EOS, FIRST_BYTE, TEMPLATE

from modeld.domain.request import Tool
from modeld.engine.llama.constraints import compiler as compiler_module
from modeld.engine.llama.constraints.compiler import GrammarCompiler
from modeld.engine.llama.constraints.guidance import try_grammars
from modeld.engine.llama.engine import load
from modeld.engine.llama.prompts import tool_grammar
from modeld.engine.llama.prompts.tool_form import CallForm, form_of
from modeld.engine.llama.prompts.tool_grammar import CallGrammars
from modeld.engine.llama.sampling.sampler import Sampler
from modeld.errors import InvalidGrammar

THINK, THOUGHT, MARKER = VOCABULARY - 3, VOCABULARY - 2, VOCABULARY - 1
PAINT = Tool(
    name="paint",
    parameters=json.dumps(
        {
            "type": "object",
            "properties": {"colour": {"$ref": "#/$defs/colour"}},
            "required": ["colour"],
            "additionalProperties": False,
            "$defs": {"colour": {"enum": ["red", "green"]}},
        }
    ),
)
CLEAN = Tool(name="clean", parameters='{"type": "object", "properties": {"way0": {"type": "integer"}}}')
BROKEN = Tool(name="broken", parameters='{"$ref": "#/$defs/none"}')
HERMES = '<tool_call>\n{"name": "paint", "arguments": {"colour": "'
CALLS = {
    CallForm.HERMES: (HERMES, 'red"}}</tool_call>\n<tool_call>{"name": "clean","arguments":{}}</tool_call>'),
    CallForm.MISTRAL_LIST: ('[TOOL_CALLS] [{"name": "paint", "arguments": {"colour": "',
                            'red"}}, {"name": "clean", "arguments": {}}]'),
    CallForm.MISTRAL_NAMES: ('[TOOL_CALLS]paint[CALL_ID]a1b2c3d4e[ARGS]{"colour": "',
                             'red"}[TOOL_CALLS]clean{"way0": 7}'),
    CallForm.LLAMA: ('<|python_tag|>{"name": "paint", "parameters": {"colour": "',
                     'red"}}; {"name": "clean", "parameters": {}}'),
}  # fmt: skip
OPENING = '{"name": "paint", "parameters": {"colour": "'


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("marked")
    path = write_model(
        folder / "m.gguf", chat_template=TEMPLATE, controls=("<think>", "</think>", "</tool_call>")
    )
    found = load(spec(path, slots=1, ctx=256), lambda _fraction: True)
    yield found
    found.close()


class Text:
    """One generation whose next token a test wishes for, and may not get."""

    def __init__(self, engine, form, *tools, thought="") -> None:
        self.engine = engine
        self.row = LogitsRow(engine)
        grammar = replace(calls_of(self.row.vocab, tools, form), thought=thought)
        self.sampler = Sampler(self.row.vocab, GREEDY, context=256, grammar=grammar)

    def wish(self, *tokens):
        return self.row.draw_preferring(self.sampler, *tokens)

    def write(self, text):
        """Wish for the letters of a text, and return what came of it."""
        drawn = [self.wish(FIRST_BYTE + byte) for byte in text.encode()]
        return bytes(token - FIRST_BYTE for token in drawn).decode()

    def close(self):
        self.sampler.close()
        self.engine._places.memory.clear()


@pytest.mark.parametrize("form", CallForm)
@pytest.mark.llama
def test_a_call_is_bound_once_it_is_begun(engine, form) -> None:
    """Text before it is free; then only functions that there are, arguments that fit, and the end."""
    begin, rest = CALLS[form]
    text = Text(engine, form, PAINT, CLEAN)
    assert text.write("I will {paint} <it>. ") == "I will {paint} <it>. "
    assert text.write(begin) == begin
    assert text.write("b") in {"r", "g"}, "blue is no colour of theirs"
    text.close()
    text = Text(engine, form, PAINT, CLEAN)
    assert text.write(begin + rest) == begin + rest
    assert text.wish(FIRST_BYTE + ord("z"), EOS) == EOS
    text.close()


@pytest.mark.parametrize("form", CallForm)
@pytest.mark.llama
def test_a_function_that_was_not_offered_cannot_be_called(engine, form) -> None:
    """The name is one of those that there are."""
    begin, _ = CALLS[form]
    text = Text(engine, form, CLEAN)
    head = begin[: begin.index("paint")]
    assert text.write(head) == head
    assert text.write("p") in {"c", "\n", " "}
    text.close()


@pytest.mark.llama
def test_text_without_a_call_is_free(engine) -> None:
    """Nobody is forced to call; JSON in the middle of a text is text."""
    for form in CallForm:
        text = Text(engine, form, PAINT)
        said = 'Like this: {"name": "bob"} </tool_call>'
        assert text.write(said) == said
        assert text.wish(EOS) == EOS
        text.close()


@pytest.mark.llama
def test_llamas_json_is_a_call_only_where_the_text_begins(engine) -> None:
    """Blanks may stand before it."""
    text = Text(engine, CallForm.LLAMA, PAINT)
    assert text.write("\n " + OPENING) == "\n " + OPENING
    assert text.write("b") in {"r", "g"}
    text.close()
    text = Text(engine, CallForm.LLAMA, PAINT)
    assert text.write("Look: " + OPENING + "blue") == "Look: " + OPENING + "blue"
    text.close()
    for data in ('{"names": 1}', '{"name": "bob", "age": 3}', '{"name": "paint", "description": "Paints"}'):
        text = Text(engine, CallForm.LLAMA, PAINT)
        assert text.write(data) == data, "that is no call"
        assert text.wish(EOS) == EOS
        text.close()


@pytest.mark.parametrize("form", CallForm)
@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.llama
def test_a_draft_within_a_thought_is_free(engine, form, tokens) -> None:
    """Markers and openings begin a call behind it, as if it were not there, also if tokens mark it."""
    begin, _ = CALLS[form]
    for opened in (False, True):
        text = Text(engine, form, PAINT, thought="<think>" if opened else "")
        draft = f' Maybe {begin}blue"}} or {OPENING}blue'
        if not opened and tokens:
            assert text.wish(THINK) == THINK
        elif not opened:
            assert text.write("\n<think>") == "\n<think>"
        assert text.write(draft) == draft
        if tokens:
            assert text.wish(THOUGHT) == THOUGHT
        else:
            assert text.write("</think>") == "</think>"
        assert text.write(f"\n{begin}") == f"\n{begin}"
        assert text.write("b") in {"r", "g"}, "blue is no colour of theirs"
        text.close()


@pytest.mark.llama
def test_a_marker_that_is_a_control_token_counts_outside_of_thoughts(tmp_path) -> None:
    """Within one it is text; behind it, it binds."""
    path = write_model(tmp_path / "m.gguf", chat_template=TEMPLATE, controls=("<tool_call>",))
    engine = load(spec(path, slots=1, ctx=256), lambda _fraction: True)
    text = Text(engine, CallForm.HERMES, PAINT)
    rest = HERMES.removeprefix("<tool_call>")
    assert text.write("<think>") == "<think>"
    assert text.wish(MARKER) == MARKER
    assert text.write(f"{rest}blue</think>") == f"{rest}blue</think>"
    assert text.wish(MARKER) == MARKER
    assert text.write(rest) == rest
    assert text.write("b") in {"r", "g"}
    text.close()
    engine.close()


@pytest.mark.llama
def test_an_opening_counts_behind_thoughts_and_not_behind_text(engine) -> None:
    """Several thoughts may come first; a thought behind other text changes nothing."""
    thoughts = f"<think>{OPENING}</think> [THINK]</think>{OPENING}[/THINK]\n"
    text = Text(engine, CallForm.LLAMA, PAINT)
    assert text.write(thoughts + OPENING) == thoughts + OPENING
    assert text.write("b") in {"r", "g"}
    text.close()
    said = f"So: {thoughts}{OPENING}blue"
    text = Text(engine, CallForm.LLAMA, PAINT)
    assert text.write(said) == said
    text.close()


@pytest.mark.llama
def test_a_thought_that_never_ends_binds_nothing(engine) -> None:
    """The text may end in there."""
    text = Text(engine, CallForm.HERMES, PAINT)
    said = f"<think>{HERMES}blue </tool_call>"
    assert text.write(said) == said
    assert text.wish(EOS) == EOS
    text.close()


@pytest.mark.llama
def test_a_marker_that_is_a_control_token_ends_the_call(engine) -> None:
    """It may be drawn as that token, which is shown as text where functions are offered."""
    text = Text(engine, CallForm.HERMES, PAINT)
    call = HERMES + 'red"}}'
    assert text.write(call) == call
    assert text.wish(MARKER) == MARKER
    assert text.wish(EOS) == EOS
    text.close()


@pytest.mark.llama
def test_what_cannot_be_compiled_binds_less_unless_it_is_strict(engine) -> None:
    """The arguments of that function are any object, and other functions are bound as ever."""
    text = Text(engine, CallForm.HERMES, BROKEN, PAINT)
    begin = '<tool_call>{"name": "broken", "arguments": {"any": [1, "x"]}}</tool_call>' + HERMES
    assert text.write(begin) == begin
    assert text.write("b") in {"r", "g"}
    text.close()
    strict = Tool(name="broken", parameters=BROKEN.parameters, strict=True)
    with pytest.raises(InvalidGrammar, match='function "broken" is strict, but its JSON schema cannot'):
        calls_of(engine._vocab, (PAINT, strict), CallForm.HERMES)


@pytest.mark.llama
def test_functions_are_tried_once_and_remembered(engine, monkeypatch) -> None:
    """The second request with the same functions tries none of them."""
    tried = []

    def trying(grammars):
        tried.append(grammars)
        return try_grammars(grammars)

    monkeypatch.setattr(tool_grammar, "KEPT", 8)
    monkeypatch.setattr(compiler_module, "KEPT", 8)
    tools = tuple(Tool(name=f"f{number}") for number in range(5))
    compiler = GrammarCompiler(engine._vocab, trying)
    shop = CallGrammars(compiler)
    first = until_compiled(lambda: shop.of(tools, CallForm.HERMES, 10.0))
    assert len(tried) == 5 + 1, "each by itself, and all together"
    again = shop.of((*tools,), CallForm.HERMES, 10.0)
    assert again.matcher is first.matcher, "it is the same text"
    compiler.forget()
    assert shop.of((*tools,), CallForm.HERMES, 10.0).matcher is not first.matcher, "it is another text"
    assert len(tried) == 5 + 1
    others = tuple(Tool(name=f"other{number}") for number in range(8))
    until_compiled(lambda: shop.of(others, CallForm.HERMES, 10.0))
    tried.clear()
    until_compiled(lambda: shop.of((*tools, others[0]), CallForm.HERMES, 10.0))
    assert len(tried) > 5, "the oldest were forgotten"
    compiler.close()


@pytest.mark.llama
def test_functions_that_take_too_long_or_too_much_are_left_free(engine, monkeypatch) -> None:
    """What was tried is remembered, so who asks again gets a grammar; strict ones are refused."""
    monkeypatch.setattr(tool_grammar, "MOST_S", -1.0)
    tools = tuple(Tool(name=f"f{number}") for number in range(3))
    with compiler_for(engine._vocab) as compiler:
        shop = CallGrammars(compiler)
        assert shop.of(tools, CallForm.HERMES) is None, "no time is left for any"
        monkeypatch.setattr(tool_grammar, "MOST_S", 1000.0)
        assert until_compiled(lambda: shop.of(tools, CallForm.HERMES, 10.0)) is not None
        monkeypatch.setattr(tool_grammar, "MOST_S", -1.0)
        assert shop.of((*tools,), CallForm.HERMES) is not None, "nothing is left to try"
        monkeypatch.setattr(tool_grammar, "MOST_S", 1000.0)
        monkeypatch.setattr(tool_grammar, "MOST_BYTES", 300)
        assert shop.of(tools, CallForm.HERMES) is None
        strict = tuple(Tool(name=f"f{number}", strict=True) for number in range(3))
        with pytest.raises(InvalidGrammar, match="too much for one grammar"):
            shop.of(strict, CallForm.HERMES)


@pytest.mark.llama
def test_one_function_that_cannot_be_kept_does_not_refuse_a_forced_call(engine) -> None:
    """Its arguments are any object, which is told; the other one is bound; if it is strict, it is refused."""
    with compiler_for(engine._vocab) as compiler:
        shop = CallGrammars(compiler)
        tools = BROKEN, PAINT
        grammar = until_compiled(lambda: shop.forced(tools, "", strict=False, patience_s=10.0))
        (notice,) = grammar.notices
        assert 'of the function "broken" is not kept' in notice
        for text, wanted in (
            ('{"name": "broken", "arguments": {"x": [1]}}', True),
            ('{"name": "paint", "arguments": {"colour": "red"}}', True),
            ('{"name": "paint", "arguments": {"colour": "blue"}}', False),
            ('{"name": "other", "arguments": {}}', False),
        ):
            assert matches(grammar, text) == wanted, text
        with pytest.raises(InvalidGrammar, match='"broken" is strict'):
            shop.forced((replace(BROKEN, strict=True), PAINT), "", strict=False)


@pytest.mark.llama
def test_a_text_may_be_an_answer_instead_of_a_call(engine) -> None:
    """With a schema for answers: one or the other."""
    answer = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'
    with compiler_for(engine._vocab) as compiler:
        shop = CallGrammars(compiler)
        tools = (PAINT,)
        grammar = until_compiled(lambda: shop.forced(tools, answer, strict=True, patience_s=10.0))
        assert matches(grammar, '{"n": 7}')
        assert matches(grammar, '{"name": "paint", "arguments": {"colour": "green"}}')
        assert not matches(grammar, '{"n": "x"}')


def matches(grammar, text):
    """Whether a grammar allows a text, and that it ends there."""
    matcher = grammar.matcher.deep_copy()
    tokens = [FIRST_BYTE + byte for byte in text.encode()]
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("source", "form"),
    [
        (None, CallForm.HERMES),
        (TEMPLATE, CallForm.HERMES),
        ("{# tools #}{{ messages }}", CallForm.HERMES),
        ('{% if tools %}<tool_call>\n{"name": , "arguments": }</tool_call>{% endif %}', CallForm.HERMES),
        ("{% if tools %}<tool_call>\n<function=f>\n<parameter=x>{% endif %}", None),
        ("{% if tools %}<tool_call>f\n<arg_key>{% endif %}", None),
        ("{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]", CallForm.MISTRAL_LIST),
        ("{{ tools }}[TOOL_CALLS]f[ARGS]", CallForm.MISTRAL_NAMES),
        ("{% if tools is not none %}<|python_tag|>{% endif %}", CallForm.LLAMA),
        ('{{ tools }}{"parameters": dictionary of argument name and its value}', CallForm.LLAMA),
        ("{{ tools }} functools[", None),
        ("{% if tools", CallForm.HERMES),
    ],
)  # fmt: skip
def test_the_form_is_that_of_the_template(source, form) -> None:
    """By its markers; a template without functions has them told in Hermes' form; others are left free."""
    assert form_of(source) is form


def test_a_template_too_deep_to_be_walked_is_no_fault_of_the_load() -> None:
    """Jinja parses such a chain in a loop; whoever sends messages is told when it is compiled."""
    assert form_of("{{ a" + ".b" * 5000 + " }}") is CallForm.HERMES
