# SPDX-License-Identifier: GPL-3.0-only
"""`modeld simulate`: replay a trace of requests against the scheduler in virtual time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import cast

import click
import msgspec

from modeld.cli.console.tables import figures
from modeld.cli.options import setting_option, typed_settings
from modeld.config.setting import flag_of
from modeld.config.settings import Settings
from modeld.domain.model import MIB
from modeld.runtime.root import limits_of as daemon_limits
from modeld.scheduler.state import Eviction, SchedulerLimits
from modeld.simulator.belady import belady_loads, fewest_loads
from modeld.simulator.replay import SimulationReport, limits_of
from modeld.simulator.replay import simulate as replay
from modeld.simulator.trace import BadTrace, Trace, TraceHead, parse_head, parse_trace
from modeld.simulator.trace_from_events import is_recorded, parse_events

_SETTINGS = (
    "vram_budget_mb",
    "vram_margin_mb",
    "max_queue_depth",
    "max_queue_total",
    "max_wait",
    "max_wait_before_drain",
    "quantum",
    "backlog_time",
    "min_residency",
    "evict_timeout",
    "cut_streams",
)
"""The settings that change what a simulation does; each is a flag of the name it has in `serve`."""


_HELP = """Replay the requests of TRACE against the scheduler, in virtual time.

Reports loads, waits and refusals. Without --policy, modeld's own policy is compared with LRU. TRACE is
a file of JSON lines, or - for standard input; docs/scheduling.md tells its format, and what the figures mean.
A file of events that a daemon recorded (events_file) is a trace, too.
"""


class Optimum(msgspec.Struct, frozen=True, kw_only=True):
    """Loads of servers that know the future; docs/scheduling.md says what each figure proves."""

    belady_loads: int
    fewest_loads_in_order: int
    models_asked_for: int


class Simulation(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` prints."""

    trace: str
    budget_mb: float
    """0 is unlimited."""
    reports: tuple[SimulationReport, ...]
    optimum: Optimum
    missed_events: int = 0
    """Of a recorded trace: events that were lost while it was recorded."""


def _simulate(
    trace: str, *, policy: str | None, models: str | None, as_json: bool, **flags: str | None
) -> None:
    settings = _settings(flags)
    read = _read(trace, models)
    budget_mb = settings.vram_budget_mb if flags["vram_budget_mb"] is not None else read.head.budget_mb
    limits = _limits(settings, budget_mb)
    policies = (Eviction.LRU, Eviction.COST) if policy is None else (Eviction(policy),)
    result = Simulation(
        trace=trace,
        budget_mb=budget_mb or 0,
        reports=tuple(replay(read, limits_of(one, limits)) for one in policies),
        optimum=_optimum(read, limits),
        missed_events=read.missed,
    )
    if as_json:
        click.echo(msgspec.json.encode(result).decode())
        return
    for line in table(result, read):
        click.echo(line)


def _settings(flags: dict[str, str | None]) -> Settings:
    chosen = typed_settings(flags, {name: flag_of(name) for name in _SETTINGS})
    if "vram_budget_mb" in chosen and chosen["vram_budget_mb"] is None:
        sentence = "a simulation has no machine to look at; give the budget as a number"
        raise click.BadParameter(sentence, param_hint="--vram-budget-mb")
    return msgspec.structs.replace(Settings(), **chosen)


