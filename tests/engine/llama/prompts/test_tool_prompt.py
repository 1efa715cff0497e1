# SPDX-License-Identifier: GPL-3.0-only
"""Functions in a prompt: as a template expects them, or as messages where it knows of none."""

from __future__ import annotations

import json

import pytest

from modeld.domain.request import Message, Tool, ToolCall
from modeld.engine.llama.prompts.renderer import PromptRenderer
from modeld.engine.llama.prompts.template import ChatTemplate
from modeld.errors import InvalidRequest

CONTROLS = ("<|start|>", "<|end|>")
PLAIN = "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}"
KNOWING = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}[{{ m.role }}:"
    "{% for call in m.tool_calls %}{{ call.id }}={{ call.function.name }}({{ call.function.arguments.city }})"
    "{% endfor %}{{ m.name }}/{{ m.tool_call_id }}:{{ m.content }}]{% endfor %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + PLAIN
WEATHER = Tool(
    name="weather",
    description="Tells <|end|> the weather",
    parameters='{"type": "object", "properties": {"city": {"type": "string"}}}',
)
ASKED = Message(role="user", content="Hi")
CALLED = Message(
    role="assistant",
    content="",
    tool_calls=(ToolCall(id="c1", name="weather", arguments='{"city": "Rome"}'),),
)
RESULT = Message(role="tool", content="sunny", tool_call_id="c1", name="weather")


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, bos="", eos="", controls=CONTROLS)


def test_a_template_that_knows_tools_gets_them() -> None:
    """Descriptions, calls with arguments as an object, and the names in a tool's turn."""
    prompt = "".join(template(KNOWING).render([ASKED, CALLED, RESULT], [WEATHER]))
    told, _, turns = prompt.partition("[user:")
    function = json.loads(told)[0]["function"]
    assert function["name"] == "weather"
    assert function["parameters"]["properties"] == {"city": {"type": "string"}}
    assert turns == "/:Hi][assistant:c1=weather(Rome)/:][tool:weather/c1:sunny]"


def test_nothing_in_a_tool_forms_a_control_token() -> None:
    """A description is plain text, wherever the template puts it."""
    for source in (KNOWING, PLAIN):
        parts = template(source).render([ASKED], [WEATHER])
        assert "<|end|>" in "".join(parts)
        assert not any("<|end|>" in part for part in parts)


def test_a_template_without_tools_gets_them_as_a_system_message() -> None:
    """What is called and what came of it become text, one user's turn for results that follow each other."""
    prompt = "".join(template(PLAIN).render([ASKED, CALLED, RESULT, RESULT], [WEATHER]))
    assert prompt.startswith("[system:You can call functions")
    assert '"name": "weather"' in prompt
    assert (
        '[assistant:<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>]' in prompt
    )
    assert prompt.endswith(
        "[user:<tool_response>\nsunny\n</tool_response>\n<tool_response>\nsunny\n</tool_response>]"
    )


def test_a_system_message_that_is_there_is_kept() -> None:
    """It goes before what is said of the tools, in one message."""
    prompt = "".join(template(PLAIN).render([Message(role="system", content="Be brief."), ASKED], [WEATHER]))
    assert prompt.startswith("[system:Be brief.\n\nYou can call functions")
    assert prompt.count("[system:") == 1


def test_a_template_without_system_messages_is_told_by_the_user() -> None:
    """Where the system message is refused, the first words of the user carry it."""
    prompt = "".join(template(NO_SYSTEM).render([ASKED], [WEATHER]))
    assert prompt.startswith("[user:You can call functions")
    assert prompt.endswith("Hi]")
    with pytest.raises(InvalidRequest, match="no system"):
        template(NO_SYSTEM).render([Message(role="system", content="x"), ASKED], [WEATHER])


def test_what_is_no_json_stays_text() -> None:
    """Arguments that a client broke are shown as they are."""
    broken = Message(
        role="assistant", content="", tool_calls=(ToolCall(id="c", name="f", arguments="{oops"),)
    )
    assert '"arguments": "{oops"' in "".join(template(PLAIN).render([ASKED, broken], [WEATHER]))


@pytest.mark.process
def test_tools_cross_to_the_process_that_renders() -> None:
    """The renderer gives the same prompt as the template itself."""
    renderer = PromptRenderer(KNOWING, bos="", eos="", controls=CONTROLS)
    renderer.patience_s = 30.0
    messages = [ASKED, CALLED, RESULT]
    try:
        assert renderer.render(messages, [WEATHER]) == template(KNOWING).render(messages, [WEATHER])
    finally:
        renderer.close()
