# SPDX-License-Identifier: GPL-3.0-only
"""Program: how much of the official JSON-Schema-Test-Suite is kept; prints a table for docs/api.md.

The suite is in the source distribution of `jsonschema` on PyPI, folder `json`. Its path is the argument.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path

import jsonschema
import numpy as np
from llguidance import LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from referencing import Registry
from referencing.exceptions import Unresolvable

from modeld.engine.llama.constraints.guidance import HEAD, compile_grammar
from modeld.engine.llama.constraints.json_schema import Leniency, json_rule, parse_schema
from modeld.errors import InvalidGrammar

BYTES = LLTokenizer("byte")


class Coverage:
    """Counts over the groups of the suite.

    Attributes:
      longest_ms: CPU time of the longest step: a mask and the token that was drawn.
    """

    def __init__(self, way: Leniency) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.longest_ms = self.longest_compile_ms = 0.0
        self._way = way
        self._mask = allocate_token_bitmask(1, BYTES.vocab_size)
        self._chance = np.random.default_rng(1)

    def look_at(self, group) -> None:
        """Take in one schema with its instances."""
        self.counts["schemas"] += 1
        schema = group["schema"]
        began = time.perf_counter()
        try:
            rule = json_rule(parse_schema(json.dumps(schema)), self._way)
            matcher = compile_grammar(BYTES, f"{HEAD}start: {rule}\n")
        except InvalidGrammar:
            return
        finally:
            self.longest_compile_ms = max(self.longest_compile_ms, 1000 * (time.perf_counter() - began))
        self.counts["compiled"] += 1
        wrong = 0
        for test in group["tests"]:
            kind = "valid" if test["valid"] else "invalid"
            self.counts[kind] += 1
            allowed = self._allows(matcher, json.dumps(test["data"], ensure_ascii=False))
            self.counts[f"{kind} right"] += allowed == test["valid"]
            wrong += allowed and not test["valid"]
        judge = jsonschema.Draft202012Validator(schema, registry=Registry())
        for _ in range(5):
            text = self._generated(matcher)
            if text is None:
                continue
            try:
                valid = judge.is_valid(json.loads(text))
            except Unresolvable:  # A reference into another document was left out: nobody can judge.
                continue
            self.counts["generated"] += 1
            if not valid:
                wrong += 1
                self.wrong.append(f"{group['description']}: {text[:80]}")
        self.counts["without a wrong one"] += not wrong

    def _allows(self, matcher, text) -> bool:
        matcher.reset()
        data = list(text.encode())
        return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()

    def _generated(self, matcher, most=300) -> str | None:
        """Return a text drawn by chance; None if it does not end within `most` bytes."""
        matcher.reset()
        text = bytearray()
        while len(text) < most:
            if matcher.is_accepting() and self._chance.random() < 0.5:
                return text.decode(errors="replace")
            began = time.thread_time()
            fill_next_token_bitmask(matcher, self._mask)
            (allowed,) = np.nonzero(np.unpackbits(self._mask.view(np.uint8), bitorder="little")[:256])
            if not len(allowed):
                return text.decode(errors="replace") if matcher.is_accepting() else None
            ends = [byte for byte in allowed if byte in b'"}]']
            byte = int(self._chance.choice(ends if ends and self._chance.random() < 0.4 else allowed))
            matcher.consume_token(byte)
            self.longest_ms = max(self.longest_ms, 1000 * (time.thread_time() - began))
            text.append(byte)
        return None


def coverage_of(suite: Path, way: Leniency, draft: str = "draft2020-12") -> Coverage:
    """Look at all schemas of a draft that are objects."""
    found = Coverage(way)
    for path in sorted((suite / "tests" / draft).glob("*.json")):
        for group in json.loads(path.read_text()):
            if isinstance(group["schema"], dict):
                found.look_at(group)
    return found


def _tell(*lines: str) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)


def main(suite: str) -> None:
    """Print the table, and what was wrong."""
    _tell(
        "| | schemas | compile | valid allowed | invalid refused | generated, valid | longest step |",
        "|---|--:|--:|--:|--:|--:|--:|",
    )
    for way, name in ((Leniency.NONE, "strict"), (Leniency.KEYWORDS, "not strict")):
        found = coverage_of(Path(suite), way)
        counts = found.counts
        right = counts["generated"] - len(found.wrong)
        _tell(
            f"| {name} | {counts['schemas']} | {counts['compiled']} "
            f"| {counts['valid right']} of {counts['valid']} "
            f"| {counts['invalid right']} of {counts['invalid']} "
            f"| {right} of {counts['generated']} | {found.longest_ms:.1f} ms |"
        )
        sys.stderr.write(f"{name}: {counts['without a wrong one']} schemas without a wrong instance; ")
        sys.stderr.write(f"longest compile {found.longest_compile_ms:.0f} ms; wrong: {found.wrong[:20]}\n")


if __name__ == "__main__":
    main(sys.argv[1])
