# SPDX-License-Identifier: GPL-3.0-only
"""One embedding request: its inputs, its vectors, and what goes into the next decode. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from modeld.domain.request import EmbedRequest, Pooling
from modeld.domain.request_events import Usage
from modeld.engine.llama.kv.layout import Layout
from modeld.engine.llama.native.vocab import TokenArray, Vocab
from modeld.engine.protocol import VectorOutput
from modeld.errors import InvalidRequest, PromptTooLong

Rows = npt.NDArray[np.float32]
"""One vector a token."""

_NOTHING = np.zeros(0, dtype=np.int32)


class EmbedJob:
    """State of one request.

    Attributes:
      inputs: the tokens of each.
      slot: the sequence that is its own; -1 while it waits.
      cells: KV cells it needs at most.
      alone: decode one input at a time, since there are no cells for more.
      index: the first input that is not decoded.
      kept: tokens of that one that are.
      told: vectors that were given out.
    """

    def __init__(self, request_id: int, request: EmbedRequest, inputs: list[TokenArray]) -> None:
        self.id = request_id
        self.inputs = inputs
        self.pooling = request.pooling
        self.normalize = request.normalize
        self.prompt = _NOTHING
        """It shares no beginning with anybody."""
        self.prompt_length = sum(map(len, inputs))
        self.cached = 0
        self.cells = 0
        self.alone = False
        self.slot = -1
        self.index = 0
        self.kept = 0
        self.told = 0
        self._found: list[npt.NDArray[np.float64]] = []
        self._sum: npt.NDArray[np.float64] | None = None

    @property
    def ended(self) -> bool:
        """Whether all inputs are decoded."""
        return self.index == len(self.inputs)

    @property
    def lends(self) -> int:
        """Tokens that others may begin with: none."""
        return 0

    @property
    def usage(self) -> Usage:
        """Its counts."""
        return Usage(prompt_tokens=self.prompt_length)

    def reserve(self, rows: int, layout: Layout, cells: int) -> None:
        """Choose how many cells it needs: those of its longest input, and of a decode alongside it.

        In a split cache others have theirs. `cells`: those of one cache of all.
        """
        longest = max(map(len, self.inputs))
        if not layout.unified and longest <= layout.share:
            self.alone, self.cells = False, longest
            return
        self.alone = longest + rows > cells
        self.cells = longest if self.alone else min(self.prompt_length, longest + rows)

    def begin(self, sequence: int, _cached: int = 0) -> None:
        """Take note of its slot."""
        self.slot = sequence

    def restart(self) -> None:
        """Forget what was decoded of the input under way."""
        self.kept = 0
        self._sum = None

    def take(self, part: Part, rows: Rows) -> bool:
        """Take in the vectors of a part's tokens, parts in order. Return whether all are numbers."""
        match self.pooling:
            case Pooling.LAST:
                pooled = rows[-1].astype(np.float64)
            case Pooling.CLS:
                pooled = rows[0].astype(np.float64) if self._sum is None else self._sum
            case _:
                pooled = rows.sum(axis=0, dtype=np.float64)
                if self._sum is not None:
                    pooled += self._sum
        length = len(self.inputs[part.index])
        if part.end < length:
            self._sum, self.kept = pooled, part.end
            return True
        self._sum = None
        return self.found(pooled / length if self.pooling in (None, Pooling.MEAN) else pooled)

    def found(self, vector: npt.NDArray[np.float64]) -> bool:
        """Take in the vector of the next input; return whether it is all numbers."""
        self._found.append(vector)
        self.index += 1
        self.kept = 0
        return bool(np.isfinite(vector).all())

    def tell(self) -> VectorOutput:
        """Return the vectors that were found since the last time (at least one)."""
        first, self.told = self.told, self.index
        vectors = tuple(map(self._bytes, self._found))
        self._found = []
        return VectorOutput(self.id, first, vectors)

    def _bytes(self, vector: npt.NDArray[np.float64]) -> bytes:
        norm = float(np.linalg.norm(vector)) if self.normalize else 1.0
        return (vector / (norm or 1.0)).astype("<f4").tobytes()


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens `begin` to `end` of input `index`, to be decoded into a sequence."""

    job: EmbedJob
    index: int
    begin: int
    end: int
    sequence: int


def pack(jobs: Iterable[EmbedJob], rows: int, spare: Sequence[int]) -> list[Part]:
    """Choose the parts of the next decode, of `rows` tokens at most.

    The first input of a job goes into the job's own sequence, and may go in pieces. Those behind it go into
    `spare` ones, whole: they are gone from there before anybody else can need a sequence.
    """
    parts: list[Part] = []
    free = list(spare)
    for job in jobs:
        sequence, begin = job.slot, job.kept
        for index in range(job.index, len(job.inputs)):
            rest = len(job.inputs[index]) - begin
            if index > job.index:
                if job.alone or rest > rows or not free:
                    break
                sequence = free.pop()
            if rows <= 0:
                return parts
            end = begin + min(rest, rows)
            parts.append(Part(job, index, begin, end, sequence))
            rows -= end - begin
            if end < len(job.inputs[index]):
                break
            begin = 0
    return parts


def pack_whole(jobs: Iterable[EmbedJob], rows: int, sequences: int) -> list[Part]:
    """Choose the parts of the next decode of a model that reads an input as a whole: jobs take turns."""
    parts: list[Part] = []
    following = [(job, job.index) for job in jobs]
    while following and len(parts) < sequences:
        job, index = following.pop(0)
        length = len(job.inputs[index])
        if length > rows:
            continue
        parts.append(Part(job, index, 0, length, len(parts)))
        rows -= length
        if index + 1 < len(job.inputs):
            following.append((job, index + 1))
    return parts


def prepare_embedding(
    request_id: int, request: EmbedRequest, vocab: Vocab, *, context: int, why: str
) -> EmbedJob:
    """Turn a request into a job that only needs a slot.

    Texts get the tokens that the model begins and ends a text with; texts of control tokens are text.
    With `truncate` one that is too long is cut: of a very long one a beginning is tokenised that has about
    as many tokens as there is room for.

    Raises: InvalidRequest, PromptTooLong with the numbers (`why` says how to make room for more).
    """
    inputs: list[TokenArray] = []
    for number, given in enumerate(request.inputs):
        if isinstance(given, str):
            many = vocab.excess(given, context)
            text = given[: len(given) * context // many] if many and request.truncate else given
            cut = request.truncate or not many
            tokens = vocab.tokenize(text, add_special=True, parse_special=False) if cut else None
            if request.truncate and tokens is not None and len(tokens) > context:
                tokens = _shortened(tokens, context, vocab)
            length, said = (many, f"about {many}") if tokens is None else (len(tokens), str(len(tokens)))
        else:
            vocab.check(given, f"input[{number}]")
            tokens = np.array(given, dtype=np.int32)
            length, said = len(tokens), str(len(tokens))
        if tokens is None or length > context:
            raise PromptTooLong(
                f"input {number} has {said} tokens, and there is room for {context}; shorten it{why}",
                details={"input": number, "prompt_tokens": length, "context": context},
            )
        if not length:
            raise InvalidRequest(f"input {number} is empty: it has no tokens")
        inputs.append(tokens)
    if not inputs:
        raise InvalidRequest("there are no inputs")
    return EmbedJob(request_id, request, inputs)


def _shortened(tokens: TokenArray, context: int, vocab: Vocab) -> TokenArray:
    """Return the beginning of a text, and the token that ends one if it has that."""
    end = tokens[-1:] if tokens[-1] in vocab.control_tokens else tokens[:0]
    return np.concatenate([tokens[: context - len(end)], end])
