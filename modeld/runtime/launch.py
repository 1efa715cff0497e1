# SPDX-License-Identifier: GPL-3.0-only
"""Makes instances: what the settings say of all of them, and who hears what they really take."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from msgspec.structs import replace

from modeld.core.inputs import Input
from modeld.core.models import EngineKind, ModelSpec
from modeld.engine.protocol import LoadSpec
from modeld.runtime.instance import Instance
from modeld.runtime.scales import Gauge
from modeld.worker.host import Host


class Launcher:
    """Makes the instance of a model; whoever asked for it runs it."""

    def __init__(
        self,
        host: Host,
        *,
        engine: EngineKind,
        fake_script: Callable[[ModelSpec], str],
        stall_timeout_s: float,
        gauge: Gauge | None,
    ) -> None:
        """`gauge` hears what models really take."""
        self._host = host
        self._engine = engine
        self._fake_script = fake_script
        self._stall_timeout_s = stall_timeout_s
        self._gauge = gauge

    def instance(
        self,
        spec: ModelSpec,
        threads: int,
        *,
        feed: Callable[[Input], None],
        on_progress: Callable[[str, float], None],
    ) -> Instance:
        """Return an instance that loads this model when it runs, with so many threads."""
        return Instance(
            LoadSpec(
                model_id=spec.id,
                path=spec.path,
                options=replace(spec.options, threads=threads),
                facts=spec.facts,
                size_bytes=spec.size_bytes,
                modified_ns=spec.modified_ns,
                kind=self._engine,
                fake=self._fake_script(spec),
            ),
            host=self._host,
            feed=feed,
            on_progress=on_progress,
            on_held=partial(self._held, spec),
            stall_timeout_s=self._stall_timeout_s,
        )

    def out_of_memory(self, spec: ModelSpec) -> None:
        """Note that memory ran out while this model was loaded."""
        if self._gauge is not None:
            self._gauge.short(spec)

    def _held(self, spec: ModelSpec, held: int, ready: bool) -> None:
        if self._gauge is None:
            return
        if ready:
            self._gauge.ready(spec, held)
        else:
            self._gauge.seen(spec, held)
