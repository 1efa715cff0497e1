# SPDX-License-Identifier: GPL-3.0-only
"""Metrics of keys: what each used, and what its limits refused."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter

from modeld.core.events import Usage


class KeyMetrics:
    """Counts by the names of keys; there are as many as the file of keys has."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "modeld_key_requests_total", "Requests of a key that were taken", ("key",), registry=registry
        )
        self._tokens = Counter(
            "modeld_key_tokens_total",
            "Tokens of a key's prompts (in) and answers (out)",
            ("key", "direction"),
            registry=registry,
        )
        self._refusals = Counter(
            "modeld_key_refusals_total",
            "Requests of a key that its limits refused, by limit (requests, tokens, day, concurrent)",
            ("key", "limit"),
            registry=registry,
        )

    def count(self, key: str, usage: Usage) -> None:
        """A request of a key ended."""
        self._requests.labels(key).inc()
        self._tokens.labels(key, "in").inc(usage.prompt_tokens)
        self._tokens.labels(key, "out").inc(usage.completion_tokens)

    def count_refusal(self, key: str, limit: str) -> None:
        """A request was refused by a limit of its key."""
        self._refusals.labels(key, limit).inc()
