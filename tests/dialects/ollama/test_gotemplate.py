# SPDX-License-Identifier: GPL-3.0-only
"""The part of Go's template language that clients of Ollama send."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.dialects.ollama.gotemplate import MOST_ACTIONS, GoTemplate
from modeld.errors import InvalidRequest

PIECES = ("{{", "}}", " if ", ".System", "end", "else", "-", " ", '"', "(", ")", "\\", "x")


def render(source: str, prompt: str = "P", system: str = "") -> str:
    return GoTemplate(source).render(prompt=prompt, system=system)


@pytest.mark.parametrize(
    ("source", "system", "text"),
    [
        ("plain", "", "plain"),
        ("a {{ .Prompt }} b", "", "a P b"),
        ("a {{- .Prompt -}}  b", "", "aPb"),
        ("{{- if .System }}<s>{{ .System }}</s>{{ end }}{{ .Prompt }}", "S", "<s>S</s>P"),
        ("{{- if .System }}<s>{{ .System }}</s>{{ end }}{{ .Prompt }}", "", "P"),
        ("{{ if .System }}a{{ else if .Prompt }}b{{ else }}c{{ end }}", "", "b"),
        ("{{ if .System }}a{{ else }}c{{ end }}", "", "c"),
        ("{{ if not .System }}none{{ end }}", "", "none"),
        ("{{ if and .System .Prompt }}both{{ end }}", "S", "both"),
        ("{{ if or .System (not .Prompt) }}one{{ end }}|", "", "|"),
        ('{{ "<a b>\\n" }}{{ `"` }}', "", '<a b>\n"'),
        ("{{/* a note */}}{{ $.Prompt }}", "", "P"),
        ("x {{ .Prompt }}\nASSISTANT: {{ .Response }}</s>", "", "x P\nASSISTANT: "),
        ("{{ if .System }}{{ if .Prompt }}in{{ end }}{{ end }}out", "", "out"),
    ],
)
def test_a_template_makes_a_prompt(source: str, system: str, text: str) -> None:
    """As Go's own package does."""
    assert render(source, system=system) == text


@pytest.mark.parametrize(
    "source",
    [
        "{{ .Nothing }}",
        "{{ range .Messages }}{{ end }}",
        "{{ if .System }}",
        "{{ end }}",
        "{{ else }}",
        "{{ .Prompt",
        "{{ if }}{{ end }}",
        "{{ if not .System .Prompt }}{{ end }}",
        "{{ if (.System }}{{ end }}",
        '{{ "open }}',
        "{{ if .System }}{{ else unless }}{{ end }}",
        "{{ .Prompt .System }}",
        "{{ if " + "(" * 50 + " .System }}{{ end }}",
        "{{ .Prompt }}" * (MOST_ACTIONS + 1),
    ],
)
def test_what_it_does_not_know_is_refused(source: str) -> None:
    """With a sentence that says so, also in a branch that is not taken."""
    with pytest.raises(InvalidRequest, match="`template`"):
        render(source)


def test_what_users_write_is_never_a_template() -> None:
    """Braces in a prompt stay braces."""
    assert render("{{ .Prompt }}", prompt="{{ .System }}", system="secret") == "{{ .System }}"


@given(st.lists(st.sampled_from(PIECES)))
def test_no_template_breaks_it(parts: list[str]) -> None:
    """Whatever comes is rendered or refused."""
    with suppress(InvalidRequest):
        assert isinstance(render("".join(parts)), str)
