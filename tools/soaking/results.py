# SPDX-License-Identifier: GPL-3.0-only
"""Describe what one fault did, and judge the answers of its clients (the table in docs/faults.md)."""

from __future__ import annotations

from typing import NamedTuple

from soaking.http_client import Response


class FaultResult(NamedTuple):
    """One fault, once.

    `seen`: what its clients saw. `lost`: of what they had asked for. `recovery_s`: until the model, or where
    there is none the daemon, served the next request whole; None where it never will (its file is gone).
    `complaints`: what should not be; empty when all is well. `hit`: whether it came at the intended moment.
    """

    fault: str
    when: str
    seen: str
    lost: str
    recovery_s: float | None
    complaints: tuple[str, ...] = ()
    hit: bool = True


def outcome(call: Response) -> str:
    """Return in a few words what a client saw."""
    if not call.whole:
        return f"the connection {call.broken or 'was left'}"
    if call.status != 200:
        return f"{call.status} with the reason" if call.last.get("error") else f"{call.status} without a word"
    if call.last.get("error"):
        return f"a last line with the reason ({call.last.get('code')})"
    return "a whole answer"


def lost_work(call: Response) -> str:
    """Return what of a request its client has to ask for again."""
    if call.whole and not call.last.get("error"):
        return "nothing"
    return "the rest of 1 stream" if call.status == 200 else "1 request"


def is_complete(call: Response, tokens: int) -> bool:
    """Whether it is a whole answer of so many tokens."""
    usage: dict[str, int] = call.last.get("usage") or {}
    return call.whole and call.status == 200 and usage.get("completion_tokens") == tokens


def protocol_errors(call: Response) -> list[str]:
    """Return what is wrong with the form of an answer, whatever it says."""
    if not call.whole:
        return [f"an answer did not end legally: the connection was {call.broken}"]
    ends = [line for line in call.lines if line.get("done")]
    if call.status != 200:
        return [] if call.last.get("error") else [f"a {call.status} without a reason"]
    if len(ends) != 1 or not call.last.get("done"):
        return [f"a stream with {len(ends)} last lines"]
    if call.last.get("error") is None and call.tokens and call.last.get("content") != call.text:
        return ["the content of a last line is not the sum of its tokens"]
    return []
