# SPDX-License-Identifier: GPL-3.0-only
"""Whatever breaks while a request is prepared ends this request, with a reason, and nothing else."""

from __future__ import annotations

import pytest

from modeld.engine.llama.request_queue import prepare_or_fail
from modeld.engine.protocol import RequestFailed
from modeld.errors import EngineFailed, InvalidRequest


class NotYet(Exception):
    """It is not ready."""


def tried(error, later=()):
    """Return what a preparation that raises this is told as."""
    outputs = []

    def prepare():
        raise error

    prepare_or_fail("m.gguf", 7, prepare, outputs, later=later)
    (output,) = outputs
    assert isinstance(output, RequestFailed)
    assert output.id == 7
    return output.problem


def test_what_is_wrong_with_a_request_is_told_as_it_is():
    """A refusal keeps its kind."""
    assert tried(InvalidRequest("no such role")).kind == InvalidRequest.kind


def test_a_defect_is_told_to_the_request_and_logged(caplog):
    """Nothing is raised, so the engine and the neighbours go on."""
    problem = tried(ZeroDivisionError("oh"))
    assert problem.kind == EngineFailed.kind
    assert "could not be prepared: ZeroDivisionError('oh')" in problem.message
    assert "ZeroDivisionError" in caplog.text


def test_what_is_not_ready_is_asked_again():
    """It goes on to whoever knows when."""
    with pytest.raises(NotYet):
        tried(NotYet(), later=(NotYet,))
