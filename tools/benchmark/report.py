# SPDX-License-Identifier: GPL-3.0-only
"""Print a run with the facts of its machine, and write its JSON file."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from testctl_lib.models import MODEL_DEMO, model_folder
from testctl_lib.paths import cache

from benchmark import cpu_load
from benchmark.cpu_load import CpuUse


class Report:
    """The report of one run: prints lines, and writes the JSON in the end.

    Attributes:
      json_file: where the JSON goes, and a plot beside it.
    """

    def __init__(self, options: argparse.Namespace, **facts: Any) -> None:
        """Print what is measured on what."""
        self._began = time.time()
        folder = options.out or cache() / "bench"  # The cache, so that no checkout fills up with results.
        self.json_file: Path = (
            options.json or folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{options.mode}.json"
        )
        machine, load = cpu_load.machine(), cpu_load.load_average()
        facts = {"model": options.model.name, "threads": options.threads} | facts
        self._data: dict[str, Any] = {
            "mode": options.mode,
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._began)),
            "command": sys.argv[1:],
            "machine": machine,
            "versions": {name: metadata.version(name) for name in ("modeld", "llama-cpp-python")},
            "load_average": {"before": load},
            "settings": facts,
        }
        versions = ", ".join(f"{name} {version}" for name, version in self._data["versions"].items())
        self.say(f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}; {versions}")
        self.say(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items()))
        self.say(f"load average {load[0]:.2f} at the start")
        if load[0] > cpu_load.BUSY_LOAD:
            self.say("others use this machine now; figures of a quiet one are steadier and higher")

    def say(self, text: str = "") -> None:
        """Print lines at once."""
        print(text, flush=True)

    def finish(self, text: str, uses: Sequence[CpuUse], **data: Any) -> None:
        """Print the outcome and how quiet the machine was, and write the JSON file."""
        self.say(f"\n{text}\n")
        self.say(cpu_load.verdict(uses))
        load, seconds = cpu_load.load_average(), round(time.time() - self._began, 1)
        self._data["load_average"]["after"] = load
        self._data |= {"cpu_of_others": [use.others for use in uses], "seconds": seconds, **data}
        self.json_file.parent.mkdir(parents=True, exist_ok=True)
        self.json_file.write_text(json.dumps(self._data, indent=1) + "\n")
        self.say(f"load average {load[0]:.2f} at the end; {seconds:.0f} s; {self.json_file}")


def default_model() -> Path:
    """Return the demo model, which tools/testctl fetches."""
    folder = os.environ.get("MODELD_TEST_MODELS")
    return (Path(folder) if folder else model_folder()) / MODEL_DEMO
