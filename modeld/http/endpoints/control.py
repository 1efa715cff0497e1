# SPDX-License-Identifier: GPL-3.0-only
"""What operators pull: load, unload, switch and pin models, and the operations that come of it."""

from __future__ import annotations

from collections.abc import Iterable

from quart import Response

from modeld.dialects import native
from modeld.domain.operation import OperationState, OperationStatus
from modeld.http.context import Edge, current_request
from modeld.http.endpoint import Route, refuse_unknown
from modeld.http.limits import CATALOG_MAX_AGE_S
from modeld.http.replies import json_reply
from modeld.http.streaming import read_json


class ControlRoutes:
    """`/models/{id}/load`, `unload`, `switch`, `pin`, and `/operations`. An id may have any character."""

    def __init__(self, edge: Edge) -> None:
        self._backend = edge.backend

    def table(self) -> Iterable[Route]:
        """Return the routes."""
        return (
            ("/models/<path:model>/load", self.load, ["POST"]),
            ("/models/<path:model>/unload", self.unload, ["POST"]),
            ("/models/<path:model>/switch", self.switch, ["POST"]),
            ("/models/<path:model>/pin", self.pin, ["POST"]),
            ("/plan", self.plan, ["POST"]),
            ("/operations", self.operations, ["GET"]),
            ("/operations/<operation>", self.operation, ["GET"]),
            ("/operations/<operation>", self.give_up, ["DELETE"]),
        )

    async def load(self, model: str) -> Response:
        """Begin to load a model."""
        order = native.parse_load(await _body())
        seconds = _wait()
        await self._know(model)
        return await self._begun(
            self._backend.control.load(model, pin=order.pin, keep_alive_s=order.keep_alive_s, key=_key()),
            seconds,
        )

    async def unload(self, model: str) -> Response:
        """Begin to unload a model."""
        force = native.parse_unload(await _body())
        seconds = _wait()
        await self._know(model)
        return await self._begun(self._backend.control.unload(model, force=force, key=_key()), seconds)

    async def switch(self, model: str) -> Response:
        """Begin to switch to a model."""
        native.parse_switch(await _body())
        seconds = _wait()
        await self._know(model)
        return await self._begun(self._backend.control.switch(model, key=_key()), seconds)

    async def pin(self, model: str) -> Response:
        """Pin a model or let it go, and return what `GET /models` tells of it."""
        pinned = native.parse_pin(await _body())
        await self._know(model)
        model_id = self._backend.control.pin(model, pinned=pinned, key=_key()).id
        return json_reply(native.model_body(self._backend.catalog, self._backend.model_states(), model_id))

    async def plan(self) -> Response:
        """Say what would happen if a model were loaded now; nothing does."""
        order = native.parse_plan(await _body())
        if order.model is not None:
            await self._know(order.model)
        return json_reply(self._backend.control.plan(order.model, context=order.context, slots=order.slots))

    async def operations(self) -> Response:
        """List the latest operations."""
        return json_reply(native.operations_body(self._backend.control.operations()))

    async def operation(self, operation: str) -> Response:
        """Tell of an operation, with `?wait=` when it has ended."""
        return json_reply(await self._waited(self._backend.control.operation(operation), _wait()))

    async def give_up(self, operation: str) -> Response:
        """End an operation that is not wanted any more."""
        return json_reply(self._backend.control.give_up(operation, key=_key()))

    async def _know(self, model: str) -> None:
        """See whether a model that is not known was put there a moment ago."""
        if self._backend.catalog.find(model) is None:
            await self._backend.refresh_catalog(CATALOG_MAX_AGE_S)

    async def _begun(self, status: OperationStatus, seconds: float) -> Response:
        """Answer 202 with the place of an operation; 200 if it ended while that was waited for."""
        status = await self._waited(status, seconds)
        ended = seconds > 0 and status.state is not OperationState.RUNNING
        response = json_reply(status, 200 if ended else 202)
        response.headers["Location"] = f"/operations/{status.id}"
        return response

    async def _waited(self, status: OperationStatus, seconds: float) -> OperationStatus:
        if seconds == 0 or status.state is not OperationState.RUNNING:
            return status
        current_request().inbound.work_began()  # Who leaves does not wait any more.
        return await self._backend.control.wait(status.id, seconds)


async def _body() -> bytes:
    return await read_json(current_request(), needed=False)


def _key() -> str:
    """Return the name of the key of who asks; empty where no keys are in force."""
    return current_request().client.name


def _wait() -> float:
    request = current_request()
    refuse_unknown(request, ("wait",))
    return native.parse_wait(request.args.get("wait") if request.query_string else None)
