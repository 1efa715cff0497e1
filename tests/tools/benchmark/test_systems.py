# SPDX-License-Identifier: GPL-3.0-only
"""A whole run of the benchmark with the options that anyone may give it, and its plot."""

from __future__ import annotations

import json
from pathlib import Path

import bench
import pytest
from benchmark import defaults, plots
from benchmark.cpu_load import CpuUse
from benchmark.figures import NAMES
from benchmark.throughput import Cell
from support.ndjson_server import ndjson_server
from support.tiny_llama import write_tiny

WARM_UP, ANSWER = 8, 4
ROUNDS, SHARED, LENGTH = 2, 3, 6
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.e2e
def test_any_server_is_measured_beside_modeld_with_prompts_that_share_a_beginning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over the fake engine: both are asked as often, with as many tokens; table and JSON tell of both."""
    asked = []

    def answer(_exchange, handler, say) -> None:
        body = handler.body
        asked.append(body)
        for _ in range(body["max_tokens"]):
            say(b"data: " + json.dumps({"choices": [{"text": " x"}]}).encode() + b"\n\n")
        end = {"choices": [{"text": "", "finish_reason": "length"}]}
        end["usage"] = {"completion_tokens": body["max_tokens"]}
        say(b"data: " + json.dumps(end).encode() + b"\n\ndata: [DONE]\n\n")

    out = tmp_path / "bench.json"
    options = ["--model", str(write_tiny(tmp_path)), "--threads", "1", "--fake", "step_s=0.001"]
    options += ["--rounds", str(ROUNDS), "--concurrency", "1,2", "--max-tokens", str(ANSWER)]
    options += ["--prompt-tokens", str(LENGTH), "--shared-prefix", str(SHARED), "--json", str(out)]
    with ndjson_server(answer) as other:
        at = ["--openai-url", f"{other.url}/v1", "--openai-model", "any"]
        assert bench.main([*options, *at]) == 0
    assert {body["model"] for body in asked} == {"any"}
    measured = [body["prompt"].split() for body in asked if body["max_tokens"] == ANSWER]
    assert len(measured) == ROUNDS * (1 + 2)
    assert len(asked) - len(measured) == 2
    assert {len(words) for words in measured} == {LENGTH}
    assert len({tuple(words[:SHARED]) for words in measured}) == 1
    assert len({tuple(words) for words in measured}) == len(measured)
    found = json.loads(out.read_text())
    name = next(it["system"] for it in found["results"] if it["system"] != "modeld")
    assert {(it["system"], it["concurrency"]) for it in found["results"]} == {
        (system, count) for system in ("modeld", name) for count in (1, 2)
    }
    for it in found["results"]:
        assert len(it["rounds"]) == ROUNDS
        assert it["median"].keys() == set(NAMES)
        assert all(figures["tokens_per_s"] > 0 for figures in it["rounds"])
    assert found["ratios"][name].keys() == {"1", "2"}
    shown = capsys.readouterr().out
    for head in ("tokens/s", "ttft p50", "p95", "itl p50", "p99", "modeld / it"):
        assert head in shown


def test_the_plot_is_a_png(tmp_path: Path) -> None:
    """Of two systems at two concurrencies (where matplotlib, which only this needs, is installed)."""
    pytest.importorskip("matplotlib")
    rounds = [dict.fromkeys(NAMES, value) for value in (10.0, 12.0)]
    cells = [
        Cell(system, count, rounds, [CpuUse(0.0, None)] * 2, [[]], 8)
        for system in ("modeld", "bare loop")
        for count in (1, 8)
    ]
    path = tmp_path / "folder" / "bench.png"
    plots.draw_throughput(cells, path, "a title")
    data = path.read_bytes()
    assert data.startswith(PNG)
    assert len(data) > 5000


@pytest.mark.process
def test_each_option_of_a_load_is_held_against_the_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over a tiny model: every figure of every variant in every round, and the default's ratio is 1."""
    out = tmp_path / "defaults.json"
    options = ["defaults", "--model", str(write_tiny(tmp_path)), "--threads", "1", "--json", str(out)]
    options += ["--rounds", "2", "--prompt-tokens", "20", "--depth", "5", "--tokens", "6", "--streams", "2"]
    only = ["no mmap", "flash_attn", "kv_type bf16", "ubatch 128"]
    assert bench.main([*options, "--only", ",".join(only)]) == 0
    found = json.loads(out.read_text())
    assert list(found["results"]) == ["default", *only]
    assert {len(rounds) for rounds in found["results"].values()} == {2}
    assert all(value > 0 for rounds in found["results"].values() for one in rounds for value in one.values())
    assert set(found["ratios"]["default"].values()) == {1.0}
    assert "flash_attn | " in capsys.readouterr().out
    assert bench.main([*options, "--only", "no such"]) == 1
    assert "there is no variant no such" in capsys.readouterr().err


def test_ratios_to_the_default_are_taken_within_a_round() -> None:
    """A machine that was half as fast in one of two rounds changes no ratio."""
    usual = {"load_s": 1.0, "prompt_per_s": 100.0, "streams_per_s": 50.0}
    slow = {key: value / 2 for key, value in usual.items()}
    rounds = {
        "default": [usual, slow],
        "other": [{key: 1.1 * value for key, value in one.items()} for one in (usual, slow)],
    }
    assert defaults.ratios(rounds)["other"] == pytest.approx(dict.fromkeys(usual, 1.1))
