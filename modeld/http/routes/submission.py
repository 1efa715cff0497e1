# SPDX-License-Identifier: GPL-3.0-only
"""How a route hands its order to the runtime: on the terms of who sends it, and within his limits."""

from __future__ import annotations

from msgspec.structs import replace

from modeld.core.client import Client, Scope, visible
from modeld.core.cost import estimated_tokens
from modeld.core.naming import named
from modeld.core.request import Order, Stake
from modeld.errors import ModelNotFound
from modeld.http.edge import Edge, EdgeRequest
from modeld.http.limits import CATALOG_MAX_AGE_S
from modeld.runtime.ticket import Ticket


async def submit(edge: Edge, request: EdgeRequest, order: Order) -> Ticket:
    """Submit; a model that is not known may have been put there a moment ago.

    With the request ends its ticket, whatever the caller does before.

    Raises: ModeldError for what is known at once.
    """
    try:
        return _submitted(edge, request, order)
    except ModelNotFound:
        await edge.backend.refresh_catalog(CATALOG_MAX_AGE_S)
        return _submitted(edge, request, order)


def _submitted(edge: Edge, request: EdgeRequest, order: Order) -> Ticket:
    """Ask the limits, submit and count in one go: nobody comes between."""
    client = request.client
    order = on_terms(edge, client, order)
    edge.accounts.check(client)
    ticket = edge.backend.submit(order, request_id=request.id)
    request.cleanup.callback(ticket.close)
    visit = edge.accounts.begin(client, order.stake.tokens, ticket.model.id)
    request.cleanup.callback(lambda: visit.end(ticket.usage))
    return ticket


def on_terms(edge: Edge, client: Client, order: Order) -> Order:
    """Return the order as this client may give it.

    Raises: ModelNotFound for a model that is there, but not for this client: the same as for one that is not.
    """
    if not client.id:
        return order
    catalog = visible(edge.backend.catalog, client)
    spec = named(catalog, order.model)
    context = 0 if spec.facts is None else spec.facts.context_length
    share = spec.options.ctx // spec.options.slots
    tokens = 0 if order.aside else estimated_tokens(order.request, context, share)
    return replace(
        order,
        model=spec.id,
        priority=client.capped(order.priority),
        stake=Stake(
            owner=client.id,
            name=client.name,
            may_unload=client.may((Scope.ADMIN,)),
            weight=client.weight,
            tokens=tokens,
        ),
    )
