# SPDX-License-Identifier: GPL-3.0-only
"""Engines that tests share: loading is the slow part, so each is loaded once a session."""

from __future__ import annotations

import pytest
from support.engine_driver import EngineDriver, generate_request, spec
from support.tiny_llama import TINY_CONTEXT, real_model, write_tiny

from modeld.engine import fake


class Lab:
    """One implementation of `Engine`: how to load it, and how to write prompts for it."""

    def __init__(self, name, load, path, context) -> None:
        self.name = name
        self.load_engine = load
        self.path = path
        self.context = context
        self._engines = {}
        self._per_word = None
        self._overhead = 0

    def load(self, *, fake="", path=None, **options):
        """Load an engine of its own, maybe of another file; the caller closes it."""
        return self.load_engine(spec(path or self.path, fake=fake, **options), lambda _fraction: True)

    def driver(self, **options):
        """Return a driver around a shared engine with these options, idle."""
        key = tuple(sorted(options.items()))
        if key not in self._engines:
            self._engines[key] = self.load(**options)
        assert not self._engines[key].busy
        return EngineDriver(self._engines[key])

    def prompt(self, tokens, word="x"):
        """Return a prompt of at most so many tokens, and hardly fewer."""
        if self._per_word is None:
            driver = self.driver(slots=1, ctx=256)
            ten, twenty = driver.run(
                generate_request("x " * 10, max_tokens=1), generate_request("x " * 20, max_tokens=1)
            )
            counts = [driver.outputs[request_id][0].prompt_tokens for request_id in (ten, twenty)]
            self._per_word = (counts[1] - counts[0]) // 10
            self._overhead = counts[0] - 10 * self._per_word
        return f"{word} " * ((tokens - self._overhead) // self._per_word)

    def close(self):
        """Close all shared engines."""
        for engine in self._engines.values():
            engine.close()


def _llama(path, name, context):
    from modeld.engine.llama.engine import load  # noqa: PLC0415  # takes half a second

    return Lab(name, load, path, context)


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory):
    """Path of the tiny model."""
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_lab(tiny_path):
    """The tiny model in llama.cpp."""
    lab = _llama(tiny_path, "tiny", TINY_CONTEXT)
    yield lab
    lab.close()


@pytest.fixture(scope="session")
def real_lab():
    """The real Q4_0 model in llama.cpp."""
    lab = _llama(real_model(), "real", 8192)
    yield lab
    lab.close()


@pytest.fixture(scope="session")
def fake_lab():
    """The fake engine."""
    lab = Lab("fake", fake.load, "fake.gguf", 8192)
    yield lab
    lab.close()


@pytest.fixture(
    params=[
        "fake",
        pytest.param("tiny", marks=pytest.mark.llama),
        pytest.param("real", marks=pytest.mark.real),
    ]
)
def lab(request):
    """Each implementation in turn."""
    return request.getfixturevalue(f"{request.param}_lab")
