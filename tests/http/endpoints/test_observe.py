# SPDX-License-Identifier: GPL-3.0-only
"""Health, readiness, models, status, metrics, and what every answer has in common."""

from __future__ import annotations

import gzip
import json
import re

import pytest
from support.backend import DAMAGED, TINY, text_events
from support.http_server import serving

from modeld.domain.model import ModelSpec


async def test_health_is_the_schedulers() -> None:
    """`/healthz` is `ok` while the scheduler makes progress, else 503 with the reason."""
    async with serving() as served, served.client() as client:
        answer = await client.get("/healthz")
        assert (answer.status_code, answer.text) == (200, "ok")
        assert answer.headers["content-type"].startswith("text/plain")
        served.backend.illness = "no progress for 12 s"
        answer = await client.get("/healthz")
        assert (answer.status_code, answer.text) == (503, "no progress for 12 s")


@pytest.mark.parametrize(("state", "status"), [("ready", 200), ("loading", 503), ("draining", 503)])
async def test_readiness_says_why_not(state: str, status: int) -> None:
    """`/readyz` is 200 only when ready; otherwise the body says what is going on."""
    async with serving() as served, served.client() as client:
        served.backend.state = state
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.text) == (status, state)
        assert ("retry-after" in answer.headers) == (status == 503)


async def test_models_are_listed_afresh() -> None:
    """`/models` looks for new files first, and lists damaged ones with their error."""
    async with serving() as served, served.client() as client:
        served.backend.arriving = [ModelSpec(id="zz.gguf", path="/models/zz.gguf")]
        listed = {model["id"]: model for model in (await client.get("/models")).json()["models"]}
        assert set(listed) == {TINY.id, DAMAGED.id, "zz.gguf"}
        assert listed[TINY.id]["state"] == "ready"
        assert listed[TINY.id]["default"]
        assert listed[DAMAGED.id]["error"] == "it is no GGUF file"
        assert served.backend.refreshes == [1.0]


async def test_status_is_the_schedulers() -> None:
    """`/status` has the keys of the native API, as numbers."""
    async with serving() as served, served.client() as client:
        status = (await client.get("/status")).json()
        assert status["budget_mb"] == 1000.0
        assert status["instances"][0]["queue_len"] == 1
        assert status["instances"][0]["state"] == "ready"


async def test_metrics_count_requests_by_route() -> None:
    """`/metrics` shows requests under their route, and strangers' paths under one label."""
    async with serving(text_events("a")) as served, served.client() as client:
        await client.get("/models")
        await client.get("/nope/1")
        await client.get("/nope/2")
        await client.post("/infer", json={"prompt": "x"})
        answer = await client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert 'modeld_http_requests_total{method="POST",path="/infer",status="200"} 1.0' in answer.text
        assert 'modeld_http_requests_total{method="GET",path="other",status="404"} 2.0' in answer.text
        assert 'modeld_instance_state{model="tiny-q4.gguf",state="ready"} 1.0' in answer.text
        assert "/nope" not in answer.text


@pytest.mark.parametrize("path", ["/healthz", "/models", "/nope", "/docs"])
async def test_every_answer_is_marked(path: str) -> None:
    """`nosniff` and an id are on all answers; the client's id is kept if it is sane."""
    async with serving() as served, served.client() as client:
        answer = await client.get(path, headers={"X-Request-ID": "abc-1.2"})
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-request-id"] == "abc-1.2"
        for header in ({}, {"X-Request-ID": "a b"}, {"X-Request-ID": "x" * 129}, {"X-Request-ID": ""}):
            given = (await client.get(path, headers=header)).headers["x-request-id"]
            assert len(given) == 16
        assert "server" not in answer.headers


@pytest.mark.parametrize("path", ["/healthz", "/models", "/status", "/metrics", "/openapi.json", "/docs"])
async def test_head_is_get_without_its_body(path: str) -> None:
    """HEAD works where GET does, with the same length, and the connection goes on."""
    async with serving() as served, served.client() as client:
        head = await client.head(path, headers={"Accept-Encoding": "identity"})
        full = await client.get(path, headers={"Accept-Encoding": "identity"})
        assert (head.status_code, head.content) == (200, b"")
        assert set(head.headers) == set(full.headers)
        if path != "/metrics":  # It counts the request before it.
            assert int(head.headers["content-length"]) == len(full.content)


async def test_json_is_compressed_when_asked_for() -> None:
    """Gzip where the client takes it and it gains something; caches are told."""
    async with serving() as served, served.client() as client:
        plain = await client.get("/openapi.json", headers={"Accept-Encoding": "identity"})
        refused = await client.get("/openapi.json", headers={"Accept-Encoding": "gzip;q=0, br"})
        assert "content-encoding" not in plain.headers
        assert "content-encoding" not in refused.headers
        assert plain.headers["vary"] == "Accept-Encoding"
        raw = await served.connect()
        await raw.send(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: br, gzip\r\n\r\n")
        _, headers, body = await raw.answer()
        assert headers["content-encoding"] == "gzip"
        assert gzip.decompress(body) == plain.content
        small = await client.get("/healthz", headers={"Accept-Encoding": "gzip"})
        assert "content-encoding" not in small.headers


async def test_unknown_paths_are_json_too() -> None:
    """404 has the shape of every error, also for paths that look like known ones."""
    async with serving() as served, served.client() as client:
        for path in ("/nope", "/nope//models", "/infer/x", "/static/x", "/chat/x/"):
            answer = await client.get(path)
            assert answer.status_code == 404, path
            assert answer.json()["type"] == "not_found"
            assert answer.json()["code"] == 404


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/infer", {"POST", "OPTIONS"}),
        ("POST", "/models", {"GET", "HEAD", "OPTIONS"}),
        ("DELETE", "/status", {"GET", "HEAD", "OPTIONS"}),
        ("BREW", "/healthz", {"GET", "HEAD", "OPTIONS"}),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(method: str, path: str, allow: set[str]) -> None:
    """405 says in `Allow` what the path takes."""
    async with serving() as served, served.client() as client:
        answer = await client.request(method, path)
        assert answer.status_code == 405
        assert set(answer.headers["allow"].split(", ")) == allow
        assert answer.json()["type"] == "method_not_allowed"


async def test_the_document_and_its_page_need_nothing_else() -> None:
    """Every path is in the document, every reference in it resolves, and the page loads and runs nothing."""
    async with serving() as served, served.client() as client:
        document = (await client.get("/openapi.json")).json()
        assert document["openapi"] == "3.1.0"
        second_names = {"/completions", "/embeddings"}  # told with the paths that they are names of
        assert set(document["paths"]) == {
            re.sub(r"<(?:path:)?(\w+)>", r"{\1}", rule.rule)
            for rule in served.app.url_map.iter_rules()
            if rule.rule not in {"/static/<path:filename>", *second_names}
        }
        text = json.dumps(document)
        for reference in _references(document):
            place = document
            for step in reference.removeprefix("#/").split("/"):
                place = place[step]
        page = await client.get("/docs")
        assert "http://" not in page.text.replace("http://127.0.0.1:8080", "")
        assert "https://" not in page.text
        assert "<script" not in page.text
        assert "default-src 'none'" in page.headers["content-security-policy"]
        for key in ("typical_p", "keep_alive", "finish_reason", "unaccounted_mb"):
            assert key in text
            assert key in page.text


def _references(value: object) -> list[str]:
    match value:
        case {"$ref": str(reference)}:
            return [reference]
        case dict():
            return [found for child in value.values() for found in _references(child)]
        case list():
            return [found for child in value for found in _references(child)]
        case _:
            return []
