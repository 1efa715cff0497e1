# SPDX-License-Identifier: GPL-3.0-only
"""Scan the models folder once: files in, catalogue out. Blocks on the disk.

Which files there are is `model_files`' to say. Headers are read again only when path, size, time of
modification or inode of a part changed; else a look costs one `stat` a file (1,000 files: 10 ms). An
error of the operating system is never remembered: a file whose mode is mended is found at the next
look.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import msgspec

from modeld.config.model_settings import ModelSettings
from modeld.config.settings import Settings
from modeld.domain.catalog import File, ModelFiles, model_files
from modeld.domain.model import (
    Catalog,
    EngineKind,
    Footprint,
    LoadOptions,
    ModelFacts,
    ModelSpec,
    catalog_of,
)
from modeld.engine.llama.footprint import estimate
from modeld.engine.llama.gguf.facts import FileKind, GgufError, facts_of, kind_of, read_header, split_of
from modeld.memory.sizing import choose_size, largest_ctx
from modeld.memory.space import Capacity
from modeld.runtime.catalog.adapters import AdapterFiles, FileStamp
from modeld.runtime.catalog.model_files import folder_error, is_our_own_lack, list_files, reason_of
from modeld.runtime.catalog.options import assign, left_open, options_of


class ScanResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one look found.

    `ignored`: id to kind of the files that are no models by themselves (projectors, adapters).
    `entries`: the settings of each model. `unmatched`: keys of `models:` that name no file.
    `problems`: folders below that cannot be read, a default model that is not there; a sentence each.
    `error`: why the folder itself cannot be read; the catalogue is empty then, but for want of descriptors
    or memory, when it is what it was.
    """

    catalog: Catalog = Catalog()
    ignored: Mapping[str, str] = {}
    entries: Mapping[str, ModelSettings] = {}
    unmatched: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    error: str | None = None


class _Outcome(msgspec.Struct, frozen=True):
    """What reading a candidate gave: facts of a model, the kind of another file, or an error.

    `refused`: the error is the operating system's, and may be gone next time though no file changed.
    """

    facts: ModelFacts | None = None
    kind: FileKind = FileKind.MODEL
    error: str | None = None
    refused: bool = False


