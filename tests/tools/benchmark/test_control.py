# SPDX-License-Identifier: GPL-3.0-only
"""`bench control`: what its load generator accepts, what it computes, and a short run. Nothing is timed."""

from __future__ import annotations

import json
from pathlib import Path

import bench
import pytest
from benchmark import control, load_generator, step_profiler
from benchmark.daemon import BenchError
from support.tiny_llama import write_tiny

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(*lines: bytes) -> bytes:
    data = b"".join(line + b"\n" for line in lines)
    return b"%x\r\n%b\r\n" % (len(data), data)


def token(text: str) -> bytes:
    return json.dumps({"token": text, "done": False}, separators=(",", ":")).encode()


def last(tokens: int) -> bytes:
    usage = {"completion_tokens": tokens}
    line = {"done": True, "finish_reason": "length", "usage": usage}
    return json.dumps(line, separators=(",", ":")).encode()


def test_lines_and_chunks_of_a_whole_stream_are_counted() -> None:
    """Several lines in one chunk are several lines."""
    answer = HEAD + chunk(token("a")) + chunk(token("b"), token("c"), last(3)) + END
    assert load_generator.count(answer) == {"lines": 3, "chunks": 2, "tokens": 3, "error": None}


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + chunk(token("a")),
        HEAD + chunk(token("a"), last(2)) + END,
        HEAD + chunk(token("a")) + END,
        b"HTTP/1.1 503 Service Unavailable\r\n\r\n{}",
        b"",
    ],
    ids=["cut", "a line is missing", "no last line", "refused", "nothing"],
)
def test_a_stream_that_is_not_whole_fails_the_run(answer: bytes) -> None:
    """A figure over lines that did not come would be worth nothing."""
    assert load_generator.count(answer)["error"]


def test_only_full_steps_after_full_steps_count() -> None:
    """What clocks cost is taken out, draws and writes are told apart, prefill and ends are left out."""
    slots = control.STEP_SLOTS

    def row(number: int, tokens: int) -> list[int]:
        at = number * 1_000_000
        # engine 1,000 us a step, of it 900 in 10 calls; 300 in draws; loop 200, of it 80 in 8 writes
        return [tokens, at, at * 9 // 10, number * 10, at * 3 // 10, at * 2 // 10, at * 8 // 100, number * 8]

    rows = [row(0, 1), row(1, slots), row(2, slots), row(3, slots), row(4, 3)]
    found = control.of_steps({"call_ns": 1000, "row_ns": 2000, "rows": rows})
    assert found["steps"] == 2
    assert found["engine_us"] == pytest.approx(100 - 10 - 2)
    assert found["loop_us"] == pytest.approx(200 - 80 - 8)
    assert found["python_us"] == pytest.approx(88 + 112)
    assert (found["draws_us"], found["writing_us"]) == (300, 80)
    with pytest.raises(BenchError, match="no two steps"):
        control.of_steps({"call_ns": 0, "row_ns": 0, "rows": rows[:2]})


def test_clocks_count_what_is_nested_once() -> None:
    """A draw that calls llama.cpp is one call, and its time is not added twice."""
    clocks = step_profiler.CpuSum()
    inner = clocks.around(lambda: sum(range(1000)))
    outer = clocks.around(lambda: inner() + inner())
    assert outer() == 2 * sum(range(1000))
    assert clocks.calls == 1
    assert clocks.ns > 0


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Before anything is started."""
    model = write_tiny(tmp_path)
    assert bench.main(["control", "--model", str(model), "--parts", "lines,nothing"]) == 1
    assert "there is no part nothing" in capsys.readouterr().err


@pytest.mark.e2e
def test_a_short_run_tells_of_lines_requests_and_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over the fake engine and a tiny model: tables and JSON have a figure for each."""
    model = write_tiny(tmp_path)
    out = tmp_path / "control.json"
    options = ["--parts", "lines,requests,memory", "--rounds", "1", "--streams", "2", "--tokens", "200"]
    options += ["--clients", "2", "--seconds", "1", "--threads", "1", "--json", str(out)]
    assert bench.main(["control", "--model", str(model), *options]) == 0
    found = json.loads(out.read_text())["results"]
    assert [one["lines"] for one in found["lines"]["2"]["rounds"]] == [400]
    assert found["requests"]["ratio"] > 0
    assert found["memory"]["modeld"]["rss_mib"] > 0
    shown = capsys.readouterr().out
    assert "modeld / bare app:" in shown
    assert "modeld above llama_cpp:" in shown
