# SPDX-License-Identifier: GPL-3.0-only
"""Serve what operators use: load, unload, switch and pin models, and the operations that result."""

from __future__ import annotations

from quart import Response

from modeld.dialects import native
from modeld.domain.operation import OperationState, OperationStatus
from modeld.http.context import AppContext, HttpRequest
from modeld.http.endpoint import (
    ADMIN,
    MODEL_IN_PATH,
    READING,
    Body,
    Endpoint,
    Parameter,
    Success,
    refuse_unknown,
)
from modeld.http.limits import CATALOG_MAX_AGE_S
from modeld.http.replies import json_reply
from modeld.http.streaming import read_json
from modeld.scheduler.plan import LoadPlan


async def load(context: AppContext, request: HttpRequest, model: str) -> Response:
    """Begin to load a model."""
    order = native.parse_load(await read_json(request, needed=False))
    seconds = _wait(request)
    await _refresh_for(context, model)
    status = context.backend.control.load(
        model, pin=order.pin, keep_alive_s=order.keep_alive_s, key=request.client.name
    )
    return await _begun(context, request, status, seconds)


async def unload(context: AppContext, request: HttpRequest, model: str) -> Response:
    """Begin to unload a model."""
    force = native.parse_unload(await read_json(request, needed=False))
    seconds = _wait(request)
    await _refresh_for(context, model)
    status = context.backend.control.unload(model, force=force, key=request.client.name)
    return await _begun(context, request, status, seconds)


async def switch(context: AppContext, request: HttpRequest, model: str) -> Response:
    """Begin to switch to a model."""
    native.parse_switch(await read_json(request, needed=False))
    seconds = _wait(request)
    await _refresh_for(context, model)
    status = context.backend.control.switch(model, key=request.client.name)
    return await _begun(context, request, status, seconds)


async def pin(context: AppContext, request: HttpRequest, model: str) -> Response:
    """Pin or unpin a model, and return what `GET /models` says of it."""
    backend = context.backend
    pinned = native.parse_pin(await read_json(request, needed=False))
    await _refresh_for(context, model)
    model_id = backend.control.pin(model, pinned=pinned, key=request.client.name).id
    return json_reply(native.model_body(backend.catalog, backend.model_states(), model_id))


async def plan(context: AppContext, request: HttpRequest) -> Response:
    """Say what would happen if a model were loaded now, without loading it."""
    order = native.parse_plan(await read_json(request, needed=False))
    if order.model is not None:
        await _refresh_for(context, order.model)
    return json_reply(context.backend.control.plan(order.model, context=order.context, slots=order.slots))


def list_operations(context: AppContext, _request: HttpRequest) -> Response:
    """List the latest operations."""
    return json_reply(native.operations_body(context.backend.control.operations()))


async def get_operation(context: AppContext, request: HttpRequest, operation: str) -> Response:
    """Return an operation; with `?wait=`, once it has ended."""
    status = context.backend.control.operation(operation)
    return json_reply(await _waited(context, request, status, _wait(request)))


def cancel_operation(context: AppContext, request: HttpRequest, operation: str) -> Response:
    """End an operation that is no longer wanted."""
    return json_reply(context.backend.control.cancel(operation, key=request.client.name))


async def _refresh_for(context: AppContext, model: str) -> None:
    """Look for new files if a model is not known."""
    if context.backend.catalog.find(model) is None:
        await context.backend.refresh_catalog(CATALOG_MAX_AGE_S)


async def _begun(
    context: AppContext, request: HttpRequest, status: OperationStatus, seconds: float
) -> Response:
    """Answer 202 with the location of an operation; 200 if it ended within the wait."""
    status = await _waited(context, request, status, seconds)
    ended = seconds > 0 and status.state is not OperationState.RUNNING
    response = json_reply(status, 200 if ended else 202)
    response.headers["Location"] = f"/operations/{status.id}"
    return response


async def _waited(
    context: AppContext, request: HttpRequest, status: OperationStatus, seconds: float
) -> OperationStatus:
    if seconds == 0 or status.state is not OperationState.RUNNING:
        return status
    request.request_stream.cancel_on_disconnect()  # A client that leaves ends the wait.
    return await context.backend.control.wait(status.id, seconds)


def _wait(request: HttpRequest) -> float:
    refuse_unknown(request, ("wait",))
    return native.parse_wait(request.args.get("wait") if request.query_string else None)


