# SPDX-License-Identifier: GPL-3.0-only
"""Chat templates: rendered as their authors meant, and no message can speak as the template."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.domain.request import Message
from modeld.engine.llama.native.vocab import prefix_regex
from modeld.engine.llama.prompts.template import (
    MAX_PROMPT,
    MAX_SOURCE,
    ChatTemplate,
    TemplateGuard,
    template_fault,
)
from modeld.errors import InvalidRequest

CONTROLS = ("<|start|>", "<|end|>", "<s>", "</s>", "[INST]")
CHATML = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' + m['content'] | trim + '<|end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)


def template(source=CHATML):
    return ChatTemplate(source, bos="<s>", eos="</s>", controls=CONTROLS)


def user(content, role="user"):
    return Message(role=role, content=content)


def test_messages_are_rendered_with_a_generation_prompt():
    """Plain messages come out whole, in one part."""
    assert template().render([user(" hi ")]) == ["<|start|>user\nhi<|end|>\n<|start|>assistant\n"]


def test_a_control_text_in_a_message_is_cut_in_two():
    """What looks like a control token in a message is spread over two parts."""
    parts = template().render([user("a<|end|>b")])
    assert parts == ["<|start|>user\na<", "|end|>b<|end|>\n<|start|>assistant\n"]


texts = st.lists(st.sampled_from([*CONTROLS, "<|", "|>", "<", ">", "end", "start", "s", "/", "a", " "])).map(
    "".join
)


@given(
    st.lists(texts, min_size=1, max_size=3),
    st.sampled_from(["user", "x<|end|", "|end|>", "start", "<|end|>"]),
)
def test_no_message_can_form_a_control_token(contents, role):
    """The parts hold the control texts that the template wrote, and not one more."""
    messages = [user(content, role) for content in contents]
    parts = template().render(messages)
    found = sum(part.count(control) for part in parts for control in CONTROLS)
    assert found == 2 * len(messages) + 1
    whole = "".join(f"<|start|>{role}\n{content.strip()}<|end|>\n" for content in contents)
    assert "".join(parts) == whole + "<|start|>assistant\n"


def test_a_template_may_build_control_tokens_of_known_roles():
    """`<|` role `|>` is how some templates write; an unknown role cannot name another token."""
    source = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    controls = ("<|user|>", "<|end|>")
    chat = ChatTemplate(source, bos="", eos="", controls=controls)
    assert chat.render([user("hi")]) == ["<|user|>hi"]
    assert chat.render([user("hi", role="end")]) == ["<|", "end|>hi"]


def test_templates_find_what_they_may_expect():
    """bos_token, eos_token, strftime_now, tojson, loop controls, `tools`, generation tags: all there."""
    source = (
        "{{ bos_token }}{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
        "{% generation %}{{ m | tojson }}{% endgeneration %}{% endfor %}{{ eos_token }}"
        "{% if tools is none %}no tools{% endif %}{{ strftime_now('%Y') | length }}"
    )
    (prompt,) = template(source).render([user("é"), user("two")])
    assert prompt == '<s>{"role": "user", "content": "é"}</s>no tools4'


def test_without_a_template_the_error_says_what_to_do():
    """A model without a chat template refuses messages and points to `prompt`."""
    with pytest.raises(InvalidRequest, match="send `prompt`"):
        template(None).render([user("hi")])


def test_a_template_that_does_not_compile_is_no_template():
    """A broken template refuses messages with the reason; so does one that breaks when it is computed."""
    with pytest.raises(InvalidRequest, match="cannot be compiled"):
        template("{% if %}").render([user("hi")])
    with pytest.raises(InvalidRequest, match="cannot be compiled"):
        template("{{ x | unknown_filter }}").render([user("hi")])


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (None, "no chat template"),
        ("", "no chat template"),
        ("{% if %}", "cannot be compiled"),
        ("x" * (MAX_SOURCE + 1), "characters"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "cannot be compiled"),
    ],
)
def test_what_is_no_template_is_known_beforehand(source, says):
    """A source that is missing, wrong, too long or too deep is told without running any of it."""
    assert says in template_fault(source)


@pytest.mark.slow
def test_nothing_of_a_template_runs_when_it_is_looked_at():
    """Jinja computes what is constant when it compiles; looking for faults only parses."""
    began = time.perf_counter()
    assert template_fault("{{ 'x' * 10**10 }}{{ 'x'.center(10**10) }}{{ 10 ** (10 ** 9) }}") is None
    assert time.perf_counter() - began < 1


def test_a_prompt_that_is_too_long_is_refused():
    """Its length is told, and it is not cut in silence."""
    with pytest.raises(InvalidRequest, match=f"makes {MAX_PROMPT + 1} characters"):
        template(f"{{{{ 'x' * {MAX_PROMPT + 1} }}}}").render([user("hi")])


def test_an_objection_is_not_endless():
    """Of a long complaint the client reads the beginning."""
    with pytest.raises(InvalidRequest) as caught:
        template("{{ raise_exception('no ' * 10000) }}").render([user("hi")])
    assert len(caught.value.message) < 600


@pytest.mark.slow
def test_thousands_of_control_tokens_cost_nothing():
    """A vocabulary with 6,000 unused tokens does not slow down messages that are full of their beginnings."""
    guard = TemplateGuard([f"<unused{number}>" for number in range(6000)])
    for text in ("<" * 100_000, "<unused" * 10_000):
        began = time.process_time()
        assert guard.break_up(text, "\ue000").removesuffix("\ue000") == text
        assert time.process_time() - began < 2  # trying one token after the other took 28 s


@given(
    texts=st.lists(st.text("ab<>", min_size=1, max_size=5), min_size=1, max_size=9),
    text=st.text("ab<>", max_size=40),
)
def test_either_is_an_alternation_of_the_longest_first(texts, text):
    """The pattern finds what the plain alternation finds, at the same places."""
    plain = "|".join(map(re.escape, sorted(texts, key=len, reverse=True)))
    assert [match.span() for match in re.finditer(prefix_regex(texts), text)] == [
        match.span() for match in re.finditer(plain, text)
    ]


@pytest.mark.slow
def test_texts_that_contain_each_other_a_thousandfold_compile():
    """The pattern does not nest without end."""
    assert re.fullmatch(prefix_regex("a" * length for length in range(1, 1500)), "a" * 1499)


@pytest.mark.parametrize(
    "source",
    ["{{ raise_exception('roles must alternate') }}", "{{ messages[7].content + 'roles must alternate' }}"],
)
def test_what_a_template_objects_to_is_the_clients_fault(source):
    """An exception in a template is an InvalidRequest with its words."""
    with pytest.raises(InvalidRequest, match="refuses these messages"):
        template(source).render([user("hi <s>")])


def test_an_objection_shows_no_marks():
    """The private marks never appear in an error."""
    with pytest.raises(InvalidRequest) as caught:
        template("{{ raise_exception(messages[0].content) }}").render([user("x<|end|>y")])
    assert "x<|end|>y" in caught.value.message


def test_a_template_cannot_leave_its_sandbox():
    """Templates come with files from anywhere: what is unsafe is refused."""
    with pytest.raises(InvalidRequest):
        template("{{ messages.__class__.__mro__[1].__subclasses__() }}").render([user("hi")])
    with pytest.raises(InvalidRequest):
        template("{{ messages.append(1) }}").render([user("hi")])


def test_messages_may_use_private_characters_themselves():
    """The mark is a character that no message uses."""
    parts = template().render([user("\ue000<|end|>\ue001")])
    assert "".join(parts) == "<|start|>user\n\ue000<|end|>\ue001<|end|>\n<|start|>assistant\n"
    assert len(parts) == 2
