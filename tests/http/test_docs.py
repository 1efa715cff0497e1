# SPDX-License-Identifier: GPL-3.0-only
"""The documents name everything that there is."""

from __future__ import annotations

import re
from pathlib import Path

import trio
from support.backend import ScriptedBackend
from support.served import serving

from modeld.core.operations import OperationStatus
from modeld.core.plan import Departure, Plan
from modeld.dialects.native import (
    DetokenizeBody,
    EmbedBody,
    InferBody,
    LoadBody,
    PinBody,
    PlanBody,
    TemplateBody,
    TokenizeBody,
    UnloadBody,
)
from modeld.errors import ERRORS
from modeld.http.openapi import openapi_document
from modeld.telemetry.metrics import Metrics

DOCS = Path(__file__).parents[2] / "docs"


def test_every_key_and_error_is_in_the_api_document() -> None:
    """A key or an error that nobody documented does not exist for its users."""
    text = (DOCS / "api.md").read_text()
    bodies = (
        *(InferBody, EmbedBody, TokenizeBody, DetokenizeBody, TemplateBody),
        *(LoadBody, UnloadBody, PinBody, OperationStatus, PlanBody, Plan, Departure),
    )
    for name in (*(key for body in bodies for key in body.__struct_fields__), *ERRORS):
        assert f"`{name}`" in text, name


def test_every_status_is_in_the_openapi_document() -> None:
    """What `/infer` may answer is described, status by status; a conflict is one of operators."""
    answers = openapi_document()["paths"]["/infer"]["post"]["responses"]
    assert set(answers) == {"200", *(str(error.status) for error in ERRORS.values())} - {"405", "409"}


async def test_every_path_and_method_is_in_the_openapi_document() -> None:
    """So nothing escapes who tries whatever the document allows; two paths are other names of others."""
    other_names = {"/completions": "/completion", "/embeddings": "/embedding"}
    paths = openapi_document()["paths"]
    async with serving() as served:
        served_here = {
            (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method.lower())
            for rule in served.app.url_map.iter_rules()
            for method in rule.methods - {"HEAD", "OPTIONS"}
        }
    missing = [
        (path, method)
        for path, method in sorted(served_here)
        if method not in paths.get(other_names.get(path, path), {})
    ]
    assert missing == []
    assert len(served_here) > 50


async def test_every_metric_is_in_its_document() -> None:
    """A metric that nobody documented is noise."""
    text = (DOCS / "metrics.md").read_text()
    async with trio.open_nursery() as nursery:
        metrics = Metrics()
        metrics.watch_fleet(ScriptedBackend(nursery).status)
        names = {
            f"{family.name}_{_ENDINGS[family.type]}" if family.type in _ENDINGS else family.name
            for family in metrics.registry.collect()
        }
    assert len(names) > 20
    for name in names:
        assert f"`{name}`" in text, name


_ENDINGS = {"counter": "total", "info": "info"}
