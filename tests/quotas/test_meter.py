# SPDX-License-Identifier: GPL-3.0-only
"""Limits of keys: sliding windows against a plain list of uses, and what a key is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.http.replies import rate_headers
from modeld.quotas.client import Client
from modeld.quotas.meter import (
    Meter,
    Today,
    Window,
    amount_used,
    below_in,
    limit_statuses,
    refusal,
    request_begun,
    request_ended,
    seconds_until_below,
    with_usage,
)

TODAY = Today("2026-11-22", 3600.0)
uses = st.lists(st.tuples(st.floats(0, 40), st.integers(1, 50)), max_size=30)


@given(uses, st.floats(0, 100), st.integers(1, 200))
def test_a_window_counts_the_last_minute(pauses: list[tuple[float, int]], later: float, most: int) -> None:
    """By whole seconds: what is younger than the span counts always, what is a second older never."""
    now, window, plain = 0.0, Window(), list[tuple[float, int]]()
    for pause, amount in pauses:
        now += pause
        window = with_usage(window, now, amount)
        plain.append((now, amount))
        assert len(window.used_in) <= 61
    now += later
    young = sum(amount for at, amount in plain if now - at < 60)
    old = sum(amount for at, amount in plain if now - at <= 61)
    assert young <= amount_used(window, now) <= old
    wait = below_in(window, now, most)
    assert amount_used(window, now + wait) < most
    assert wait == 0 or amount_used(window, now + wait - 0.01) >= most
    soon = seconds_until_below(window, now)
    assert (soon == 0) == (amount_used(window, now) == 0)
    assert soon == 0 or amount_used(window, now + soon) < amount_used(window, now)


def test_requests_of_a_minute_are_bounded() -> None:
    """The one too many is refused, with the seconds after which it will not be."""
    client, meter = Client(name="a", requests_per_minute=2), Meter()
    for now in (0.5, 10.5):
        assert refusal(client, meter, now, TODAY) is None
        meter = request_ended(request_begun(meter, 5, now), 5, 3, now, TODAY)
    problem = refusal(client, meter, 20.0, TODAY)
    assert problem is not None
    assert (problem.kind, problem.status, problem.retry_after_s) == ("rate_limited", 429, 41)
    assert problem.details == {"policy": "requests", "quota": 2}
    assert refusal(client, meter, 61.0, TODAY) is None


def test_tokens_are_counted_with_what_is_under_way() -> None:
    """Requests inside count with their estimate, ended ones with what they took."""
    client, meter = Client(name="a", tokens_per_minute=100), request_begun(Meter(), 500, 0.0)
    problem = refusal(client, meter, 1.0, TODAY)
    assert problem is not None
    assert problem.retry_after_s == 1
    meter = request_ended(meter, 500, 60, 2.0, TODAY)
    assert refusal(client, meter, 3.0, TODAY) is None
    meter = request_ended(request_begun(meter, 10, 3.0), 10, 45, 4.0, TODAY)
    problem = refusal(client, meter, 5.0, TODAY)
    assert problem is not None
    assert (problem.details["policy"], problem.retry_after_s) == ("tokens", 58)
    assert meter.reserved == meter.running == 0


def test_a_day_is_a_day() -> None:
    """A quota holds until the day ends, and says when; the next one begins again."""
    client = Client(name="a", tokens_per_day=100)
    meter = request_ended(request_begun(Meter(), 5, 0.0), 5, 120, 0.0, TODAY)
    problem = refusal(client, meter, 9e9, TODAY)
    assert problem is not None
    assert (problem.kind, problem.retry_after_s) == ("quota_exceeded", 3600)
    assert refusal(client, meter, 9e9, Today("2026-11-23", 86_400.0)) is None


def test_requests_at_once_are_bounded() -> None:
    """As many as the key may have; one that ends makes a place."""
    client, meter = Client(name="a", concurrent_requests=1), request_begun(Meter(), 5, 0.0)
    problem = refusal(client, meter, 0.0, TODAY)
    assert problem is not None
    assert problem.details["policy"] == "concurrent"
    assert refusal(client, request_ended(meter, 5, 0, 0.0, TODAY), 0.0, TODAY) is None


def test_the_headers_have_the_drafts_form() -> None:
    """One list of policies and one of what is left; units but the default one are named."""
    client = Client(
        name="a", requests_per_minute=60, tokens_per_minute=900, tokens_per_day=5000, concurrent_requests=4
    )
    meter = request_begun(Meter(), 100, 10.2)
    headers = rate_headers(limit_statuses(client, meter, 20.0, TODAY))
    assert headers["RateLimit-Policy"] == (
        '"requests";q=60;w=60, "tokens";q=900;w=60;qu="tokens", "day";q=5000;w=86400;qu="tokens", '
        '"concurrent";q=4;qu="concurrent-requests"'
    )
    assert headers["RateLimit"] == (
        '"requests";r=59;t=51, "tokens";r=800;t=0, "day";r=4900;t=3600, "concurrent";r=3'
    )
    assert rate_headers(limit_statuses(Client(), meter, 20.0, TODAY)) == {}


@pytest.mark.parametrize("weight", [0.5, 4.0])
def test_a_key_without_limits_is_never_refused(weight: float) -> None:
    """Whatever it has used."""
    meter = Meter(running=10**6, reserved=10**9, day=TODAY.name, day_tokens=10**12)
    assert refusal(Client(name="a", weight=weight), meter, 0.0, TODAY) is None
