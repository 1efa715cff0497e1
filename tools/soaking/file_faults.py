# SPDX-License-Identifier: GPL-3.0-only
"""Inject faults of a model's file: deleted, cut short, replaced, in each state of its model.

To hit a moment the worker is stopped at it, and goes on when the file has changed.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import trio

from soaking import procfs
from soaking.daemon import SETTLE_S, SoakDaemon
from soaking.http_client import Response
from soaking.results import FaultResult, lost_work, outcome, protocol_errors
from soaking.worker_faults import until_served

FAULTS = ("deleted", "truncated", "replaced")
MOMENTS = ("on disk", "before it is read", "load", "decode", "unload")
_KEPT_BYTES = 1 << 20
_TOKENS = 32
_PROMPT = "The river ran down to the"


async def change_file(daemon: SoakDaemon, fault: str, when: str) -> FaultResult:
    """Do this to a model's file at that moment."""
    model, complaints = await daemon.fresh_model(copied=True), list[str]()
    path = daemon.folder / model
    before = await daemon.text_of("Q4_0", prompt=_PROMPT, tokens=_TOKENS)
    after = await daemon.text_of("Q4_1", prompt=_PROMPT, tokens=_TOKENS)
    await daemon.get("/models")

    def harm() -> None:
        match fault:
            case "deleted":
                path.unlink()
            case "truncated":
                os.truncate(path, _KEPT_BYTES)
            case _:
                daemon.put(path, "Q4_1", copied=True)

    async with daemon.bystander(complaints):
        began, call, hit = await _at(daemon, model, when, harm)
        legal = _legal(fault, when, before, after)
        if not legal(call):
            complaints.append(
                f"{outcome(call)}, which it should not be: {call.last.get('error')} {call.text!r}"
            )
        complaints += protocol_errors(call)
        recovery = await _afterwards(daemon, model, fault, began, complaints)
    daemon.remove(model)
    return FaultResult(
        f"file {fault}", when, outcome(call), lost_work(call), recovery, tuple(complaints), hit
    )


async def _at(
    daemon: SoakDaemon, model: str, when: str, harm: Callable[[], None]
) -> tuple[float, Response, bool]:
    """Harm the file at the moment. Returns: when that was, the request it met, and whether it was in time."""
    if when == "on disk":
        harm()
        return time.perf_counter(), await daemon.ask(model, prompt=_PROMPT, tokens=_TOKENS), True
    if when == "decode":
        await daemon.ask(model, tokens=1)
    keep = {"keep_alive": "0s"} if when == "unload" else {}
    call = await daemon.begin(model, prompt=_PROMPT, tokens=_TOKENS, **keep)
    pid = await (daemon.until_mapped if when == "load" else daemon.worker)(model)
    hit = True
    if when in {"decode", "unload"}:
        await call.until(3)
    os.kill(pid, signal.SIGSTOP)
    if when == "before it is read":
        hit = not procfs.maps(pid, model)
    elif when == "load":
        hit = (await daemon.row(model))["state"] == "loading"
    elif when == "decode":
        hit = call.tokens < _TOKENS
    else:
        # It is told to stop as soon as its last token is out, and hears of it only after it goes on.
        os.kill(pid, signal.SIGCONT)
        await call.finish()
        hit = not procfs.is_gone(pid)
    harm()
    began = time.perf_counter()
    if not procfs.is_gone(pid):
        os.kill(pid, signal.SIGCONT)
    return began, await call.finish(), hit


def _legal(fault: str, when: str, before: str, after: str) -> Callable[[Response], bool]:
    """Return what a client may see: a text that is what it always is, or a refusal that says why."""

    def legal(call: Response) -> bool:
        if not call.whole:
            return False
        if call.status == 200 and not call.last.get("error"):
            return call.text in ({before, after} if fault == "replaced" else {before})
        if when == "unload" or fault == "replaced":
            return False
        if fault == "deleted" and when == "decode":
            return False
        return call.status in {200, 404, 500, 503} and bool(call.last.get("error"))

    return legal


async def _afterwards(
    daemon: SoakDaemon, model: str, fault: str, began: float, complaints: list[str]
) -> float | None:
    """Ask once more: a damaged or missing file is refused with the reason, a new one there is served."""
    if fault != "replaced":
        expected = {404} if fault == "deleted" else {500, 503}
        call = await daemon.ask(model, tokens=2)
        with trio.move_on_after(SETTLE_S):
            while call.status not in expected:
                await daemon.get("/models")
                call = await daemon.ask(model, tokens=2)
        if call.status not in expected or not call.last.get("error"):
            complaints.append(f"a {fault} file: {outcome(call)}: {call.last}")
        began = time.perf_counter()
        daemon.put(daemon.folder / model, "Q4_1", copied=True)
    after = await daemon.text_of("Q4_1", prompt=_PROMPT, tokens=_TOKENS)
    recovery = await until_served(daemon, model, began, complaints)
    text = ""
    with trio.move_on_after(SETTLE_S):
        while text != after:  # Looks at the folder are two seconds apart, and a busy instance is let end.
            await daemon.get("/models")
            text = (await daemon.ask(model, prompt=_PROMPT, tokens=_TOKENS)).text
    if text != after:
        complaints.append(f"the new file is not served: {text!r} is not {after!r}")
    return recovery
