# SPDX-License-Identifier: GPL-3.0-only
"""Count usage by key. Field names are the JSON keys of `GET /usage`. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from modeld.domain.request import Priority
from modeld.quotas.client import Client, Scope

NOBODY = "-"
"""Stands for the key of requests without one."""


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that were taken, and their tokens; refused ones had no place under the key's limits."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    refused: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of prompts and answers."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            requests=self.requests + other.requests,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            refused=self.refused + other.refused,
        )


class Row(msgspec.Struct, frozen=True):
    """Where counts belong."""

    day: str
    key: str
    model: str


class KeyBody(msgspec.Struct, frozen=True, kw_only=True):
    """A key in force; null is unlimited."""

    id: str
    name: str
    scopes: tuple[Scope, ...]
    models: tuple[str, ...]
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrent_requests: int | None
    tokens_per_day: int | None
    priority: Priority | None
    weight: float

    @classmethod
    def of(cls, client: Client) -> KeyBody:
        """Return what is told of a client."""
        return cls(
            id=client.id,
            name=client.name,
            scopes=tuple(sorted(client.scopes)),
            models=client.models,
            requests_per_minute=client.requests_per_minute,
            tokens_per_minute=client.tokens_per_minute,
            concurrent_requests=client.concurrent_requests,
            tokens_per_day=client.tokens_per_day,
            priority=client.priority,
            weight=client.weight,
        )


class KeysBody(msgspec.Struct, frozen=True):
    """What `GET /keys` tells."""

    keys: tuple[KeyBody, ...]


class LimitBody(msgspec.Struct, frozen=True, kw_only=True):
    """One limit of a key, and what is left of it."""

    policy: str
    """requests, tokens (a minute each), day, concurrent."""
    unit: str
    quota: int
    left: int
    reset_s: float | None
    """When more is left; None: when a request ends."""


class KeyUsage(msgspec.Struct, frozen=True, kw_only=True):
    """The use of one key. The id `-` is for requests without one; a key that is gone has no name."""

    id: str
    name: str
    inside: int
    """Requests that have not ended."""
    today: Counts
    models: Mapping[str, Counts]
    """Of today, by model."""
    total: Counts
    limits: tuple[LimitBody, ...] = ()


class UsageReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `GET /usage` tells: all keys, or to a key that may only infer, its own use."""

    day: str
    """Today, in UTC."""
    kept: bool
    """It survives a restart."""
    keys: tuple[KeyUsage, ...]
