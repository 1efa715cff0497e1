# SPDX-License-Identifier: GPL-3.0-only
"""Servers that modules of tests with real clients share: loading the model takes longest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.daemon_process import Q4_0, Daemon, daemon


@pytest.fixture(scope="package")
def openai_server() -> Iterator[Daemon]:
    """A daemon with the real models, for clients of OpenAI's API."""
    with daemon("--default-model", Q4_0, "--llama-ctx", "4096", "--llama-slots", "4") as running:
        yield running
