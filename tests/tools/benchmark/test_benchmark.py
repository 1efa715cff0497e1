# SPDX-License-Identifier: GPL-3.0-only
"""The benchmark: what it computes, what it reads off the wire, and short runs. Nothing here is timed."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import socket
from itertools import pairwise
from pathlib import Path

import bench
import pytest
from benchmark import cpu_load, figures, load_generator, long_prompts, plots, throughput
from benchmark.daemon import BenchError, loopback
from benchmark.prompts import make_prompts
from benchmark.systems import at_url
from hypothesis import given, settings
from hypothesis import strategies as st
from support.ndjson_server import ndjson_server
from support.tiny_llama import write_tiny

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def stream(*times, sent=0.0, tokens=None, **more):
    return {
        "status": 200,
        "error": None,
        "sent": sent,
        "times": times,
        "tokens": tokens or len(times),
        **more,
    }


def chunk(*values):
    data = b"".join(json.dumps(value).encode() + b"\n" for value in values)
    return b"%x\r\n%b\r\n" % (len(data), data)


def last(content, tokens):
    usage = {"prompt_tokens": 3, "completion_tokens": tokens, "cached_tokens": 0}
    return {"done": True, "content": content, "finish_reason": "length", "usage": usage, "stats": {}}


def read(pieces, dialect="modeld"):
    """Let the load generator take apart pieces that came at 1.0, 2.0, ... seconds."""
    made = load_generator.Connection.__new__(load_generator.Connection)
    made.sent = 0.5
    made.pieces = [(float(at), piece) for at, piece in enumerate(pieces, 1)]
    return load_generator.parse(made, 0.0, dialect)


def test_percentiles_are_values_that_occurred() -> None:
    """Nearest rank: the median of four is the second, p99 of few is the largest, of none it is NaN."""
    assert figures.percentile([4, 1, 3, 2], 50) == 2
    assert figures.percentile([4, 1, 3, 2], 99) == 4
    assert math.isnan(figures.percentile([], 50))


def test_figures_of_two_streams() -> None:
    """Tokens over wall time, first tokens from each one's own start, gaps of all streams together."""
    found = figures.of_streams([stream(1.0, 2.0, 3.0), stream(1.5, 2.5, 4.0, sent=0.5)])
    assert found["tokens_per_s"] == pytest.approx(6 / 4)
    assert found["decode_per_s"] == pytest.approx(3 / 1.5)
    assert (found["ttft_p50_ms"], found["ttft_p95_ms"]) == (1000, 1000)
    assert (found["itl_p50_ms"], found["itl_p99_ms"]) == (1000, 1500)


def test_ratios_are_taken_within_a_round() -> None:
    """A round in which the machine was half as fast changes both sides, and not the ratio."""
    ours = [{"tokens_per_s": 90.0}, {"tokens_per_s": 45.0}]
    theirs = [{"tokens_per_s": 100.0}, {"tokens_per_s": 50.0}]
    assert figures.ratio(ours, theirs) == pytest.approx(0.9)


def test_a_stream_that_is_not_whole_is_told_of() -> None:
    """A wrong status, an error, too few tokens and a stream without text are each a problem."""
    bad = [stream(1.0, tokens=2), stream(1.0, 2.0, error="cut"), stream(tokens=2), stream(1.0, 2.0)]
    assert len(figures.problems(bad, 2)) == 2
    assert figures.problems([stream(1.0, 2.0)], 2) == []


def test_prompts_share_what_they_should_and_nothing_else() -> None:
    """The shared words are the same for every seed; behind them each prompt goes its own way."""
    prompts = make_prompts("a", 8, tokens=20, shared=5) + make_prompts("b", 1, tokens=20, shared=5)
    assert {len(prompt.split()) for prompt in prompts} == {20}
    assert len({tuple(prompt.split()[:5]) for prompt in prompts}) == 1
    assert len({prompt.split()[5] for prompt in prompts[:8]}) == 8
    assert make_prompts("a", 8, tokens=20, shared=5) == prompts[:8]
    with pytest.raises(ValueError, match="leaves nothing"):
        make_prompts("a", 1, tokens=5, shared=5)


