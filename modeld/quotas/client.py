# SPDX-License-Identifier: GPL-3.0-only
"""A client, and what its key allows. Pure; keys themselves are not here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from fnmatch import fnmatchcase

import msgspec

from modeld.domain.model import Catalog, ModelSpec
from modeld.domain.request import Priority

KEY_ID = r"[a-f][0-9a-f]{11}"
KEY = re.compile(rf"modeld_(?P<id>{KEY_ID})_(?P<secret>[0-9a-f]{{64}})")
"""How a key is written: its public id, then 256 random bits. The prefix lets scanners of secrets find it.
An id that begins with a letter is a number to nobody."""


def redacted(text: str) -> str:
    """Return `text` with the secret part of every key in it taken out; what is logged passes through here."""
    return KEY.sub(r"modeld_\g<id>_***", text) if "modeld_" in text else text


class Scope(StrEnum):
    """What a key opens."""

    INFER = "infer"
    """Ask models, and see which there are."""
    ADMIN = "admin"
    """Load, unload, switch, pin, plan; operations, events, keys; also what `metrics` opens."""
    METRICS = "metrics"
    """Read `/metrics`, `/status` and everybody's usage."""


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """The holder of a key, or (without an id) everybody where no keys are in force. None is unlimited."""

    id: str = ""
    """The public part of the key."""
    name: str = ""
    scopes: frozenset[Scope] = frozenset(Scope)
    models: tuple[str, ...] = ()
    """Names of the models it may use, `*` and `?` stand for anything; empty: all. It sees no others."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    tokens_per_day: int | None = None
    """Of the calendar day in UTC."""
    priority: Priority | None = None
    """The highest class its requests may have."""
    weight: float = 1.0
    """Its share of a queue alongside others, see `scheduler.fair_queue`."""

    def may(self, scopes: Iterable[Scope]) -> bool:
        """Whether it has one of these scopes."""
        return not self.scopes.isdisjoint(scopes)

    def may_use(self, spec: ModelSpec) -> bool:
        """Whether this model is there for it, by any of its names."""
        if not self.models:
            return True
        names = (spec.id, *spec.aliases)
        return any(fnmatchcase(name, pattern) for pattern in self.models for name in names)

    def capped(self, priority: Priority) -> Priority:
        """Return the class a request gets that asks for this one."""
        order = list(Priority)
        return priority if self.priority is None else max(priority, self.priority, key=order.index)


EVERYBODY = Client()
"""Who comes where no keys are in force: unlimited, and one and the same to the scheduler."""


def visible_models(catalog: Catalog, client: Client) -> Catalog:
    """Return the catalogue as a client sees it: what it may not use is not there."""
    if not client.models:
        return catalog
    models = {key: spec for key, spec in catalog.models.items() if client.may_use(spec)}
    default = catalog.default
    if default not in models:
        default = next((key for key, spec in models.items() if spec.error is None), None)
    names = {name: key for name, key in catalog.names.items() if key in models}
    return Catalog(models=models, default=default, names=names)
