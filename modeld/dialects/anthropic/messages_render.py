# SPDX-License-Identifier: GPL-3.0-only
"""Render a request's events as Anthropic's message, whole or streamed. Pure.

    message_start (content_block_start content_block_delta* content_block_stop)* message_delta message_stop

A `ping` follows the first `content_block_start`, and comes again in silent spans. A stream that breaks
ends with `error`.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from modeld.dialects.anthropic.common import (
    AnthropicAnswer,
    AnthropicCount,
    AnthropicText,
    AnthropicToolUse,
    AnthropicUsage,
    error_of,
)
from modeld.dialects.anthropic.messages import ParsedMessages
from modeld.dialects.common.streaming import BaseResponseBuilder, StreamRenderer, json_bytes, json_string
from modeld.dialects.common.tool_calls import call_id
from modeld.dialects.common.tool_reader import CallPiece, Piece, TextPiece, ToolReader, joined
from modeld.domain.request_events import (
    Delta,
    Event,
    Failed,
    Finished,
    FinishReason,
    Last,
    Started,
    Templated,
    Usage,
)
from modeld.errors import CUT_SHORT, DeadlineExceeded, Draining, EngineFailed, Problem

PING = b'event: ping\ndata: {"type":"ping"}\n\n'


class MessageRenderer(StreamRenderer):
    """Writes the answer to `/v1/messages`. Feed it every event once, in order.

    Attributes:
      last: the event that ended the request, once it came.
    """

    last: Last | None

    keepalive = PING

    def __init__(self, asked: ParsedMessages, *, model: str, request_id: str) -> None:
        super().__init__()
        self._asked = asked
        self._model = model
        self._request_id = request_id
        self._reader: ToolReader | None = None
        if asked.request.tools:
            self._reader = ToolReader(
                asked.request.tools, self._id_of_call, forced=asked.forced, one_call=asked.one_call
            )
        self._block = -1
        self._in_text = False
        self._open = False
        self._begun = False
        self._usage = Usage()
        self._gathered: list[Piece] = []

    def lines(self, events: Sequence[Event]) -> bytes:
        """Return the events of the stream for these; may be empty."""
        out: list[bytes] = []
        for event in events:
            match event:
                case Started(usage=usage, thought=thought):
                    self._usage = usage
                    self._begin_in(thought)
                case Delta(text=text):
                    self._begin(out)
                    for piece in self._pieces(text):
                        self._write(piece, out)
                case Finished():
                    out.append(self._end(event))
                case Failed(problem=problem):
                    out.append(self._fail(problem))
                case _:
                    pass
        return b"".join(out)

    def _broken(self, problem: Problem) -> bytes:
        _, error = error_of(problem, self._request_id)
        return b"event: error\ndata: %b\n\n" % json_bytes(error)

    def _id_of_call(self, number: int) -> str:
        return f"toolu_{call_id(self._request_id, 0, number)}"

    def _begin_in(self, thought: str) -> None:
        if self._reader is not None:
            self._reader.begin_in(thought)

    def _pieces(self, text: str) -> list[Piece]:
        if self._reader is not None:
            return self._reader.feed(text)
        return [TextPiece(text)] if text else []

    def _rest(self) -> list[Piece]:
        return [] if self._reader is None else self._reader.end()

    # as a stream

    def _end(self, last: Finished) -> bytes:
        problem = _cut_short(last)
        if problem is not None:
            return self._fail(problem)
        out: list[bytes] = []
        self._usage = last.usage
        self._begin(out)
        self._write_rest(out)
        self._close(out)
        out.append(self._ending(last))
        self.last = last
        return b"".join(out)

    def _fail(self, problem: Problem) -> bytes:
        out: list[bytes] = []
        self._write_rest(out)
        return b"".join(out) + self.failure(problem)

    def _write_rest(self, out: list[bytes]) -> None:
        for piece in self._rest():
            self._write(piece, out)

    def _begin(self, out: list[bytes]) -> None:
        if self._begun:
            return
        self._begun = True
        start = json_bytes(self._answer(None))
        out.append(b'event: message_start\ndata: {"type":"message_start","message":%b}\n\n' % start)

    def _write(self, piece: Piece, out: list[bytes]) -> None:
        match piece:
            case TextPiece(text=text):
                if not (self._open and self._in_text):
                    self._start(b'{"type":"text","text":""}', out)
                    self._in_text = True
                self._delta(b'{"type":"text_delta","text":%b}' % json_string(text), out)
            case CallPiece(id=call, name=name, arguments=arguments):
                names = json_string(call), json_string(name)
                self._start(b'{"type":"tool_use","id":%b,"name":%b,"input":{}}' % names, out)
                self._in_text = False
                self._delta(b'{"type":"input_json_delta","partial_json":%b}' % json_string(arguments), out)

    def _start(self, block: bytes, out: list[bytes]) -> None:
        self._close(out)
        self._block += 1
        self._open = True
        head = b'{"type":"content_block_start","index":%d' % self._block
        out.append(b'event: content_block_start\ndata: %b,"content_block":%b}\n\n' % (head, block))
        if self._block == 0:
            out.append(PING)

    def _delta(self, delta: bytes, out: list[bytes]) -> None:
        out.append(
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":%b}\n\n'
            % (self._block, delta)
        )

    def _close(self, out: list[bytes]) -> None:
        if self._open:
            self._open = False
            out.append(
                b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n' % self._block
            )

    def _ending(self, last: Finished) -> bytes:
        reason, sequence = self._reason(last)
        delta = json_bytes({"stop_reason": reason, "stop_sequence": sequence})
        usage = json_bytes(self._counts())
        return (
            b'event: message_delta\ndata: {"type":"message_delta","delta":%b,"usage":%b}\n\n'
            b'event: message_stop\ndata: {"type":"message_stop"}\n\n' % (delta, usage)
        )

    # as a whole

    def _gather(self, event: Event) -> None:
        match event:
            case Started(thought=thought):
                self._begin_in(thought)
            case Delta(text=text):
                self._gathered += self._pieces(text)
            case _:
                pass

    def _whole(self, last: Finished) -> bytes | None:
        problem = _cut_short(last)
        if problem is not None:
            self.last = Failed(problem=problem, usage=last.usage, stats=last.stats)
            return None
        self._gathered += self._rest()
        self._usage = last.usage
        return json_bytes(self._answer(last))

    def _answer(self, last: Finished | None) -> AnthropicAnswer:
        reason, sequence = (None, None) if last is None else self._reason(last)
        return AnthropicAnswer(
            id=f"msg_{self._request_id}",
            model=self._model,
            content=[_block(piece) for piece in joined(self._gathered)],
            stop_reason=reason,
            stop_sequence=sequence,
            usage=self._counts(),
        )

    def _reason(self, last: Finished) -> tuple[str, str | None]:
        """Return why the answer ended, and the stop sequence that ended it."""
        if last.reason is FinishReason.LENGTH:
            whole = last.usage.completion_tokens >= self._asked.request.max_tokens
            return ("max_tokens" if whole else "model_context_window_exceeded"), None
        if self._reader is not None and self._reader.calls:
            return "tool_use", None  # Also behind a stop sequence: clients run calls for this reason alone.
        return ("stop_sequence", last.stop) if last.stop else ("end_turn", None)

    def _counts(self) -> AnthropicUsage:
        usage = self._usage
        return AnthropicUsage(
            input_tokens=usage.prompt_tokens - usage.cached_tokens,
            cache_read_input_tokens=usage.cached_tokens,
            output_tokens=usage.completion_tokens,
        )


class CountRenderer(BaseResponseBuilder):
    """Writes the answer to `/v1/messages/count_tokens`.

    Attributes:
      last: the event that ended the request, once it came.
    """

    def __init__(self) -> None:
        super().__init__()
        self._count = 0

    def _gather(self, event: Event) -> None:
        if isinstance(event, Templated):
            self._count = event.tokens or 0

    def _whole(self, _last: Finished) -> bytes:
        return json_bytes(AnthropicCount(self._count))


def _block(piece: Piece) -> AnthropicText | AnthropicToolUse:
    if isinstance(piece, TextPiece):
        return AnthropicText(piece.text)
    return AnthropicToolUse(piece.id, piece.name, msgspec.Raw(piece.arguments.encode()))


def _cut_short(last: Finished) -> Problem | None:
    """Return what ended a generation before model or request did; Anthropic has no reason for that."""
    match last.reason:
        case FinishReason.STOP | FinishReason.LENGTH:
            return None
        case FinishReason.TIMEOUT:
            return DeadlineExceeded("the time for this answer was over before it was complete").as_problem()
        case FinishReason.SHUTDOWN:
            return Draining(CUT_SHORT).as_problem()
        case _:
            return EngineFailed(f"this answer ended before it was complete ({last.reason})").as_problem()
