# SPDX-License-Identifier: GPL-3.0-only
"""Chooses the host of a worker by the model's own option."""

from __future__ import annotations

from modeld.core.models import Isolation
from modeld.engine.protocol import LoadSpec
from modeld.worker.host import OnMessage, Worker
from modeld.worker.process import ProcessWorker
from modeld.worker.thread import ThreadWorker


def make_worker(load: LoadSpec, on_message: OnMessage) -> Worker:
    """Make the worker that `isolation` asks for; a `worker.host.Host`."""
    if load.options.isolation is Isolation.PROCESS:
        return ProcessWorker(load, on_message)
    return ThreadWorker(load, on_message)
