# SPDX-License-Identifier: GPL-3.0-only
"""Which model a name means."""

from __future__ import annotations

import pytest
from support.scheduler_driver import spec

from modeld.domain.catalog import SHOWN_NAME, resolve_model
from modeld.domain.model import catalog_of
from modeld.errors import ModelNotFound

CATALOG = catalog_of([spec("a"), spec("b")], "b")


def test_a_name_or_none_means_a_model() -> None:
    """An id is the model's own; without a name it is the default one."""
    assert resolve_model(CATALOG, "a").id == "a.gguf"
    assert resolve_model(CATALOG, None).id == "b.gguf"


def test_an_unknown_name_is_told_with_where_to_look() -> None:
    """The error says which list shows the models, and how many there are."""
    with pytest.raises(ModelNotFound, match=r"there is no model 'c'; GET /v1/models lists the 2 there are"):
        resolve_model(CATALOG, "c", listing="GET /v1/models")


def test_a_long_name_is_told_in_part() -> None:
    """Nobody gets a megabyte back for one that was sent."""
    with pytest.raises(ModelNotFound) as caught:
        resolve_model(CATALOG, "x" * (SHOWN_NAME + 1))
    assert "x" * SHOWN_NAME + "..." in str(caught.value)


def test_without_models_there_is_no_default() -> None:
    """The error says how there comes to be one."""
    with pytest.raises(ModelNotFound, match=r"put a \.gguf file into models_dir"):
        resolve_model(catalog_of([]), None)
