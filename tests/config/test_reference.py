# SPDX-License-Identifier: GPL-3.0-only
"""The documentation of the settings is that of their declarations."""

from pathlib import Path

from modeld.config.reference import TABLES, with_tables

DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_tables_of_the_document_are_of_today() -> None:
    """Otherwise run: python -m modeld.config.reference docs/configuration.md."""
    text = DOCUMENT.read_text(encoding="utf-8")
    assert with_tables(text, TABLES) == text
    assert text.count("<!-- end -->") == 3
