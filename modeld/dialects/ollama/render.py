# SPDX-License-Identifier: GPL-3.0-only
"""Render a request's events as Ollama's lines, and errors as its bodies. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from msgspec import UNSET, UnsetType

from modeld.dialects.common.streaming import StreamRenderer, json_bytes, json_string, line, rounded, text_of
from modeld.dialects.common.tool_calls import call_id
from modeld.dialects.common.tool_reader import ToolReader
from modeld.dialects.ollama.parse import ParsedOllama
from modeld.dialects.ollama.tools import OllamaAnswerCall, Part, part_of
from modeld.domain.model import ModelSpec
from modeld.domain.request_events import (
    Delta,
    Event,
    Failed,
    Finished,
    Last,
    Logprobs,
    Started,
    Stats,
    TokenLogprob,
    Usage,
)
from modeld.errors import ERRORS, ModelNotFound, Problem

NS = 1_000_000_000


class OllamaTokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """A token, and the natural logarithm of its probability."""

    token: str
    logprob: float
    bytes: list[int]


class OllamaLogprob(OllamaTokenLogprob, frozen=True, kw_only=True):
    """The chosen token of one place, and the most probable ones there."""

    top_logprobs: list[OllamaTokenLogprob] | UnsetType = UNSET


class OllamaAnswerMessage(msgspec.Struct, frozen=True, kw_only=True):
    """What the model says, or a part of it."""

    role: str = "assistant"
    content: str = ""
    tool_calls: list[OllamaAnswerCall] | UnsetType = UNSET


class OllamaAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a stream, or with `stream: false` the whole answer. Durations in ns, from arrival.

    `response` is there for /api/generate, `message` for /api/chat. `num_ctx` and `notice` are modeld's own.
    """

    model: str
    created_at: str
    response: str | UnsetType = UNSET
    message: OllamaAnswerMessage | UnsetType = UNSET
    logprobs: list[OllamaLogprob] | UnsetType = UNSET
    done: bool
    done_reason: str | UnsetType = UNSET
    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    prompt_eval_duration: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    eval_duration: int | UnsetType = UNSET
    num_ctx: int | UnsetType = UNSET
    notice: str | UnsetType = UNSET


class OllamaError(msgspec.Struct, frozen=True):
    """Every refusal, and the last line of a stream that broke."""

    error: str


