# SPDX-License-Identifier: GPL-3.0-only
"""Build the daemon: the one place that joins the runtime and HTTP."""

from __future__ import annotations

import faulthandler
import gc
import os
import socket
from functools import partial
from typing import cast

import trio

import modeld
from modeld.cli.stderr import say
from modeld.config.address import hypercorn_binds
from modeld.config.machine import own_names
from modeld.config.settings import Settings
from modeld.domain.model import Isolation
from modeld.engine.protocol import LoadSpec
from modeld.http.app import create_app
from modeld.http.auth import Authorizer
from modeld.http.server.listener import serve
from modeld.http.server.tls import Tls
from modeld.runtime import systemd
from modeld.runtime.daemon import Daemon
from modeld.runtime.keys.accounts import KeyAccounts
from modeld.runtime.keys.keyring import Keyring
from modeld.runtime.keys.usage_store import UsageStore
from modeld.runtime.root import Root
from modeld.telemetry.event_file import EventFile, EventTarget, StandardOutput
from modeld.telemetry.event_writer import EventWriter
from modeld.telemetry.log import get_logger
from modeld.telemetry.metrics import Metrics
from modeld.worker.host import OnMessage, Worker
from modeld.worker.process_host import ProcessWorker
from modeld.worker.thread_host import ThreadWorker

# ----------------------------------------------------------------------
# Chooses the host of a worker by the model's own option.


def make_worker(load: LoadSpec, on_message: OnMessage) -> Worker:
    """Make the worker that `isolation` asks for; a `worker.host.Host`."""
    if load.options.isolation is Isolation.PROCESS:
        return ProcessWorker(load, on_message)
    return ThreadWorker(load, on_message)


# ----------------------------------------------------------------------

_log = get_logger("modeld")

_YOUNG_OBJECTS = 10_000
"""Python looks for cycles after so many new objects, instead of 700: a request makes some hundreds, and
nearly all of them go by themselves."""


def serve_forever(settings: Settings, keyring: Keyring | None = None) -> int:
    """Run the daemon until a signal stops it; return the exit status. Without a keyring nobody needs a key.

    Logging is configured by the caller. 1: the address cannot be bound.
    """
    supervision = systemd.take_systemd_context(os.environ)
    writer = _event_writer(settings)
    binds = supervision.binds or tuple(hypercorn_binds(settings.addr))
    failure: CannotListen | None = None
    try:
        trio.run(_run, settings, keyring, supervision, binds, writer, strict_exception_groups=True)
    except* CannotListen as group:
        failure = CannotListen(_first_message(group))
    finally:
        supervision.notifier.close()
        if writer is not None:
            writer.stop()
    if failure is not None:
        say(f"modeld: {failure}")
    return 0 if failure is None else 1


def _event_writer(settings: Settings) -> EventWriter | None:
    """Start the thread that writes events down, where that is wanted."""
    if not settings.events_enable:
        return None
    target: EventTarget = StandardOutput()
    if settings.events_file is not None:
        target = EventFile(
            settings.events_file, max_bytes=settings.events_max_bytes, keep=settings.events_keep
        )
    writer = EventWriter(target)
    writer.start()
    return writer


class CannotListen(Exception):
    """An address cannot be bound; the message says which and why."""


def _first_message(group: BaseExceptionGroup[CannotListen]) -> str:
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = cast("BaseExceptionGroup[BaseException]", first).exceptions[0]
    return str(first)


async def _run(
    settings: Settings,
    keyring: Keyring | None,
    supervision: systemd.SystemdContext,
    binds: tuple[str, ...],
    events: EventWriter | None,
) -> None:
    metrics = Metrics()
    authorizer = Authorizer(keyring)
    tls = None
    if settings.tls_cert is not None and settings.tls_key is not None:
        tls = Tls(settings.tls_cert, settings.tls_key)
    root = Root(
        settings,
        host=make_worker,
        metrics=metrics,
        supervision=supervision,
        node_id=f"{socket.gethostname()}-{os.getpid()}",
        on_stop=_leave_at_the_latest,
        on_hangup=partial(_look_again, keyring, tls),
        events=events,
    )
    metrics.watch_fleet(root.daemon.status)
    await root.run(
        partial(_front, settings=settings, authorizer=authorizer, tls=tls, metrics=metrics, binds=binds),
        partial(_announce, authorizer),
    )


async def _front(
    daemon: Daemon,
    *,
    settings: Settings,
    authorizer: Authorizer,
    tls: Tls | None,
    metrics: Metrics,
    binds: tuple[str, ...],
    shutdown: trio.Event,
    task_status: trio.TaskStatus[list[str]],
) -> None:
    store = None if settings.state_dir is None else UsageStore(settings.state_dir / "usage.sqlite3")
    accounts = KeyAccounts(metrics, store)
    await accounts.open()
    names = own_names(socket.gethostname())
    app = create_app(daemon, settings, metrics, authorizer=authorizer, accounts=accounts, own_names=names)
    _spare_collector()
    keeping = trio.CancelScope(shield=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_keep_accounts, accounts, keeping)
        if authorizer.keyring is not None:
            nursery.start_soon(authorizer.keyring.run)
        try:
            async with trio.open_nursery() as serving:
                try:
                    urls = await serving.start(partial(serve, app, binds, shutdown=shutdown, tls=tls))
                except OSError as error:
                    why = error.strerror or str(error)
                    raise CannotListen(f"cannot listen on {', '.join(binds)}: {why}") from error
                task_status.started(urls)
        finally:
            keeping.cancel()
        nursery.cancel_scope.cancel()


async def _keep_accounts(accounts: KeyAccounts, keeping: trio.CancelScope) -> None:
    """Keep them until this scope is cancelled: by then all requests have ended, and their use is known."""
    with keeping:
        await accounts.run()


def _look_again(keyring: Keyring | None, tls: Tls | None) -> None:
    """Read again what SIGHUP has read again."""
    if keyring is not None:
        keyring.reload()
    if tls is not None:
        tls.reload()


def _spare_collector() -> None:
    """Have the collector of cycles leave out what is there for good, and run less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])


def _leave_at_the_latest(seconds: float) -> None:
    """End the process by force if the stop takes longer: an engine that hangs must not hold it.

    Python's own watchdog thread does it; it needs no interpreter lock, writes where every thread
    was, and exits with 1.
    """
    faulthandler.dump_traceback_later(seconds, exit=True)


def _announce(authorizer: Authorizer, urls: list[str]) -> None:
    for warning in authorizer.warnings:
        say(f"modeld: WARNING: {warning}")
    for url in urls:
        _log.info("listening", url=url, version=modeld.__version__)
        say(f"modeld {modeld.__version__} listens on {url}")