@settings(deadline=None)
@given(st.sets(st.integers(1, 10_000), max_size=30))
def test_where_reads_are_split_changes_no_token(cuts) -> None:
    """However the network cuts the bytes, text, count and number of times are the same."""
    tokens = [{"token": text, "done": False} for text in ("Ein", ' "zitat"\n', " 0\r\n\r\n", " Ö")]
    data = HEAD + chunk(tokens[0]) + chunk(*tokens[1:3]) + chunk(tokens[3])
    data += chunk(last("".join(token["token"] for token in tokens), 4)) + b"0\r\n\r\n"
    ends = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    found = read([data[begin:end] for begin, end in pairwise(ends)])
    assert (found["error"], found["tokens"], found["text"]) == (None, 4, 'Ein "zitat"\n 0\r\n\r\n Ö')
    assert len(found["times"]) == 4
    assert found["times"] == sorted(found["times"])


def test_a_token_came_when_the_read_that_completes_it_came() -> None:
    """A line that is split over two reads counts from the second, lines in one read from the same."""
    line = chunk({"token": "a", "done": False})
    both = chunk({"token": "b", "done": False}, {"token": "c", "done": False})
    found = read([HEAD + line[:9], line[9:], both, chunk(last("abc", 3)) + b"0\r\n\r\n"])
    assert found["times"] == [2.0, 3.0, 3.0]


def test_streams_that_break_off_or_lie_are_errors() -> None:
    """No last chunk, no last line, a content that differs, or a refusal: each says so."""
    token = chunk({"token": "a", "done": False})
    assert "cut" in read([HEAD + token, b""])["error"]
    assert "last line" in read([HEAD + token + b"0\r\n\r\n"])["error"]
    assert "sum" in read([HEAD + token + chunk(last("b", 1)) + b"0\r\n\r\n"])["error"]
    refused = read([b'HTTP/1.1 429 Too Many\r\nContent-Length: 9\r\n\r\n{"error"}'])
    assert (refused["status"], refused["error"]) == (429, '{"error"}')
    assert "no answer" in read([])["error"]


