# SPDX-License-Identifier: GPL-3.0-only
"""Run one measurement: `tools/testctl bench [MODE] [options]` starts this in the virtual environment."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmark import cancel, control, defaults, fairness, long_prompts, storm_report, stream, throughput
from benchmark.daemon import BenchError
from benchmark.options import Mode, whole
from benchmark.report import default_model

MODES: Mapping[str, Mode] = {
    "throughput": throughput.MODE,
    "interfere": long_prompts.INTERFERE,
    "abandon": long_prompts.ABANDON,
    "cancel": cancel.MODE,
    "stream": stream.MODE,
    "control": control.MODE,
    "storm": storm_report.MODE,
    "fairness": fairness.MODE,
    "defaults": defaults.MODE,
}


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    common = argparse.ArgumentParser(add_help=False)
    add = common.add_argument
    add("--model", type=Path, metavar="FILE", help="GGUF file (default: the demo model, Q4_0)")
    add("--threads", type=whole(1, 512), help="threads of llama.cpp (default: the cores of this machine)")
    add("--fake", metavar="SCRIPT", help="measure modeld over its fake engine, with this script")
    add("--modeld", metavar="FLAGS", default="", help="more flags for `modeld serve`, as one text")
    add("--out", type=Path, metavar="DIR", help="folder for JSON and plot (default: bench/ in the cache)")
    add("--json", type=Path, metavar="FILE", help="write the JSON there instead")
    top = argparse.ArgumentParser(prog="bench", description="Measure modeld. The default is `throughput`.")
    modes = top.add_subparsers(dest="mode", required=True, metavar="MODE")
    for name, mode in MODES.items():
        mode.add_options(modes.add_parser(name, parents=[common], help=mode.text, description=mode.text))
    return top


def require_model(path: Path) -> None:
    """Raises: BenchError when there is no such file."""
    if not path.is_file():
        raise BenchError(f"there is no model {path}; `./tools/testctl install` fetches the demo's")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one measurement; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] not in {*MODES, "-h", "--help"}:
        given.insert(0, "throughput")
    options = parser().parse_args(given)
    options.model = (options.model or default_model()).absolute()
    options.threads = options.threads or os.cpu_count() or 1
    try:
        require_model(options.model)
        return MODES[options.mode].run(options)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
