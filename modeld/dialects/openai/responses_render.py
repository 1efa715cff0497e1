# SPDX-License-Identifier: GPL-3.0-only
"""Render answers of `/v1/responses`, whole or as a stream of events. Pure.

response.created, response.in_progress
for a text      output_item.added, content_part.added, output_text.delta*, output_text.done,
content_part.done, output_item.done
for a call      output_item.added, function_call_arguments.delta*, function_call_arguments.done,
output_item.done
response.completed, or response.incomplete, or response.failed
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from msgspec.structs import replace

from modeld.dialects.common.streaming import json_bytes, json_string
from modeld.dialects.common.tool_calls import call_id
from modeld.dialects.common.tool_reader import CallPiece, Piece, TextPiece, ToolReader
from modeld.dialects.openai.common import effective_end
from modeld.dialects.openai.render import KEEPALIVE
from modeld.dialects.openai.responses import (
    CallItem,
    IncompleteDetails,
    MessageItem,
    OutputTextBody,
    ParsedResponse,
    ResponseError,
    response_body,
    response_usage,
)
from modeld.domain.request_events import Delta, Event, Failed, Finished, FinishReason, Last, Started, Usage
from modeld.errors import Problem

_Status = Literal["completed", "incomplete", "failed"]


class ResponseRenderer:
    """Writes one answer, as a whole or as a stream. Feed it every event once, in order.

    Attributes:
      last: the event that ended the request, once it came.
    """

    keepalive = KEEPALIVE

    def __init__(self, asked: ParsedResponse, *, request_id: str, model: str, created: int) -> None:
        self.last: Last | None = None
        self._asked = asked
        self._request_id = request_id
        self._response = response_body(asked.wire, f"resp_{request_id}", model, created)
        self._reader: ToolReader | None = None
        if asked.tools:
            self._reader = ToolReader(
                asked.tools,
                lambda number: call_id(request_id, 0, number),
                forced=asked.forced,
                one_call=asked.one_call,
            )
        self._items: list[MessageItem | CallItem] = []
        """Those that are complete, and the one that is being written."""
        self._texts: list[str] = []
        """What the open item has so far."""
        self._open = False
        self._begun = False
        self._number = 0
        self._out: list[bytes] = []

    def lines(self, events: Sequence[Event]) -> bytes:
        """Return what these events add to the stream; may be empty."""
        for event in events:
            self._take(event)
        out, self._out = self._out, []
        return b"".join(out)

    def take(self, events: Iterable[Event]) -> bytes | None:
        """Return the whole answer when `Finished` is among these, else None; of a failure, nothing."""
        for event in events:
            self._take(event)
        self._out.clear()
        return json_bytes(self._response) + b"\n" if isinstance(self.last, Finished) else None

    def failure(self, problem: Problem) -> bytes:
        """Return the end of a stream that broke."""
        self._fail(Failed(problem=problem))
        out, self._out = self._out, []
        return b"".join(out)

    def _take(self, event: Event) -> None:
        match event:
            case Started(thought=thought) if self._reader is not None:
                self._reader.begin_in(thought)
            case Delta(text=text) if text:
                self._begin()
                if self._reader is None:
                    self._say(text)
                else:
                    self._read(self._reader.feed(text))
            case Finished() | Failed() if self.last is None:
                seen = effective_end(event)
                if isinstance(seen, Failed):
                    self._fail(seen)
                elif isinstance(seen, Finished):
                    self._finish(seen)
            case _:
                pass

    def _read(self, pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            match piece:
                case TextPiece(text=text):
                    self._say(text)
                case CallPiece(id=identity, name=name, arguments=arguments):
                    self._close()
                    self._add(CallItem(id=f"fc_{identity}", call_id=f"call_{identity}", name=name))
                    self._texts.append(arguments)
                    self._delta("function_call_arguments", arguments)
                    self._close()

    def _read_rest(self) -> None:
        if self._reader is not None:
            self._read(self._reader.end())

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            response = json_bytes(self._response)
            self._tell("response.created", b'"response":%b' % response)
            self._tell("response.in_progress", b'"response":%b' % response)

    def _say(self, text: str) -> None:
        if not (self._open and isinstance(self._items[-1], MessageItem)):
            self._close()
            self._add(MessageItem(id=f"msg_{self._request_id}_{len(self._items)}"))
            part = json_bytes(OutputTextBody(text=""))
            self._tell("response.content_part.added", self._place() + b',"part":%b' % part)
        self._texts.append(text)
        self._delta("output_text", text)

    def _add(self, item: MessageItem | CallItem) -> None:
        self._items.append(item)
        self._texts = []
        self._open = True
        index = len(self._items) - 1
        self._tell("response.output_item.added", b'"output_index":%d,"item":%b' % (index, json_bytes(item)))

    def _delta(self, kind: str, text: str) -> None:
        rest = b',"logprobs":[]' if kind == "output_text" else b""
        self._tell(f"response.{kind}.delta", self._place() + b',"delta":%b%b' % (json_string(text), rest))

    def _close(self, status: Literal["completed", "incomplete"] = "completed") -> None:
        """End the open item, if there is one."""
        if not self._open:
            return
        self._open = False
        text = "".join(self._texts)
        place = self._place()
        match self._items[-1]:
            case MessageItem() as item:
                part = OutputTextBody(text=text)
                done: MessageItem | CallItem = replace(item, status=status, content=[part])
                told = place + b',"text":%b,"logprobs":[]' % json_string(text)
                self._tell("response.output_text.done", told)
                self._tell("response.content_part.done", place + b',"part":%b' % json_bytes(part))
            case CallItem() as item:
                done = replace(item, status=status, arguments=text)
                told = place + b',"arguments":%b,"name":%b' % (json_string(text), json_string(item.name))
                self._tell("response.function_call_arguments.done", told)
        self._items[-1] = done
        index = len(self._items) - 1
        self._tell("response.output_item.done", b'"output_index":%d,"item":%b' % (index, json_bytes(done)))

    def _finish(self, last: Finished) -> None:
        self._begin()
        self._read_rest()
        if not self._items:
            self._say("")
        whole = last.reason is FinishReason.STOP
        self._close("completed" if whole else "incomplete")
        self.last = last
        details = None if whole else IncompleteDetails("max_output_tokens")
        self._end("completed" if whole else "incomplete", last.usage, incomplete_details=details)

    def _fail(self, last: Failed) -> None:
        self._begin()
        self._read_rest()
        self._close("incomplete")
        self.last = last
        error = ResponseError(last.problem.kind, last.problem.message)
        self._end("failed", last.usage, error=error)

    def _end(
        self,
        status: _Status,
        usage: Usage,
        *,
        incomplete_details: IncompleteDetails | None = None,
        error: ResponseError | None = None,
    ) -> None:
        self._response = replace(
            self._response,
            status=status,
            output=self._items,
            usage=response_usage(usage),
            incomplete_details=incomplete_details,
            error=error,
        )
        self._tell(f"response.{status}", b'"response":%b' % json_bytes(self._response))

    def _place(self) -> bytes:
        """Return where the open item is, and within a message which of its parts."""
        item = self._items[-1]
        part = b',"content_index":0' if isinstance(item, MessageItem) else b""
        return b'"item_id":%b,"output_index":%d%b' % (json_string(item.id), len(self._items) - 1, part)

    def _tell(self, kind: str, rest: bytes) -> None:
        name = kind.encode()
        self._out.append(
            b'event: %b\ndata: {"type":"%b","sequence_number":%d,%b}\n\n' % (name, name, self._number, rest)
        )
        self._number += 1
