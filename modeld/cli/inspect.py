# SPDX-License-Identifier: GPL-3.0-only
"""`modeld inspect FILE`: show a model's facts and memory needs. Starts no daemon, loads no weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import click
import msgspec
import trio

from modeld.cli.console.tables import figures
from modeld.cli.options import setting_option, typed_settings
from modeld.cli.stderr import say
from modeld.config.machine import usable_cores
from modeld.config.model_settings import ModelSettings
from modeld.config.rules import cautions, findings
from modeld.config.setting import flag_of
from modeld.config.settings import AUTO, LOAD_SETTINGS, Settings
from modeld.config.values import show_shares
from modeld.domain.catalog import parse_split
from modeld.domain.model import MIB, Adapter, DeviceUse, DryRun, Footprint, LoadOptions, ModelFacts
from modeld.engine.llama.footprint import estimate
from modeld.engine.llama.gguf.adapter import adapter_facts, check_architecture
from modeld.engine.llama.gguf.facts import FileKind, GgufError, facts_of, kind_of, read_header
from modeld.engine.protocol import LoadSpec
from modeld.errors import Problem
from modeld.runtime.catalog.options import options_of
from modeld.telemetry.log import printable
from modeld.worker.oneshot import WITHIN_S, run_dry_run

_HELP = """Show what is in a GGUF file, and what the model would take in memory with these options.

The sizes come from llama.cpp itself, by a dry run in a short process that reads the header and allocates
nothing (5 s at most); --formula only calculates, from the metadata, which is what the daemon falls back to.

Exits with 0 when the model could be loaded, 1 when the file cannot be read or llama.cpp refuses it, and 2 for
options that cannot be used.
"""
_FLAGS = {name: flag_of(name.removeprefix("llama_")) for name in LOAD_SETTINGS}
"""The settings of how a model is loaded, and their short names here; the daemon's names work too."""


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """A footprint in MiB."""

    weights: float
    kv: float
    compute: float
    overhead: float
    total: float