_OPERATION = Parameter(name="operation", place="path", meaning="Id of the operation", example="5f1d2b9a0c3e")
_WAIT = Parameter(
    name="wait",
    meaning="Answer when it has ended, or after this long: `30s`, or seconds; up to an hour",
)
_BODY = READING | {415: "A body was sent, and `Content-Type` is not application/json"}
_CHANGING = _BODY | {
    429: "Too many operations run",
    503: "The daemon is shutting down, or the model failed and is tried again later",
}
_LOADING = _CHANGING | {507: "The model does not fit in the memory budget"}
_OPERATION_BEGUN = (
    Success(
        type=OperationStatus,
        status=202,
        meaning="The operation has begun, or was done at once",
        headers={"Location": "Path of the operation"},
    ),
    Success(type=OperationStatus, meaning="It ended within the wait"),
)
_NO_OPERATION = {404: "There is no such operation, or it ended long ago"}

ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/models/<path:model>/load",
        view=load,
        scopes=ADMIN,
        summary="Load a model",
        description="Shares the load with requests that wait for the model. Done when it is ready.",
        parameters=(MODEL_IN_PATH, _WAIT),
        body=Body(type=native.LoadBody, examples={"plain": {"keep_alive": "10m"}}, required=False),
        answers=_OPERATION_BEGUN,
        refusals=_LOADING,
    ),
    Endpoint(
        method="POST",
        path="/models/<path:model>/unload",
        view=unload,
        scopes=ADMIN,
        summary="Unload a model",
        description=(
            "It takes no new requests and goes when it is idle; requests that wait are kept, and load it "
            "again. With `force` its streams end with `finish_reason: shutdown`, and those that wait are "
            "refused."
        ),
        parameters=(MODEL_IN_PATH, _WAIT),
        body=Body(type=native.UnloadBody, examples={"plain": {"force": False}}, required=False),
        answers=_OPERATION_BEGUN,
        refusals=_CHANGING | {409: "The model is pinned"},
    ),
    Endpoint(
        method="POST",
        path="/models/<path:model>/switch",
        view=switch,
        scopes=ADMIN,
        summary="Load a model, and unload all others that are not pinned",
        description="The others go once it is ready, as far as it does not need their memory before.",
        parameters=(MODEL_IN_PATH, _WAIT),
        body=Body(type=native.SwitchBody, examples={"plain": {}}, required=False),
        answers=_OPERATION_BEGUN,
        refusals=_LOADING,
    ),
    Endpoint(
        method="POST",
        path="/models/<path:model>/pin",
        view=pin,
        scopes=ADMIN,
        summary="Pin or unpin a model",
        description="A pinned model is not evicted for others. Holds until the daemon ends.",
        parameters=(MODEL_IN_PATH,),
        body=Body(type=native.PinBody, examples={"plain": {"pinned": True}}, required=False),
        answers=(Success(type=native.ModelBody, meaning="The model"),),
        refusals=_BODY,
    ),
    Endpoint(
        method="POST",
        path="/plan",
        view=plan,
        scopes=ADMIN,
        summary="What would happen if a model were loaded now",
        description=(
            "Whether it fits, which models are evicted for it and why, and how long it takes: the answer of "
            "the scheduler's own rules, applied to a copy of its state. Nothing is loaded."
        ),
        body=Body(
            type=native.PlanBody,
            examples={"plain": {"model": "tinyllama-q4", "context": 4096}},
            required=False,
        ),
        answers=(Success(type=LoadPlan, meaning="The plan"),),
        refusals=_BODY,
    ),
    Endpoint(
        method="GET",
        path="/operations",
        view=list_operations,
        scopes=ADMIN,
        summary="List the latest operations",
        answers=(Success(type=native.OperationsBody, meaning="The operations"),),
    ),
    Endpoint(
        method="GET",
        path="/operations/<operation>",
        view=get_operation,
        scopes=ADMIN,
        summary="Get an operation",
        parameters=(_OPERATION, _WAIT),
        answers=(Success(type=OperationStatus, meaning="The operation"),),
        refusals=_NO_OPERATION | {400: "`wait` is no duration"},
    ),
    Endpoint(
        method="DELETE",
        path="/operations/<operation>",
        view=cancel_operation,
        scopes=ADMIN,
        summary="Cancel an operation; what others wait for goes on",
        parameters=(_OPERATION,),
        answers=(Success(type=OperationStatus, meaning="The operation"),),
        refusals=_NO_OPERATION,
    ),
)