class Scanner:
    """Looks at one folder again and again. Use it from one thread at a time.

    Attributes:
      space: what there is for models; sizes that are `auto` follow from it.
    """

    def __init__(self, settings: Settings, space: Capacity | None = None) -> None:
        self.space = space or Capacity()
        self._settings = settings
        self._known: dict[tuple[File, ...], _Outcome] = {}
        self._adapters = AdapterFiles(settings)
        self._refused_adapter = False
        self._found = ScanResult()
        self._last: tuple[list[File], tuple[str, ...], tuple[FileStamp, ...], ScanResult] | None = None

    def scan(self) -> ScanResult:
        """Look at the folder. Never raises for what is in it, or for its absence."""
        folder = self._settings.models_dir
        try:
            files, problems = list_files(folder.expanduser())
        except (OSError, RuntimeError) as error:
            told = folder_error(folder, error)
            if is_our_own_lack(error):
                return msgspec.structs.replace(self._found, error=told)
            return ScanResult(error=told, unmatched=tuple(sorted(self._settings.models)))
        stamps = self._adapters.stamps()
        if self._last is not None and self._last[:3] == (files, problems, stamps):
            return self._last[3]
        self._refused_adapter = False
        candidates = model_files(files)
        outcomes = {candidate.id: self._outcome(candidate) for candidate in candidates}
        for candidate in candidates:
            if outcomes[candidate.id].error is not None and candidate.path in {
                stamp.path for stamp in stamps
            }:
                # A damaged file that is named as an adapter is no damaged model.
                refused = outcomes[candidate.id].refused
                outcomes[candidate.id] = _Outcome(kind=FileKind.ADAPTER, refused=refused)
        scan = self._put_together(candidates, outcomes, problems)
        lasting = [each for each in candidates if not outcomes[each.id].refused]
        self._known = {candidate.files: outcomes[candidate.id] for candidate in lasting}
        complete = len(lasting) == len(candidates) and not self._refused_adapter
        self._last = (files, problems, stamps, scan) if complete else None
        self._found = scan
        return scan

    def _put_together(
        self, candidates: list[ModelFiles], outcomes: Mapping[str, _Outcome], problems: tuple[str, ...]
    ) -> ScanResult:
        models = [candidate for candidate in candidates if outcomes[candidate.id].kind is FileKind.MODEL]
        assignment = assign(self._settings.models, ((model.id, *model.aliases) for model in models))
        specs = self._specs(models, outcomes, assignment.entries)
        catalog = catalog_of(specs, self._settings.default_model)
        if catalog.default is None and self._settings.default_model is not None:
            problems = (*problems, f"default_model {self._settings.default_model!r} names no model")
        return ScanResult(
            catalog=catalog,
            ignored={
                key: str(outcome.kind)
                for key, outcome in outcomes.items()
                if outcome.kind is not FileKind.MODEL
            },
            entries=assignment.entries,
            unmatched=assignment.unmatched,
            problems=problems,
        )

    def _outcome(self, candidate: ModelFiles) -> _Outcome:
        if candidate.error is not None:
            return _Outcome(error=candidate.error)
        known = self._known.get(candidate.files)
        return _read(candidate) if known is None else known

    def _specs(
        self,
        models: list[ModelFiles],
        outcomes: Mapping[str, _Outcome],
        entries: Mapping[str, ModelSettings],
    ) -> list[ModelSpec]:
        """All models with their sizes: what is pinned first, since the others have to fit alongside it.

        Pinned models whose size is `auto` share evenly what the other pinned ones leave, with one
        share for all the models that are not pinned.
        """
        plain = ModelSettings()
        pairs = [(model, entries.get(model.id, plain)) for model in models]
        pinned = [pair for pair in pairs if pair[1].pinned]
        others = [pair for pair in pairs if not pair[1].pinned]
        fixed = [pair for pair in pinned if not left_open(self._settings, pair[1])]
        sharing = [pair for pair in pinned if left_open(self._settings, pair[1])]

        def specs_of(pairs: list[tuple[ModelFiles, ModelSettings]], space: Capacity) -> list[ModelSpec]:
            return [self._spec(model, outcomes[model.id], entry, space) for model, entry in pairs]

        specs = specs_of(fixed, self.space)
        rest = self.space.less(specs)
        specs += (shared := specs_of(sharing, rest.part(len(sharing) + bool(others) or 1)))
        return specs + specs_of(others, rest.less(shared))

    def _spec(
        self, candidate: ModelFiles, outcome: _Outcome, entry: ModelSettings, space: Capacity
    ) -> ModelSpec:
        """The model as it is served. The fake engine takes any file that can be read, GGUF or not."""
        facts, error = outcome.facts, outcome.error
        look = self._adapters.look(entry.lora, facts.architecture if facts is not None else None)
        self._refused_adapter |= look.refused
        error = error or look.error
        if self._settings.engine is EngineKind.FAKE and candidate.error is None and not outcome.refused:
            error = None
        options = options_of(self._settings, entry, look.adapters)
        size = sum(file.size for file in candidate.files)
        footprint = Footprint(weights=size if error is None else 0)
        sizing, fitting_ctx = "", 0
        if facts is not None:
            footprint = estimate(facts, options)
            left = left_open(self._settings, entry)
            if left:
                fits = space.fits(partial(_sized, candidate, facts))
                chosen = choose_size(
                    facts, options, left, space.total, partial(estimate, facts), devices=fits
                )
                options, footprint, sizing = chosen.options, chosen.footprint, chosen.reason
            elif space.total is not None and footprint.total > space.total:
                fitting_ctx = largest_ctx(facts, options, space.total, partial(estimate, facts))
        return ModelSpec(
            id=candidate.id,
            path=candidate.path,
            name=(facts.name if facts is not None else "") or candidate.stem,
            size_bytes=size,
            modified_ns=max(file.modified_ns for file in candidate.files),
            facts=facts,
            error=error,
            aliases=tuple(dict.fromkeys((*candidate.aliases, *entry.aliases))),
            options=options,
            footprint=footprint,
            sizing=sizing,
            fitting_ctx=fitting_ctx,
            pinned=entry.pinned,
            ttl_s=entry.ttl,
            preload=entry.preload,
            max_queue_depth=entry.max_queue_depth,
        )


def _sized(candidate: ModelFiles, facts: ModelFacts, options: LoadOptions) -> ModelSpec:
    """Return the model as far as its size goes."""
    footprint = estimate(facts, options)
    return ModelSpec(id=candidate.id, path=candidate.path, facts=facts, options=options, footprint=footprint)


def _read(candidate: ModelFiles) -> _Outcome:
    """Read the headers of all parts."""
    name = Path(candidate.path).name
    try:
        headers = [read_header(Path(file.path)) for file in candidate.files]
        kind = kind_of(headers[0])
        if kind is not FileKind.MODEL:
            return _Outcome(kind=kind)
        for place, header in enumerate(headers):
            index, parts = split_of(header)
            if (index, parts) != (place, candidate.parts):
                return _Outcome(error=_misnamed(candidate.files[place].name, index + 1, parts))
        return _Outcome(facts=facts_of(headers))
    except GgufError as error:
        return _Outcome(error=str(error))
    except OSError as error:
        return _Outcome(error=f"{name} cannot be read: {reason_of(error)}", refused=True)
    except Exception as error:  # noqa: BLE001  # the wall: a file that our reader breaks on is told as damaged, and the others are served
        return _Outcome(error=f"{name} cannot be read: {error!r} (a defect of modeld)")


def _misnamed(name: str, part: int, parts: int) -> str:
    if parts == 1:
        return f"{name} is named like a part of a split model, but it is a whole one; rename it"
    return (
        f"{name} is part {part} of {parts} by its metadata; llama.cpp finds the parts only under the name "
        f"<model>-{part:05d}-of-{parts:05d}.gguf"
    )