def test_the_end_is_the_last_chunk_and_nothing_like_it() -> None:
    """A head that ends in `max=100` is no last chunk; one that comes byte by byte is."""
    near, far = socket.socketpair()
    with near, far:
        made = load_generator.Connection.__new__(load_generator.Connection)
        made.socket, made.pieces, made.tail = near, [], b""
        far.sendall(b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5, max=100\r\n\r\n")
        assert made.receive() is False
        ends = []
        for byte in b"2\r\n{}\r\n0\r\n\r\n":
            far.sendall(bytes([byte]))
            ends.append(made.receive())
    assert ends == [False] * 11 + [True]


@pytest.mark.process
def test_any_openai_server_can_be_measured() -> None:
    """Server-sent events of /v1/completions are counted, by the server's own usage where it tells."""
    requests = []

    def answer(exchange, _handler, say) -> None:
        requests.append((exchange.path, exchange.body))
        for text in ("a", "", "b"):
            say(b"data: " + json.dumps({"choices": [{"text": text}]}).encode() + b"\n\n")
        end = {"choices": [{"text": "", "finish_reason": "length"}], "usage": {"completion_tokens": 3}}
        say(b"data: " + json.dumps(end).encode() + b"\n\ndata: [DONE]\n\n")

    with ndjson_server(answer) as server:
        system = at_url(server.url, "any")
        streams = system.streams([" one", " two"], 3)
    assert [(it["text"], it["tokens"], len(it["times"]), it["finish"]) for it in streams] == [
        ("ab", 3, 2, "length")
    ] * 2
    assert {path for path, _ in requests} == {"/v1/completions"}
    assert all(body["ignore_eos"] and body["max_tokens"] == 3 for _, body in requests)


def test_load_goes_to_this_machine_only() -> None:
    """An address elsewhere is refused before anything is sent."""
    assert loopback("localhost").startswith("127.")
    with pytest.raises(BenchError, match=r"127\.0\.0\.1 only"):
        loopback("192.0.2.1")
    with pytest.raises(BenchError, match="only"):
        at_url("http://192.0.2.1:8000/v1", "any")


@pytest.mark.slow
def test_systems_take_turns() -> None:
    """In each round every system runs at each concurrency, and none is always the first."""
    turns = []

    class System:
        pids = ()

        def __init__(self, name) -> None:
            self.name = name

        def streams(self, prompts, max_tokens):
            turns.append((self.name, len(prompts)))
            times = [0.1 * (at + 1) for at in range(max_tokens)]
            return [stream(*times, text=prompt) for prompt in prompts]

    plan = throughput.Plan(concurrency=[1, 2], rounds=2, prompt_tokens=4, max_tokens=8)
    cells = throughput.measure([System("a"), System("b")], plan, lambda _line: None)
    assert [name for name, _ in turns[2:]] == list("abbabaab")
    assert throughput.ratios(cells, "a") == {"b": {1: 1.0, 2: 1.0}}
    assert throughput.same_texts(cells, "a", "b") == 1.0
    assert "tokens/s" in throughput.table(cells, "a")


def test_noise_is_a_part_of_the_cores() -> None:
    """What others used is between nothing and all, or unknown."""
    others, watched = cpu_load.CpuWatch([os.getpid()]).stop()
    assert others is None or others >= 0.0
    assert watched is None or watched >= 0.0
    assert len(cpu_load.load_average()) == 3
    assert "quiet machine" in cpu_load.verdict([cpu_load.CpuUse(0.01, None)])
    assert "NOISY" in cpu_load.verdict([cpu_load.CpuUse(0.5, None), cpu_load.CpuUse(0.6, None)])
    assert "not known" in cpu_load.verdict([cpu_load.CpuUse(None, None)])


def test_throughput_is_the_default_and_loads_are_bounded(capsys) -> None:
    """Options without a mode go to `throughput`; absurd loads are refused by the command line."""
    with pytest.raises(SystemExit):
        bench.main(["--concurrency", "1,1000"])
    assert "1000 is not from 1 to 64" in capsys.readouterr().err
    assert bench.main(["--model", "/nowhere.gguf"]) == 1
    assert "there is no model /nowhere.gguf" in capsys.readouterr().err


def test_a_plot_without_matplotlib_is_refused_at_once(monkeypatch, capsys, tmp_path) -> None:
    """Before anything is measured, with the command that installs it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(BenchError, match="pip install matplotlib"):
        plots.require_matplotlib()


@pytest.mark.e2e
def test_a_bare_loop_and_the_daemon_give_the_same_text(tmp_path: Path, capsys) -> None:
    """One round over a tiny model: both bring all tokens, and JSON and table tell of both."""
    model = write_tiny(tmp_path)
    out = tmp_path / "bench.json"
    lengths = ["--prompt-tokens", "2", "--max-tokens", "8", "--rounds", "1", "--concurrency", "1,2"]
    assert bench.main(["--model", str(model), "--threads", "1", "--json", str(out), *lengths]) == 0
    shown = capsys.readouterr().out
    assert "100% of the answers of modeld are the same text as those of bare loop" in shown
    found = json.loads(out.read_text())
    assert {(it["system"], it["concurrency"]) for it in found["results"]} == {
        (name, count) for name in ("bare loop", "modeld") for count in (1, 2)
    }
    assert found["ratios"]["bare loop"].keys() == {"1", "2"}


@pytest.mark.e2e
def test_cancels_are_measured_in_every_phase(tmp_path: Path, capsys) -> None:
    """Over the fake engine: each phase is hit as often as asked for."""
    model = write_tiny(tmp_path)
    out = tmp_path / "cancel.json"
    script = "step_s=0.01 prefill_s=0.001 load_s=1 chunk=50"
    options = ["--times", "2", "--load-times", "1", "--prompt-tokens", "400", "--fake", script]
    assert bench.main(["cancel", "--model", str(model), *options, "--json", str(out)]) == 0
    results = json.loads(out.read_text())["results"]
    assert {phase: len(it["seconds"]) for phase, it in results.items()} == {
        "decoding": 2,
        "prefill": 2,
        "queued": 2,
        "loading": 1,
    }


@pytest.mark.e2e
def test_a_stream_is_read_to_its_end(tmp_path: Path, capsys) -> None:
    """Over the fake engine, with another stream alongside it: it arrives whole."""
    model = write_tiny(tmp_path)
    options = ["--seconds", "60", "--max-tokens", "200", "--companions", "1", "--fake", "step_s=0.001"]
    out = tmp_path / "stream.json"
    assert bench.main(["stream", "--model", str(model), *options, "--json", str(out)]) == 0
    found = json.loads(out.read_text())["results"]
    assert (found["finish"], found["lines"], found["problems"]) == ("length", 200, [])
    assert "arrived whole" in capsys.readouterr().out


FAKE_PROMPTS = "step_s=0.005 prefill_s=0.0005 chunk=20"


@pytest.mark.e2e
def test_a_prompt_among_streams_is_measured_on_both_sides(tmp_path: Path, capsys) -> None:
    """Over the fake engine: gaps before and alongside it, and its own time alone and alongside them."""
    out = tmp_path / "interfere.json"
    options = ["--prompts", "200", "--streams", "2", "--times", "1", "--fake", FAKE_PROMPTS]
    model = write_tiny(tmp_path)
    assert bench.main(["interfere", "--model", str(model), *options, "--json", str(out)]) == 0
    [found] = json.loads(out.read_text())["results"]
    [times] = found["times"]
    assert (found["system"], found["tokens"], found["medians"].keys() >= {"slower", "stretch"}) == (
        "modeld",
        200,
        True,
    )
    assert times["alone"] > 0.05
    assert len(times["before"]) > 100
    assert len(times["during"]) > 4
    assert "prompt of   200" in capsys.readouterr().out


@pytest.mark.e2e
def test_abandoned_prompts_are_measured_by_the_next_request(tmp_path: Path, capsys) -> None:
    """Over the fake engine: as many times as asked for, against the idle server."""
    out = tmp_path / "abandon.json"
    options = ["--prompt-tokens", "400", "--times", "2", "--fake", FAKE_PROMPTS]
    model = write_tiny(tmp_path)
    assert bench.main(["abandon", "--model", str(model), *options, "--json", str(out)]) == 0
    [found] = json.loads(out.read_text())["results"]
    assert (len(found["idle"]), len(found["after"])) == (9, 2)
    assert "times idle" in capsys.readouterr().out


def test_gaps_are_told_as_multiples_of_those_before() -> None:
    """The p99 alongside the prompt over the median before, then medians; the worst gap of all times."""
    times = [
        long_prompts.Times(1.0, 1.5, [0.01, 0.02, 0.03], [0.02, 0.05]),
        long_prompts.Times(1.0, 1.7, [0.02, 0.02], [0.06]),
    ]
    values = long_prompts.summary(long_prompts.Interference("a", 1000, times))
    assert values["slower"] == pytest.approx(1.6)
    assert values["stretch"] == pytest.approx(2.75)
    assert values["middle"] == pytest.approx((1.75 + 3) / 2)
    assert values["unrest"] == pytest.approx((1.5 + 1) / 2)
    assert values["during_worst_s"] == 0.06
