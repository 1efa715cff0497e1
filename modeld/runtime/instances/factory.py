# SPDX-License-Identifier: GPL-3.0-only
"""Create instances with the settings that all of them share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from msgspec.structs import replace

from modeld.domain.model import EngineKind, LoadOptions, ModelSpec
from modeld.engine.protocol import LoadSpec
from modeld.runtime.instances.instance import Instance
from modeld.runtime.memory.footprints import MemoryObserver
from modeld.scheduler.effects import StartLoad
from modeld.scheduler.inputs import Input
from modeld.worker.host import Host


class InstanceFactory:
    """Makes the instance of a model; whoever asked for it runs it."""

    def __init__(
        self,
        host: Host,
        *,
        engine: EngineKind,
        fake_script: Callable[[ModelSpec], str],
        stall_timeout_s: float,
        memory_observer: MemoryObserver | None,
    ) -> None:
        """`memory_observer` hears what models really take."""
        self._host = host
        self._engine = engine
        self._fake_script = fake_script
        self._stall_timeout_s = stall_timeout_s
        self._memory_observer = memory_observer

    def instance(
        self,
        load: StartLoad,
        *,
        feed: Callable[[Input], None],
        on_progress: Callable[[str, float], None],
    ) -> Instance:
        """Return an instance that loads a model as it was ordered, when it runs."""
        spec = load.spec
        return Instance(
            LoadSpec(
                model_id=spec.id,
                path=spec.path,
                options=_options(load),
                facts=spec.facts,
                size_bytes=spec.size_bytes,
                modified_ns=spec.modified_ns,
                kind=self._engine,
                fake=self._fake_script(spec),
            ),
            host=self._host,
            feed=feed,
            on_progress=on_progress,
            on_held=partial(self._held, load),
            stall_timeout_s=self._stall_timeout_s,
        )

    def out_of_memory(self, spec: ModelSpec) -> None:
        """Note that memory ran out while this model was loaded."""
        if self._memory_observer is not None:
            self._memory_observer.out_of_memory(spec)

    def _held(self, load: StartLoad, held: int, ready: bool) -> None:
        spec = load.spec
        if self._memory_observer is None or (load.placement is not None and load.placement.gpu_layers):
            return  # Of what is on a GPU, the memory of the process says nothing.
        if ready:
            self._memory_observer.ready(spec, held)
        else:
            self._memory_observer.measured(spec, held)


def _options(load: StartLoad) -> LoadOptions:
    """Return how a model is loaded at the place that was chosen for it."""
    options, place = replace(load.spec.options, threads=load.threads), load.placement
    if place is None:
        return options
    if not place.gpu_layers:
        return replace(options, gpu_layers=0, main_gpu=-1, tensor_split=())
    return replace(
        options,
        gpu_layers=place.gpu_layers,
        main_gpu=place.main_gpu,
        tensor_split=tuple(map(float, place.split)),
    )
