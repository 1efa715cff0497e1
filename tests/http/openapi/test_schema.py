# SPDX-License-Identifier: GPL-3.0-only
"""The OpenAPI document against the server, by schemathesis: what it promises holds for odd requests too."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, CheckContext, GenerationMode, Response
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from support.daemon_process import Daemon, daemon
from support.tiny_gguf import write_model

from modeld.http.endpoints import ENDPOINTS
from modeld.http.openapi.document import openapi_document

FUZZ = int(os.environ.get("MODELD_FUZZ", "1"))
EXAMPLES = 25 * FUZZ
OF_DIALECTS = 10 * FUZZ
"""Of the paths of other servers: there are many, and they are read by the same code."""


def no_defect(_ctx: CheckContext, response: Response, _case: Case) -> None:
    """503, 504 and 507 are answers, to a timeout of a millisecond for instance; 500 is a defect."""
    assert response.status_code != 500, response.text


CHECKS = [
    no_defect,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
ENDLESS = {"/events"}
"""Answers that end with their reader: a client that waits for the whole of it would wait for ever."""
OPERATIONS = {
    f"{result.ok().method.upper()} {result.ok().path}": result.ok()
    for result in schemathesis.openapi.from_dict(openapi_document(ENDPOINTS)).get_all_operations()
    if result.ok().path not in ENDLESS
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "tiny.gguf")
    flags = ("--engine", "fake", "--fake", "eos_after=3", "--isolation", "thread", "--log-level", "off")
    with daemon(*flags, models_dir=folder) as running:
        yield running


BOTH = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("name", "mode"),
    # What takes no input can be asked in one way only.
    [(name, mode) for name, it in OPERATIONS.items() for mode in (BOTH if it.body else BOTH[:1])],
)
def test_the_server_keeps_what_its_document_says(running: Daemon, name: str, mode: GenerationMode) -> None:
    """No 5xx; every status, content type and body is one that the document knows for that operation."""

    @settings(
        max_examples=OF_DIALECTS if "/v1/" in name or "/api/" in name else EXAMPLES,
        phases=[Phase.generate],
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=OPERATIONS[name].as_strategy(mode))
    def ask(case: Case) -> None:
        answer = case.call_and_validate(base_url=running.url, checks=CHECKS, timeout=20)
        statuses.add(answer.status_code)

    statuses = set[int]()
    ask()
    assert statuses
    assert 500 not in statuses
