# SPDX-License-Identifier: GPL-3.0-only
"""The documents name everything that there is."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
import trio
from msgspec.structs import replace
from support.backend import ScriptedBackend
from support.http_server import serving

from modeld.config.reference import with_tables
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
from modeld.domain.daemon_events import EventKind
from modeld.domain.operation import OperationStatus
from modeld.domain.request import GenerateRequest, Sampling
from modeld.errors import ERRORS
from modeld.http.endpoint import Endpoint
from modeld.http.endpoints import ENDPOINTS
from modeld.http.errors import BACKPRESSURE
from modeld.http.openapi.document import openapi_document
from modeld.http.reference import TABLES
from modeld.scheduler.plan import LoadPlan, PlannedVictim
from modeld.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
FOLDERS = (ROOT, ROOT / "modeld", ROOT / "tests")
"""Below which pages name files."""
PAGES = (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md")))


def test_every_key_and_error_is_in_the_api_document() -> None:
    """A key or an error that nobody documented does not exist for its users."""
    text = (DOCS / "api.md").read_text()
    bodies = (
        *(InferBody, EmbedBody, TokenizeBody, DetokenizeBody, TemplateBody),
        *(LoadBody, UnloadBody, PinBody, OperationStatus, PlanBody, LoadPlan, PlannedVictim),
    )
    for name in (*(key for body in bodies for key in body.__struct_fields__), *ERRORS):
        assert f"`{name}`" in text, name


def test_every_error_is_documented_with_its_status() -> None:
    """Each error is in one row of the table, alongside the status that clients see."""
    rows = re.findall(r"^\| (\d{3}) \| (`.*?`) \|", (DOCS / "api.md").read_text(), re.MULTILINE)
    documented = [(kind, int(status)) for status, kinds in rows for kind in re.findall(r"`(\w+)`", kinds)]
    assert sorted(documented) == sorted((kind, error.status) for kind, error in ERRORS.items())


def test_the_defaults_of_infer_are_those_of_the_code() -> None:
    """Where the last column of its tables begins with a number, that is the default of the key."""
    text = (DOCS / "api.md").read_text().split("## POST /infer")[1].split("\n## ")[0]
    defaults = {
        name: getattr(source, name)
        for source in (Sampling(), GenerateRequest())
        for name in source.__struct_fields__
    }
    checked = 0
    for names, default in re.findall(r"^\| (`.*?`) \|.*\| (-?\d[^|]*) \|$", text, re.MULTILINE):
        keys, numbers = re.findall(r"`(\w+)`", names), re.findall(r"-?\d[\d.]*", default)
        for key, number in zip(keys, numbers if len(numbers) > 1 else numbers * len(keys), strict=True):
            assert defaults[{"prompt_lookup": "lookup"}.get(key, key)] == float(number), key
            checked += 1
    assert checked > 20


def test_the_table_of_endpoints_is_of_today() -> None:
    """Otherwise run: python -m modeld.http.reference docs/api.md."""
    text = (DOCS / "api.md").read_text()
    assert with_tables(text, TABLES) == text
    assert text.count("<!-- end -->") == 1


def test_every_status_is_in_the_openapi_document() -> None:
    """What `/infer` may answer is described, status by status; a conflict is one of operators."""
    answers = openapi_document(ENDPOINTS)["paths"]["/infer"]["post"]["responses"]
    assert set(answers) == {"200", *(str(error.status) for error in ERRORS.values())} - {"405", "409"}


async def test_the_app_serves_the_endpoints_that_are_declared() -> None:
    """So nothing escapes a client that tries whatever the document allows."""
    declared = {(path, it.method) for it in ENDPOINTS for path in (it.path, *it.also)}
    async with serving() as served:
        routed = {
            (rule.rule, method)
            for rule in served.app.url_map.iter_rules()
            for method in rule.methods - {"HEAD", "OPTIONS"}
        }
    assert routed == declared
    assert len(declared) == sum(1 + len(it.also) for it in ENDPOINTS) > 50, "one is declared twice"


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda it: it.name)
def test_an_endpoint_declares_all_there_is_to_know(endpoint: Endpoint) -> None:
    """Routing, authorisation, error format and documents follow from it, so nothing may be missing."""
    operation = openapi_document(ENDPOINTS)["paths"][endpoint.template][endpoint.method.lower()]
    assert endpoint.summary
    assert not endpoint.summary.endswith(".")
    assert re.findall(r"<(?:\w+:)?(\w+)>", endpoint.path) == [
        it.name for it in endpoint.parameters if it.place == "path"
    ]
    assert endpoint.answers or set(endpoint.refusals) == {404}, "an answer, or it is not served at all"
    for status in endpoint.refusals:
        [content] = operation["responses"][str(status)]["content"].values()
        assert content["schema"]["$ref"].endswith(f"/{endpoint.errors.body.__name__}")
    if endpoint.body is not None:
        assert endpoint.method == "POST"
        assert {400, 408, 413, 415} <= set(endpoint.refusals)
        for example in endpoint.body.examples.values():
            msgspec.json.decode(msgspec.json.encode(example), type=endpoint.body.type)
    row = next(
        line
        for line in (DOCS / "api.md").read_text().splitlines()
        if line.startswith(f"| `{endpoint.method} {endpoint.template}`")
    )
    assert all(f"`{scope}`" in row for scope in endpoint.scopes)


async def test_the_metrics_are_those_of_their_document() -> None:
    """A metric that nobody documented is noise; one that does not exist is an alert that never fires."""
    text = (DOCS / "metrics.md").read_text()
    async with trio.open_nursery() as nursery:
        metrics = Metrics()
        status = replace(ScriptedBackend(nursery).status(), effective_budget_mb=1.0)
        metrics.watch_fleet(lambda: status)
        names = {
            f"{family.name}_{_ENDINGS[family.type]}" if family.type in _ENDINGS else family.name
            for family in metrics.registry.collect()
        }
    assert len(names) > 20
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == names
    for name in re.findall(r"\bmodeld_\w+", text):
        assert name.removesuffix("_bucket") in names, name


def test_every_reason_of_backpressure_is_documented() -> None:
    """The reasons are the errors that say "not now" or "not here"."""
    [row] = re.findall(
        r"^\| `modeld_http_backpressure_total` .*$", (DOCS / "metrics.md").read_text(), re.MULTILINE
    )
    reasons = set(re.findall(r"`(\w+)`", row)) - {"modeld_http_backpressure_total", "reason"}
    assert reasons == {kind for kind, error in ERRORS.items() if error.status in BACKPRESSURE}


def test_the_kinds_of_events_are_those_of_their_document() -> None:
    """Each kind has its row, and no row is of a kind that never comes."""
    text = (DOCS / "events.md").read_text().split("### Requests")[1]
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", text, re.MULTILINE)
    kinds = [kind for row in rows for kind in re.findall(r"`(\w+)`", row)]
    assert sorted(kinds) == sorted(kind.value for kind in EventKind)


def test_what_documents_point_to_is_there() -> None:
    """Links lead to pages and headings that exist, and files of the project that are named are there."""
    for page in PAGES:
        text = page.read_text()
        for target in re.findall(r"\]\(([^)]+)\)", text):
            path, _, heading = target.partition("#")
            if "://" in path:
                continue
            found = page.parent / path if path else page
            assert found.exists(), f"{page.name}: {target}"
            if heading:
                assert heading in _headings(found), f"{page.name}: {target}"
        for name in re.findall(r"`([\w-]+/[\w./-]+\.(?!gguf)\w+)(?:::\w+)?`", text):
            assert any((folder / name).exists() for folder in FOLDERS), f"{page.name}: {name}"


def _headings(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    lines = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in lines}


_ENDINGS = {"counter": "total", "info": "info"}
