# SPDX-License-Identifier: GPL-3.0-only
"""Run `modeld` with clocks around llama.cpp: `step_profiler.py RESULT.json serve ...`.

Nothing in modeld knows of it. Every function `llama_*` of the bindings is wrapped by one that adds the
CPU time of its thread to a sum, and at the end of each step of the engine one row is kept:

    [tokens, engine's thread, of it in llama.cpp and in draws, calls of these, of it in draws,
     event loop's thread, of it in write(2), calls of it]                              (CPU time in ns)

A draw is `Sampler.sample`: arithmetic over the whole vocabulary, whether llama.cpp does it or numpy.

What the clocks themselves cost is measured before the start, and written alongside the rows:
`call_ns` for each call (outside of its own interval), `row_ns` for each row.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modeld.engine.llama.native.library import lib
from modeld.engine.protocol import TokenOutput

_TRIES = 20_000


class CpuSum:
    """CPU time spent in some functions, by the thread that called them."""

    def __init__(self) -> None:
        self.ns = 0
        self.calls = 0
        self._inside = False

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with clocks; what it calls that has them too is not counted again."""

        def timed(*arguments: Any) -> Any:
            if self._inside:
                return function(*arguments)
            self._inside = True
            began = time.thread_time_ns()
            try:
                return function(*arguments)
            finally:
                self.ns += time.thread_time_ns() - began
                self.calls += 1
                self._inside = False

        return timed


class Clocks:
    """The sums, and a row for each step."""

    def __init__(self) -> None:
        self.llama = CpuSum()
        self.draws = CpuSum()
        self.writes = CpuSum()
        self.rows: list[tuple[int, ...]] = []
        self._loop = time.pthread_getcpuclockid(threading.main_thread().ident or 0)

    def row(self, tokens: int) -> None:
        """Keep a row."""
        loop = time.clock_gettime_ns(self._loop)
        llama, writes = self.llama, self.writes
        engine = (time.thread_time_ns(), llama.ns, llama.calls, self.draws.ns)
        self.rows.append((tokens, *engine, loop, writes.ns, writes.calls))

    def own_costs(self) -> dict[str, float]:
        """Measure the clocks."""

        def nothing(*_: object) -> None:
            pass

        tried = CpuSum()
        timed = tried.around(nothing)
        plain = _per_call(lambda: nothing(1, 2))
        call_ns = _per_call(lambda: timed(1, 2)) - plain - tried.ns / tried.calls
        row_ns = _per_call(lambda: self.row(0)) - plain
        self.rows.clear()
        return {"call_ns": call_ns, "row_ns": row_ns}


def _per_call(function: Callable[[], None]) -> float:
    began = time.thread_time_ns()
    for _ in range(_TRIES):
        function()
    return (time.thread_time_ns() - began) / _TRIES


def install(clocks: Clocks) -> None:
    """Put the clocks around llama.cpp's functions, and at the end of each step."""
    for name, value in list(vars(lib).items()):
        if name.startswith("llama_") and callable(value) and not isinstance(value, type):
            setattr(lib, name, clocks.llama.around(value))
    os.write = clocks.writes.around(os.write)
    from modeld.engine.llama import engine  # noqa: PLC0415  # they must see the wrapped functions
    from modeld.engine.llama.sampling import sampler  # noqa: PLC0415  # they must see the wrapped functions

    draw = clocks.llama.around(clocks.draws.around(sampler.Sampler.sample))
    sampler.Sampler.sample = draw  # type: ignore[method-assign]  # this program exists to wrap it
    step = engine.LlamaEngine.step

    def timed_step(self: engine.LlamaEngine) -> Any:
        outputs = step(self)
        clocks.row(sum(isinstance(output, TokenOutput) for output in outputs))
        return outputs

    engine.LlamaEngine.step = timed_step  # type: ignore[method-assign]  # this program exists to wrap it


def main() -> None:
    """Run modeld; write the rows when it ends."""
    result = Path(sys.argv[1])
    del sys.argv[1]
    clocks = Clocks()
    costs = clocks.own_costs()
    install(clocks)
    atexit.register(lambda: result.write_text(json.dumps({**costs, "rows": clocks.rows})))
    from modeld.cli.main import main as modeld  # noqa: PLC0415  # after the clocks are in place

    modeld()


if __name__ == "__main__":
    main()
