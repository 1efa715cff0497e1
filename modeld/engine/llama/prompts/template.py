# SPDX-License-Identifier: GPL-3.0-only
"""Render messages by the model's chat template, keeping their text plain.

Templates are Jinja, as Hugging Face's tokenizers define them, and come with the file: they run in
Jinja's immutable sandbox, which bounds neither their time nor their memory. So `renderer` has all of
this done in a process of its own. What a message says may look like a control token. Before rendering,
each such place gets a break in its middle: one private-use character that occurs nowhere else.
Afterwards the prompt is cut there, and a text that is cut in two cannot become one token. Other
text is left as it is, so that templates may trim and compare it.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from modeld.domain.request import Message, Tool
from modeld.engine.llama.native.vocab import prefix_regex
from modeld.engine.llama.prompts.tool_prompt import call_values, fold_system, message_texts, tool_values
from modeld.errors import InvalidRequest

_PRIVATE_USE = range(0xE000, 0xF900)
MAX_SOURCE = 256 * 1024
"""Characters of a template; those of today have 20,000 at most."""
MAX_PROMPT = 16 * 1024 * 1024
"""Characters that a template may make of messages."""
MAX_REASON = 500
"""Characters of a template's own words that a client is told."""
_KNOWN_ROLES = frozenset({"system", "user", "assistant", "tool", "developer", "function", "ipython", "model"})
"""Roles that templates build control tokens of on purpose, as in `<|` role `|>`."""


class TemplateGuard:
    """Puts breaks into texts wherever a control token could form.

    Args:
      controls: the texts of all control tokens, each of at least two characters.
    """

    def __init__(self, controls: Iterable[str]) -> None:
        self._controls = sorted(controls, key=len, reverse=True)
        self._inside = re.compile(f"(?={prefix_regex(self._controls)})") if self._controls else None
        self._heads = {text[:end] for text in self._controls for end in range(1, len(text))}
        self._tails = {text[begin:] for text in self._controls for begin in range(1, len(text))}
        self._longest = max((len(text) for text in self._controls), default=0)

    def protect(self, message: Message, mark: str) -> dict[str, Any]:
        """Return a message as templates expect it, with `mark` at every break."""
        role = message.role
        if role not in _KNOWN_ROLES and any(role in text for text in self._controls):
            role = mark + role

        def broken_up(text: str) -> str:
            return self.break_up(text, mark)

        found: dict[str, Any] = {"role": broken_up(role), "content": broken_up(message.content)}
        if message.tool_calls:
            found["tool_calls"] = call_values(message.tool_calls, broken_up)
        if message.tool_call_id:
            found["tool_call_id"] = broken_up(message.tool_call_id)
        if message.name:
            found["name"] = broken_up(message.name)
        return found

    def break_up(self, text: str, mark: str) -> str:
        """Return the text with a mark inside each control token, also one that only begins or ends here."""
        if self._inside is None or not text:
            return text
        places = {match.start() + 1 for match in self._inside.finditer(text)}
        if any(text[:length] in self._tails for length in range(1, min(self._longest, len(text)) + 1)):
            places.add(0)
        if any(text[-length:] in self._heads for length in range(1, min(self._longest, len(text)) + 1)):
            places.add(len(text))
        if not places:
            return text
        cuts = [0, *sorted(places), len(text)]
        return mark.join(text[begin:end] for begin, end in itertools.pairwise(cuts))


def template_fault(source: str | None) -> str | None:
    """Say why a template cannot be used, or None. It is only parsed: compiling may run parts of it."""
    if not source:
        return "this model's file has no chat template"
    if len(source) > MAX_SOURCE:
        return f"this model's chat template has {len(source)} characters, and {MAX_SOURCE} are the most"
    try:
        environment().parse(source)
    except (jinja2.TemplateError, RecursionError, MemoryError) as error:
        return f"this model's chat template cannot be compiled ({_words(error)})"
    return None


def knows_tools(tree: jinja2.nodes.Template) -> bool:
    """Tell whether a parsed template speaks of functions by itself: anything in it is called `tools`.

    The form of calls follows from it (`tool_form`), and whether they are told in place of it (`tool_prompt`).
    """
    return any(name.name == "tools" for name in tree.find_all(jinja2.nodes.Name))


