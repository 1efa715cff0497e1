# SPDX-License-Identifier: GPL-3.0-only
"""How a route hands its order to the runtime: on the terms of who sends it."""

from __future__ import annotations

from msgspec.structs import replace

from modeld.core.client import Client, visible
from modeld.core.cost import estimated_tokens
from modeld.core.request import Order, Stake
from modeld.errors import ModelNotFound
from modeld.http.edge import Edge, EdgeRequest
from modeld.http.routes.state import CATALOG_MAX_AGE_S
from modeld.runtime.telling import no_such_model
from modeld.runtime.ticket import Ticket


async def submit(edge: Edge, request: EdgeRequest, order: Order) -> Ticket:
    """Submit; a model that is not known may have been put there a moment ago. The caller closes the ticket.

    Raises: ModeldError for what is known at once.
    """
    client = request.client
    try:
        return edge.backend.submit(on_terms(edge, client, order), request_id=request.id)
    except ModelNotFound:
        await edge.backend.refresh_catalog(CATALOG_MAX_AGE_S)
        return edge.backend.submit(on_terms(edge, client, order), request_id=request.id)


def on_terms(edge: Edge, client: Client, order: Order) -> Order:
    """Return the order as this client may give it.

    Raises: ModelNotFound for a model that is there, but not for this client: the same as for one that is not.
    """
    if client.models:
        catalog = visible(edge.backend.catalog, client)
        spec = catalog.find(order.model)
        if spec is None:
            raise ModelNotFound(no_such_model(catalog, order.model))
        order = replace(order, model=spec.id)
    if not client.id:
        return order
    spec = edge.backend.catalog.find(order.model)
    tokens = estimated_tokens(order.request, 0 if spec is None else spec.facts.context_length)
    return replace(
        order,
        priority=client.capped(order.priority),
        stake=Stake(owner=client.id, weight=client.weight, tokens=tokens),
    )