class DeviceSizes(msgspec.Struct, frozen=True, kw_only=True):
    """What is on one device, in MiB."""

    device: str
    weights: float
    kv: float
    compute: float


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` prints. Sizes in MiB."""

    file: str
    facts: ModelFacts
    options: LoadOptions
    source: str
    """`probe` (llama.cpp's own dry run) or `formula`."""
    footprint_mb: Sizes
    begins_with_mb: Sizes | None = None
    """While the KV cache is split, where it may become one for all slots."""
    devices_mb: tuple[DeviceSizes, ...] = ()
    formula_mb: Sizes


def _inspect(file: str, *, lora: tuple[str, ...], formula: bool, as_json: bool, **flags: str | None) -> None:
    path = Path(file).absolute()
    try:
        facts = _facts(path)
        options = _options(flags, _adapters(lora, facts))
    except (GgufError, OSError) as error:
        _fail(f"{path.name}: {(error.strerror or error) if isinstance(error, OSError) else error}")
    found: DryRun | Problem | None = None
    if not formula:
        spec = LoadSpec(model_id=path.name, path=str(path), options=options, facts=facts)
        found = trio.run(run_dry_run, spec, WITHIN_S)
    if isinstance(found, Problem):
        _fail(found.message)
    shown = _inspection(path, facts, options, found)
    if as_json:
        click.echo(msgspec.json.encode(shown).decode())
        return
    for line in table(shown):
        click.echo(line)


def _fail(text: str) -> NoReturn:
    click.echo(f"modeld: {printable(text)}", err=True)
    raise SystemExit(1)


def _facts(path: Path) -> ModelFacts:
    """Read the header of a model, of all its parts. Raises: GgufError, OSError."""
    split = parse_split(path.name)
    names = [path.name] if split is None else [split.name_of(part + 1) for part in range(split.parts)]
    headers = [read_header(path.with_name(name)) for name in names]
    kind = kind_of(headers[0])
    if kind is not FileKind.MODEL:
        raise GgufError(f"it holds no model: it is a file of kind {kind}")
    return facts_of(headers)


def _adapters(paths: Sequence[str], facts: ModelFacts) -> tuple[Adapter, ...]:
    found: list[Adapter] = []
    for given in paths:
        path, scale = _scaled(given)
        adapter = adapter_facts(read_header(path))
        check_architecture(adapter, facts.architecture)
        modified_ns = path.stat().st_mtime_ns
        found.append(Adapter(path=str(path), scale=scale, bytes=adapter.bytes, modified_ns=modified_ns))
    return tuple(found)


def _scaled(given: str) -> tuple[Path, float]:
    """Read `FILE` or `FILE:SCALE`; a file whose name looks like the latter is itself."""
    name, colon, scale = given.rpartition(":")
    if colon and not Path(given).exists():
        with suppress(ValueError):
            return Path(name).absolute(), float(scale)
    return Path(given).absolute(), 1.0


def _options(flags: dict[str, str | None], adapters: tuple[Adapter, ...]) -> LoadOptions:
    chosen = typed_settings(flags, _FLAGS)
    for name in ("llama_ctx", "llama_slots"):
        if chosen.get(name) == AUTO:
            sentence = "auto depends on a daemon's budget; give a number"
            raise click.BadParameter(sentence, param_hint=_FLAGS[name])
    settings = msgspec.structs.replace(Settings(), **{"llama_threads": usable_cores(), **chosen})
    given = {name: _FLAGS[name] for name in chosen}
    for name, sentence in findings(settings, given):
        raise click.BadParameter(sentence, param_hint=_FLAGS[name])
    for name, sentence in cautions(settings, given):
        say(f"modeld: warning: {_FLAGS[name]}: {sentence}")
    return options_of(settings, ModelSettings(), adapters)


def _inspection(path: Path, facts: ModelFacts, options: LoadOptions, found: DryRun | None) -> Inspection:
    outline = estimate(facts, options)
    if found is None:
        sizes = _sizes(outline)
        return Inspection(
            file=str(path),
            facts=facts,
            options=options,
            source="formula",
            footprint_mb=sizes,
            formula_mb=sizes,
        )
    return Inspection(
        file=str(path),
        facts=facts,
        options=options,
        source="probe",
        footprint_mb=_sizes(found.peak),
        begins_with_mb=None if found.before_use == found.peak else _sizes(found.before_use),
        devices_mb=tuple(map(_device, found.devices)),
        formula_mb=_sizes(outline),
    )


def _sizes(of: Footprint) -> Sizes:
    return Sizes(
        weights=_mib(of.weights),
        kv=_mib(of.kv),
        compute=_mib(of.compute),
        overhead=_mib(of.overhead),
        total=_mib(of.total),
    )


def _device(use: DeviceUse) -> DeviceSizes:
    return DeviceSizes(
        device=use.device, weights=_mib(use.weights), kv=_mib(use.kv), compute=_mib(use.compute)
    )


def _mib(size: int) -> float:
    return round(size / MIB, 2)


def table(shown: Inspection) -> Iterable[str]:
    """Yield the lines for people."""
    facts, options = shown.facts, shown.options
    name = facts.name or Path(shown.file).name
    yield printable(f"{name}: {facts.architecture} {facts.quant}, {facts.parameters / 1e6:,.0f} M parameters")
    yield (
        f"trained for {facts.context_length} tokens of context, {facts.layers} layers, "
        f"vocabulary of {facts.vocabulary}" + (f", embeds ({facts.pooling})" if facts.pooling else "")
    )
    yield (
        f"with {options.ctx} KV cells of {options.kv_type}, {options.slots} slots, "
        f"batches of {options.ubatch}"
        + ("" if options.mmap else ", without mmap")
        + (", with context shift" if options.context_shift else "")
        + ("" if options.main_gpu is None else f", all layers on GPU {options.main_gpu}")
        + (f", split {show_shares(options.tensor_split)} over GPUs" if options.tensor_split else "")
        + (f", {len(options.lora)} LoRA adapters" if options.lora else "")
        + f", in a {options.isolation}"
    )
    yield ""
    columns: list[tuple[str, Sizes]] = [("MiB", shown.footprint_mb)]
    if shown.begins_with_mb is not None:
        columns.append(("while split", shown.begins_with_mb))
    if shown.source == "probe":
        columns.append(("by formula", shown.formula_mb))
    rows = [("", *(title for title, _ in columns))]
    rows += [
        (cause, *(f"{getattr(sizes, cause):,.1f}" for _, sizes in columns))
        for cause in ("weights", "kv", "compute", "overhead", "total")
    ]
    yield from figures(rows)
    if len(shown.devices_mb) > 1:
        yield ""
        rows = [("device", "weights", "kv", "compute")]
        rows += [
            (use.device, f"{use.weights:,.1f}", f"{use.kv:,.1f}", f"{use.compute:,.1f}")
            for use in shown.devices_mb
        ]
        yield from figures(rows)


inspect = click.Command(
    "inspect",
    callback=_inspect,
    short_help="Show what a model file takes in memory.",
    help=_HELP,
    params=[
        click.Argument(["file"]),
        click.Option(
            ["--lora"],
            multiple=True,
            metavar="FILE[:SCALE]",
            help="A LoRA adapter and its scale (1); may be repeated.",
        ),
        click.Option(["--formula"], is_flag=True, help="Only calculate, from the metadata."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object."),
        *(setting_option(name, short=flag) for name, flag in _FLAGS.items()),
    ],
)
