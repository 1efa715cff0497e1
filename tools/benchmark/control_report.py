# SPDX-License-Identifier: GPL-3.0-only
"""The tables of `bench control`."""

from __future__ import annotations

from benchmark import figures
from benchmark.control import Found


def tell(found: Found) -> str:
    """Return the tables of what was measured."""
    tables: list[str] = []
    if "lines" in found:
        head = [
            "streams",
            "lines/s",
            "spread",
            "lines/chunk",
            "loop us/line",
            "client us/line",
            "client busy",
        ]
        rows = [
            [
                count,
                f"{it['lines_per_s']:.0f}",
                f"{it['spread']:.0%}",
                f"{it['lines_per_chunk']:.1f}",
                f"{it['loop_us_per_line']:.1f}",
                f"{it['client_us_per_line']:.1f}",
                f"{it['client_busy']:.0%}",
            ]
            for count, it in found["lines"].items()
        ]
        tables.append(figures.table(head, rows))
    if "requests" in found:
        it = found["requests"]
        head = ["short requests", "requests/s", "spread", "CPU ms each", "p50 ms", "p99 ms", "client busy"]
        rows = [
            [
                name,
                f"{it[name]['requests_per_s']:.0f}",
                f"{it[name]['spread']:.0%}",
                f"{it[name]['cpu_ms']:.2f}",
                f"{it[name]['p50_ms']:.2f}",
                f"{it[name]['p99_ms']:.2f}",
                f"{it[name]['client_busy']:.0%}",
            ]
            for name in ("modeld", "bare app")
        ]
        tables.append(figures.table(head, rows) + f"\n\nmodeld / bare app: {it['ratio']:.2f}")
    if "steps" in found:
        it = found["steps"]
        head = ["Python per step of 8 slots", "us"]
        rows = [
            ["engine's thread, outside of llama.cpp and of draws", f"{it['engine_us']:.0f}"],
            ["event loop's thread, outside of write(2)", f"{it['loop_us']:.0f}"],
            ["both", f"{it['python_us']:.0f}"],
            ["both, mean", f"{it['python_mean_us']:.0f}"],
            ["(draws: the arithmetic over 8 vocabularies)", f"{it['draws_us']:.0f}"],
            ["(write(2): the kernel's loopback TCP)", f"{it['writing_us']:.0f}"],
        ]
        tables.append(figures.table(head, rows))
    if "memory" in found:
        it = found["memory"]
        head = ["memory after a first token, MiB", "RSS", "PSS"]
        rows = [
            [name, f"{it[key]['rss_mib']:.1f}", f"{it[key]['pss_mib']:.1f}"]
            for name, key in (
                ("modeld", "modeld"),
                ("llama_cpp alone", "llama_cpp"),
                ("modeld before its load", "before_load"),
            )
        ]
        above = f"modeld above llama_cpp: RSS {it['above_rss_mib']:.1f}, PSS {it['above_pss_mib']:.1f}"
        tables.append(figures.table(head, rows) + f"\n\n{above}")
    return "\n\n".join(tables)
