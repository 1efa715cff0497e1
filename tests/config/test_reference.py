# SPDX-License-Identifier: GPL-3.0-only
"""The documentation of the settings is that of the table."""

from pathlib import Path

from modeld.config.fields import FIELDS, LEGACY, show_default
from modeld.config.model_fields import MODEL_FIELDS
from modeld.config.reference import TABLES, with_tables

DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_document_names_every_setting_with_its_default() -> None:
    """Each setting, option and old key has its row; the default is in it."""
    text = DOCUMENT.read_text(encoding="utf-8")
    rows: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("| `"):
            rows.setdefault(line.split("`")[1], line)
    for field in FIELDS:
        assert show_default(field) in rows[field.name]
    for name in (*(field.name for field in MODEL_FIELDS), *LEGACY):
        assert f"| `{name}` |" in text


def test_the_tables_of_the_document_are_of_today() -> None:
    """Otherwise run: python -m modeld.config.reference docs/configuration.md."""
    text = DOCUMENT.read_text(encoding="utf-8")
    assert with_tables(text, TABLES) == text
    assert text.count("<!-- end -->") == 3