class ChatTemplate:
    """The chat template of one model. It takes whatever time and memory its source makes it take.

    Args:
      source: the template, None when the file has none.
      bos, eos: the texts of those tokens, for templates that write them.
      controls: the texts of all control tokens.
    """

    def __init__(self, source: str | None, *, bos: str, eos: str, controls: Iterable[str]) -> None:
        self._guard = TemplateGuard(controls)
        self._source = source or ""
        self._tokens = {"bos_token": bos, "eos_token": eos}
        self._template: jinja2.Template | None = None
        self._knows_tools = False
        self._fault = template_fault(source)

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[str]:
        """Return the prompt in parts; no control token may form across two of them.

        Raises: InvalidRequest if there is no template, or with what the template objects to.
        """
        template = self._compiled()
        mark = self._unused_character(messages, tools)
        try:
            prompt = self._prompt(template, messages, tools, mark)
        except Exception as error:  # whatever a template raises is told to the client, as 400
            reason = _words(error).replace(mark, "")
            raise InvalidRequest(f"the model's chat template refuses these messages: {reason}") from error
        if len(prompt) > MAX_PROMPT:
            raise InvalidRequest(
                f"the model's chat template makes {len(prompt)} characters of these messages, and "
                f"{MAX_PROMPT} are the most; send fewer or shorter messages"
            )
        return prompt.split(mark)

    def _prompt(
        self, template: jinja2.Template, messages: Sequence[Message], tools: Sequence[Tool], mark: str
    ) -> str:
        """Return the prompt; raises whatever the template raises."""
        with_calls = tools or any(message.tool_calls or message.role == "tool" for message in messages)
        if self._knows_tools or not with_calls:
            return self._rendered(template, messages, tools, mark)
        try:
            return self._rendered(template, fold_system(messages, tools, into_system=True), (), mark)
        except Exception:  # some templates refuse a system message, each with words of its own: tried without
            if messages[0].role == "system":
                raise
            return self._rendered(template, fold_system(messages, tools, into_system=False), (), mark)

    def _rendered(
        self, template: jinja2.Template, messages: Sequence[Message], tools: Sequence[Tool], mark: str
    ) -> str:
        return template.render(
            messages=[self._guard.protect(message, mark) for message in messages],
            add_generation_prompt=True,
            tools=tool_values(tools, lambda text: self._guard.break_up(text, mark)),
            documents=None,
            raise_exception=_raise,
            strftime_now=_strftime_now,
            **self._tokens,
        )

    def _compiled(self) -> jinja2.Template:
        """Compile at the first use: Jinja computes what is constant in a template right then."""
        if self._template is None and self._fault is None:
            try:
                jinja = environment()
                self._knows_tools = knows_tools(jinja.parse(self._source))
                self._template = jinja.from_string(self._source)
            except Exception as error:  # noqa: BLE001  # Jinja computes what is constant in a file from a stranger, which may raise anything
                self._fault = f"this model's chat template cannot be compiled ({_words(error)})"
        if self._template is None:
            raise InvalidRequest(f"{self._fault}; send `prompt` instead of `messages`")
        return self._template

    def _unused_character(self, messages: Sequence[Message], tools: Sequence[Tool]) -> str:
        texts = [self._source, *message_texts(messages, tools)]
        for code in _PRIVATE_USE:
            if not any(chr(code) in text for text in texts):
                return chr(code)
        raise InvalidRequest(
            "the messages use every private-use character from U+E000 to U+F8FF; leave one out"
        )


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}` marks answers for training; here only its content counts."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Return the statements between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> ImmutableSandboxedEnvironment:
    """Return the environment that chat templates are written for (transformers, chat templating)."""
    jinja = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _GenerationTag]
    )
    jinja.filters["tojson"] = _tojson
    return jinja


def _words(error: BaseException) -> str:
    """What an exception says, or what it is called; not too much of it."""
    said = str(error)[: MAX_REASON + 1] or type(error).__name__
    return said if len(said) <= MAX_REASON else f"{said[:MAX_REASON]}..."


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return dt.datetime.now().astimezone().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