class OllamaTextRenderer(StreamRenderer):
    """Writes the answer to `/api/generate` or `/api/chat`. Feed it every event once, in order.

    Args:
      asked: what is answered.
      spec: the model that answers; its name is written as the client wrote it.
      created_at: when the request came, RFC 3339.
      request_id: of which ids of calls are made.

    Attributes:
      last: the event that ended the request, once it came.
    """

    last: Last | None

    def __init__(self, asked: ParsedOllama, spec: ModelSpec, *, created_at: str, request_id: str) -> None:
        super().__init__()
        self._asked = asked
        self._spec = spec
        self._created_at = created_at
        self._texts: list[str] = []
        self._calls: list[OllamaAnswerCall] = []
        self._logprobs: list[OllamaLogprob] = []
        tools = () if asked.request is None else asked.request.tools
        self._reader: ToolReader | None = None
        if tools:
            self._reader = ToolReader(tools, lambda number: call_id(request_id, 0, number))
        head = b'{"model":%b,"created_at":%b,' % (json_string(self._name), json_string(created_at))
        if asked.chat:
            self._before, self._behind = (
                head + b'"message":{"role":"assistant","content":',
                b'},"done":false}\n',
            )
        else:
            self._before, self._behind = head + b'"response":', b',"done":false}\n'

    @property
    def keepalive(self) -> bytes:
        """A line without text. Clients parse every line, so a blank one would break them."""
        return self._before + b'""' + self._behind

    def lines(self, events: Sequence[Event]) -> bytes:
        """Return the lines of these events, ready for one write; may be empty."""
        out: list[bytes] = []
        for event in events:
            match event:
                case Started(thought=thought):
                    self._begin_in(thought)
                case Delta(text=text, logprobs=()):
                    out += [self._line(part) for part in self._parts(text)]
                case Delta(text=text, logprobs=logprobs):
                    *others, final = self._parts(text) or [""]
                    out += [self._line(part) for part in others]
                    out.append(self._line(final, [_logprob(entry) for entry in logprobs]))
                case Finished():
                    self.last = event
                    out += [self._line(part) for part in self._rest()]
                    out.append(line(self._answer("", [], [], event)))
                case Failed():
                    out += [self._line(part) for part in self._rest()]
                    out.append(self.failure(event.problem))
                case _:
                    pass
        return b"".join(out)

    def _broken(self, problem: Problem) -> bytes:
        return line(OllamaError(problem.message))

    @property
    def _name(self) -> str:
        return self._asked.terms.model or self._spec.id

    def _begin_in(self, thought: str) -> None:
        if self._reader is not None:
            self._reader.begin_in(thought)

    def _parts(self, text: str) -> list[Part]:
        if self._reader is not None:
            return [part_of(piece) for piece in self._reader.feed(text)]
        return [text] if text else []

    def _rest(self) -> list[Part]:
        return [] if self._reader is None else [part_of(piece) for piece in self._reader.end()]

    def _gather(self, event: Event) -> None:
        match event:
            case Started(thought=thought):
                self._begin_in(thought)
            case Delta(text=text, logprobs=logprobs):
                self._keep(self._parts(text))
                self._logprobs += [_logprob(entry) for entry in logprobs]
            case _:
                pass

    def _whole(self, last: Finished) -> bytes:
        self._keep(self._rest())
        return json_bytes(self._answer("".join(self._texts), self._calls, self._logprobs, last))

    def _keep(self, parts: Iterable[Part]) -> None:
        for part in parts:
            if isinstance(part, str):
                self._texts.append(part)
            else:
                self._calls.append(part)

    def _line(self, part: Part, logprobs: Sequence[OllamaLogprob] = ()) -> bytes:
        if isinstance(part, str) and not logprobs:
            return self._before + json_string(part) + self._behind
        text, calls = (part, []) if isinstance(part, str) else ("", [part])
        return line(self._answer(text, calls, list(logprobs)))

    def _answer(
        self,
        text: str,
        calls: list[OllamaAnswerCall],
        logprobs: list[OllamaLogprob],
        last: Finished | None = None,
    ) -> OllamaAnswer:
        chat = self._asked.chat
        answer = OllamaAnswer(
            model=self._name,
            created_at=self._created_at,
            response=UNSET if chat else text,
            message=OllamaAnswerMessage(content=text, tool_calls=calls or UNSET) if chat else UNSET,
            logprobs=logprobs or UNSET,
            done=last is not None,
        )
        if last is None:
            return answer
        context = self._asked.terms.context(self._spec)
        return msgspec.structs.replace(
            answer,
            **_measures(last.usage, last.stats),
            done_reason=self._reason(last),
            num_ctx=UNSET if context is None else context,
            notice=self._asked.terms.notice(self._spec) or UNSET,
        )

    def _reason(self, last: Finished) -> str:
        if self._asked.request is not None:
            return last.reason.value
        return "unload" if self._asked.unloads else "load"


def _measures(usage: Usage, stats: Stats) -> dict[str, int]:
    """Return counts and durations."""
    return {
        "total_duration": round(stats.duration_s * NS),
        "load_duration": round(stats.load_s * NS),
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": round(stats.prompt_s * NS),
        "eval_count": usage.completion_tokens,
        "eval_duration": round(stats.text_s * NS),
    }


def error_answer(problem: Problem, _request_id: str) -> tuple[int, bytes]:
    """Return status and body of a refusal."""
    message = problem.message
    if ERRORS.get(problem.kind) is ModelNotFound:
        message = message.replace("GET /models", "GET /api/tags")
    return problem.status, json_bytes(OllamaError(message))


def _logprob(entry: Logprobs) -> OllamaLogprob:
    top = [_token(candidate) for candidate in entry.top]
    chosen = _token(entry.chosen)
    return OllamaLogprob(
        token=chosen.token, logprob=chosen.logprob, bytes=chosen.bytes, top_logprobs=top or UNSET
    )


def _token(token: TokenLogprob) -> OllamaTokenLogprob:
    return OllamaTokenLogprob(
        token=text_of(token),
        logprob=rounded(token.logprob),
        bytes=list(token.text),
    )
