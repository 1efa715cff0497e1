# SPDX-License-Identifier: GPL-3.0-only
"""Files with one thing wrong, by the thousand: each is refused, fails or works, and none kills."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import modeld

pytestmark = pytest.mark.process

ROUNDS = int(os.environ.get("MODELD_FUZZ", "1"))
"""How much longer than usual to look; docs/testing.md."""
SECONDS = 5.0
TESTS = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, float, str]]:
    """Outcome, CPU seconds and name of each file of the corpus, each tried in a process of its own."""
    seed = random.SystemRandom().randrange(2**32) if ROUNDS > 1 else 1
    path = os.pathsep.join([str(TESTS), str(Path(modeld.__file__).parents[1])])
    told = subprocess.run(
        [
            *(sys.executable, "-m", "support.bad_gguf"),
            *(str(tmp_path_factory.mktemp("bad")), str(20 * ROUNDS), str(seed)),
        ],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    lines = [line.split("\t") for line in told.stdout.splitlines()]
    return [(word, float(seconds), f"{name} (seed {seed})") for word, seconds, name in lines]


def test_no_file_ends_the_process(survey: list[tuple[str, float, str]]) -> None:
    """llama.cpp aborts on some files; those are refused before it sees them. Nor do we break on any."""
    bad = [(word, name) for word, _, name in survey if word not in {"loaded", "refused", "failed"}]
    assert bad == []


def test_no_file_takes_long(survey: list[tuple[str, float, str]]) -> None:
    """Each is told from a sound one, or loaded, within seconds."""
    assert [(seconds, name) for _, seconds, name in survey if seconds > SECONDS] == []


def test_the_corpus_is_worth_its_name(survey: list[tuple[str, float, str]]) -> None:
    """It has more than a thousand files, the sound ones work, and each outcome is there by the hundred."""
    counts = Counter(word for word, _, _ in survey)
    assert len(survey) > 1000
    assert [word for word, _, name in survey if ": sound" in name] == ["loaded", "loaded"]
    assert all(counts[word] > 100 for word in ("loaded", "refused", "failed"))
