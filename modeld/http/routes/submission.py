# SPDX-License-Identifier: GPL-3.0-only
"""How a route hands its order to the runtime."""

from __future__ import annotations

from modeld.core.request import Order
from modeld.errors import ModelNotFound
from modeld.http.edge import Edge, EdgeRequest
from modeld.http.routes.state import CATALOG_MAX_AGE_S
from modeld.runtime.ticket import Ticket


async def submit(edge: Edge, request: EdgeRequest, order: Order) -> Ticket:
    """Submit; a model that is not known may have been put there a moment ago. The caller closes the ticket.

    Raises: ModeldError for what is known at once.
    """
    try:
        return edge.backend.submit(order, request_id=request.id)
    except ModelNotFound:
        await edge.backend.refresh_catalog(CATALOG_MAX_AGE_S)
        return edge.backend.submit(order, request_id=request.id)