def _read(trace: str, models: str | None) -> Trace:
    try:
        head = None if models is None else parse_head(Path(models).read_text(encoding="utf-8-sig"), models)
        with click.open_file(trace, encoding="utf-8-sig") as lines:
            return read_trace(cast("Iterable[str]", lines), head)
    except OSError as error:
        raise click.ClickException(f"{error.filename or trace}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise click.ClickException(f"{trace}: this is no UTF-8 text") from None
    except BadTrace as error:
        raise click.ClickException(f"{trace}: {error}") from None


def read_trace(lines: Iterable[str], head: TraceHead | None) -> Trace:
    """Read a trace, or the events that a daemon recorded: the first line tells which. Raises: BadTrace."""
    rest = iter(lines)
    begin: list[str] = []
    for line in rest:
        begin.append(line)
        if line.strip():
            break
    parse = parse_events if begin and is_recorded(begin[-1]) else parse_trace
    return parse(chain(begin, rest), head)


def _limits(settings: Settings, budget_mb: float | None) -> SchedulerLimits:
    limits = daemon_limits(msgspec.structs.replace(settings, vram_budget_mb=0))
    return msgspec.structs.replace(limits, budget=math.floor(budget_mb * MIB) if budget_mb else None)


def _optimum(trace: Trace, limits: SchedulerLimits) -> Optimum:
    uses = [request.model for request in trace.requests]
    sizes = {model.id: model.size_mb for model in trace.head.models}
    room = None if limits.budget is None else (limits.budget - limits.margin) / MIB
    return Optimum(
        belady_loads=belady_loads(uses, sizes, room),
        fewest_loads_in_order=fewest_loads(uses, sizes, room),
        models_asked_for=len(set(uses)),
    )


def table(result: Simulation, trace: Trace) -> Iterable[str]:
    """Yield the lines for people: a column for each policy."""
    budget = f"{result.budget_mb:g} MiB" if result.budget_mb else "unlimited memory"
    minutes = trace.requests[-1].at_ms / 60_000
    asked_for = f"{minutes:.1f} min for {result.optimum.models_asked_for} models"
    yield f"{len(trace.requests)} requests over {asked_for}, {budget}"
    if trace.missed:
        yield f"{trace.missed} events were lost while this was recorded, so requests are missing"
    yield ""
    rows: list[Sequence[str]] = [("policy", *(report.policy for report in result.reports))]
    kinds = sorted({kind for report in result.reports for kind in report.refused})
    rows += [
        ("served", *(str(report.served) for report in result.reports)),
        *(
            (f"refused: {kind}", *(str(report.refused.get(kind, 0)) for report in result.reports))
            for kind in kinds
        ),
        ("loads", *(str(report.loads) for report in result.reports)),
        ("of them reloads", *(str(report.reloads) for report in result.reports)),
        ("time spent loading", *(_seconds(report.loading_ms) for report in result.reports)),
        ("evictions", *(str(report.evictions) for report in result.reports)),
        ("wait, median", *(_seconds(report.waits.p50_ms) for report in result.reports)),
        ("wait, 99 %", *(_seconds(report.waits.p99_ms) for report in result.reports)),
        ("wait, worst", *(_seconds(report.waits.worst_ms) for report in result.reports)),
        ("memory held, mean", *(f"{report.held_mb:.1f} MiB" for report in result.reports)),
        ("of it idle", *(f"{report.idle_mb:.1f} MiB" for report in result.reports)),
    ]
    yield from figures(rows)
    yield ""
    yield (
        f"in order of arrival, knowing the future: {result.optimum.belady_loads} loads by Belady's rule, "
        f"never fewer than {result.optimum.fewest_loads_in_order}"
    )


def _seconds(milliseconds: int) -> str:
    return f"{milliseconds / 1000:.2f} s"


simulate = click.Command(
    "simulate",
    callback=_simulate,
    short_help="Replay a trace against the scheduler.",
    help=_HELP,
    params=[
        click.Argument(["trace"]),
        click.Option(
            ["--policy"],
            type=click.Choice([str(policy) for policy in Eviction]),
            help="Only this one: cost (modeld's own), or lru (idle models go by last use, busy ones never).",
        ),
        click.Option(["--models"], metavar="FILE", help="The models, if TRACE does not begin with them."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object."),
        setting_option("vram_budget_mb", default="the trace's"),
        *(setting_option(name) for name in _SETTINGS[1:]),
    ],
)
