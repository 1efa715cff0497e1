# SPDX-License-Identifier: GPL-3.0-only
"""A GGUF file taken apart, so that one thing of it can be changed; a corpus of files with one thing wrong.

Each of the corpus is a sound container: what is wrong is what it says. Whether llama.cpp takes it, refuses
it or aborts on it, nobody knows but by trying; `survey` tries, in processes of their own.
"""

from __future__ import annotations

import os
import random
import signal
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import gguf
from support import tiny_gguf

from modeld.domain.model import LoadOptions
from modeld.domain.request import GenerateRequest, Sampling
from modeld.engine.llama.gguf.facts import GgufError, read_facts
from modeld.engine.protocol import LoadSpec
from modeld.errors import ModeldError

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
SECONDS = 60
"""A load of a tiny file that takes longer hangs."""


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def strings(*texts: bytes) -> bytes:
    return struct.pack("<IQ", 8, len(texts)) + b"".join(map(string, texts))


@dataclass(frozen=True)
class Tensor:
    name: bytes
    shape: tuple[int, ...]
    kind: int
    data: bytes


@dataclass(frozen=True)
class Parts:
    """A file: its pairs (key to type and value) and its tensors, in order."""

    pairs: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)
    tensors: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, path: Path) -> Parts:
        """Take a sound file apart."""
        data = path.read_bytes()
        reader = gguf.GGUFReader(path)
        count = struct.unpack_from("<Q", data, 16)[0]
        at, pairs = 24, {}
        for _ in range(count):
            key, at = _string_at(data, at)
            (kind,) = struct.unpack_from("<I", data, at)
            end = _value_end(data, at + 4, kind)
            pairs[key], at = (kind, data[at + 4 : end]), end
        tensors = tuple(
            Tensor(it.name.encode(), tuple(map(int, it.shape)), int(it.tensor_type), it.data.tobytes())
            for it in reader.tensors
        )
        return cls(pairs, tensors)

    def write(self, path: Path) -> Path:
        head = [b"GGUF", struct.pack("<IQQ", 3, len(self.tensors), len(self.pairs))]
        head += [string(key) + struct.pack("<I", kind) + value for key, (kind, value) in self.pairs.items()]
        offset = 0
        for it in self.tensors:
            layout = f"<I{len(it.shape)}QIQ"
            head.append(string(it.name) + struct.pack(layout, len(it.shape), *it.shape, it.kind, offset))
            offset += -(-len(it.data) // 32) * 32
        start = b"".join(head)
        body = b"".join(it.data + b"\0" * (-len(it.data) % 32) for it in self.tensors)
        path.write_bytes(start + b"\0" * (-len(start) % 32) + body)
        return path

    def having(self, key: bytes, kind: int, value: bytes) -> Parts:
        return replace(self, pairs={**self.pairs, key: (kind, value)})

    def without(self, key: bytes) -> Parts:
        return replace(self, pairs={name: pair for name, pair in self.pairs.items() if name != key})

    def changing(self, which: bytes, **changes: object) -> Parts:
        return replace(
            self, tensors=tuple(replace(it, **changes) if it.name == which else it for it in self.tensors)
        )


def as_bpe(sound: Parts) -> Parts:
    """Give a file a vocabulary of byte pairs, as GPT-2's: bytes as letters, and merges of some."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    strange = [byte for byte in range(256) if byte not in plain]
    letters = {byte: chr(byte) for byte in plain} | {byte: chr(256 + at) for at, byte in enumerate(strange)}
    pairs = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), (letters[32], "w")]
    words = ["".join(pair) for pair in pairs]
    texts = ["<|end|>", "<|start|>", *letters.values(), *words]
    texts += [f"[unused{number}]" for number in range(tiny_gguf.VOCABULARY - len(texts))]
    kinds = [3, 3, *[1] * (256 + len(words)), *[5] * (len(texts) - 258 - len(words))]
    merges = strings(*(" ".join(pair).encode() for pair in pairs))
    text = {b"model": b"gpt2", b"pre": b"gpt-2"}
    for key, value in text.items():
        sound = sound.having(b"tokenizer.ggml." + key, 8, string(value))
    sound = sound.having(b"tokenizer.ggml.tokens", 9, strings(*(text.encode() for text in texts)))
    sound = sound.having(b"tokenizer.ggml.merges", 9, merges)
    numbers = struct.pack(f"<IQ{len(kinds)}i", 5, len(kinds), *kinds)
    sound = sound.having(b"tokenizer.ggml.token_type", 9, numbers)
    for key in (b"bos_token_id", b"eos_token_id"):
        sound = sound.having(b"tokenizer.ggml." + key, 4, struct.pack("<I", 0))
    return sound.without(b"tokenizer.ggml.scores").without(b"tokenizer.ggml.unknown_token_id")


def damaged(whole: bytes, header: int, dice: random.Random, files: int) -> Iterator[tuple[str, bytes]]:
    """Yield a file cut off, with bits flipped, and with huge numbers in it: most of it in its header."""
    for _ in range(files):
        end = dice.choice([dice.randrange(header), dice.randrange(len(whole))])
        yield f"cut off at {end}", whole[:end]
        for bits in (1, 8):
            content, places = bytearray(whole), [dice.randrange(header) for _ in range(bits)]
            for at in places:
                content[at] ^= 1 << dice.randrange(8)
            yield f"bits flipped at {places}", bytes(content)
        number, at = dice.choice([0, 1, 2**20, 2**31 - 1, 2**31, 2**63, 2**64 - 1]), dice.randrange(header)
        yield f"{number} at {at}", whole[:at] + struct.pack("<Q", number) + whole[at + 8 :]
        begin = dice.randrange(header)
        yield f"a piece lost at {begin}", whole[:begin] + whole[begin + dice.randrange(1, 64) :]
        yield f"a piece twice at {begin}", whole[:begin] + whole[max(0, begin - dice.randrange(1, 64)) :]


def _string_at(data: bytes, at: int) -> tuple[bytes, int]:
    (length,) = struct.unpack_from("<Q", data, at)
    return data[at + 8 : at + 8 + length], at + 8 + length


def _value_end(data: bytes, at: int, kind: int) -> int:
    if kind == 8:
        return _string_at(data, at)[1]
    if kind != 9:
        return at + SIZES[kind]
    inner, count = struct.unpack_from("<IQ", data, at)
    at += 12
    for _ in range(count):
        at = _value_end(data, at, inner)
    return at


def corpus(sound: Parts) -> Iterator[tuple[str, Parts]]:
    """Yield files with one thing wrong, and its name: each key and each tensor in turn."""
    for key in sound.pairs:
        yield from _bad_values(sound, key)
    for it in sound.tensors:
        yield from _bad_tensors(sound, it)
    yield from _bad_tokenizers(sound)
    yield from _bad_numbers(sound)
    for arch in (
        b"gemma2",
        b"qwen2",
        b"phi3",
        b"mamba",
        b"bert",
        b"clip",
        b"t5",
        b"rwkv6",
        b"deepseek2",
        b"x",
    ):
        pairs = {key.replace(b"llama.", arch + b"."): pair for key, pair in sound.pairs.items()}
        changed = replace(sound, pairs=pairs).having(b"general.architecture", 8, string(arch))
        yield f"architecture {arch.decode()}", changed
    extra = Tensor(b"rope_freqs.weight", (8,), 0, struct.pack("<8f", *[0.0] * 8))
    yield "rope frequencies of zero", replace(sound, tensors=(*sound.tensors, extra))
    yield "a tensor that nobody knows", replace(sound, tensors=(*sound.tensors, replace(extra, name=b"x")))
    yield "no tensors", replace(sound, tensors=())
    yield "tensors in reverse", replace(sound, tensors=sound.tensors[::-1])


def _bad_values(sound: Parts, key: bytes) -> Iterator[tuple[str, Parts]]:
    (kind, value), name = sound.pairs[key], key.decode()
    yield f"{name} missing", sound.without(key)
    if kind in (4, 5, 10):
        for number in (0, 1, 3, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1):
            yield f"{name} = {number}", sound.having(key, 4, struct.pack("<I", number))
        yield f"{name} negative", sound.having(key, 5, struct.pack("<i", -1))
        yield f"{name} long", sound.having(key, 10, struct.pack("<Q", 2**63))
        yield f"{name} array", sound.having(key, 9, struct.pack("<IQ", 4, 2) + struct.pack("<II", 4, 0))
        yield f"{name} empty array", sound.having(key, 9, struct.pack("<IQ", 4, 0))
    if kind == 6:
        for number in (0.0, -1.0, 1e30, float("inf"), float("nan")):
            yield f"{name} = {number}", sound.having(key, 6, struct.pack("<f", number))
    if kind == 8:
        for text in (b"", b"x", b"\xff\xfe", b"{{" * 3000, b"gpt2", b"bert", b"t5", b"rwkv", b"plamo2"):
            yield f"{name} = {text[:8]!r}", sound.having(key, 8, string(text))
    if kind == 9:
        inner, count = struct.unpack_from("<IQ", value)
        yield f"{name} empty", sound.having(key, 9, struct.pack("<IQ", inner, 0))
        half = _value_end(struct.pack("<IQ", inner, count // 2) + value[12:], 0, 9)
        short = struct.pack("<IQ", inner, count // 2) + value[12:half]
        yield f"{name} halved", sound.having(key, 9, short)
        yield (
            f"{name} doubled",
            sound.having(key, 9, struct.pack("<IQ", inner, 2 * count) + 2 * value[12:]),
        )
        if inner == 8:
            yield f"{name} all empty", sound.having(key, 9, strings(*[b""] * count))
            yield f"{name} all the same", sound.having(key, 9, strings(*[b"same"] * count))
            yield (
                f"{name} no UTF-8",
                sound.having(key, 9, strings(*[b"\xff%d" % n for n in range(count)])),
            )
            huge = strings(*[b"x" * 10_000] * count)
            yield f"{name} huge", sound.having(key, 9, huge)
        else:
            yield f"{name} all ones", sound.having(key, 9, value[:12] + b"\xff" * len(value[12:]))
    yield f"{name} a bool", sound.having(key, 7, b"\1")
    yield f"{name} a text", sound.having(key, 8, string(b"7"))
    yield f"{name} a number", sound.having(key, 4, struct.pack("<I", 7))
    yield f"{name} an array of texts", sound.having(key, 9, strings(b"a", b"b"))


def _bad_tokenizers(sound: Parts) -> Iterator[tuple[str, Parts]]:
    for key in (b"bos", b"eos", b"unknown", b"padding", b"eot", b"separator", b"mask", b"fim_pre"):
        for number in (2**32 - 1, 2**31 - 1, 320, 100_000):
            name = b"tokenizer.ggml.%s_token_id" % key
            yield f"{name.decode()} = {number}", sound.having(name, 4, struct.pack("<I", number))
    for kind in (b"gpt2", b"bert", b"t5", b"rwkv", b"none", b"plamo2", b"hybriddna"):
        yield f"tokenizer {kind.decode()}", sound.having(b"tokenizer.ggml.model", 8, string(kind))
        merges = strings(b"a b", b"", b" ", b"no-blank", b"x" * 5000 + b" y", b"a b")
        both = sound.having(b"tokenizer.ggml.model", 8, string(kind)).having(
            b"tokenizer.ggml.merges", 9, merges
        )
        yield f"tokenizer {kind.decode()} with merges", both


def _bad_numbers(sound: Parts) -> Iterator[tuple[str, Parts]]:
    for name, text in (
        ("scaling.type", b"yarn"),
        ("scaling.type", b"longrope"),
        ("scaling.type", b"nonsense"),
    ):
        yield f"rope {text.decode()}", sound.having(b"llama.rope." + name.encode(), 8, string(text))
    for factor in (0.0, -1.0, float("nan"), 1e-30):
        key = b"llama.rope.freq_base"
        yield f"rope base {factor}", sound.having(key, 6, struct.pack("<f", factor))
        yield (
            f"rope factor {factor}",
            sound.having(b"llama.rope.scaling.factor", 6, struct.pack("<f", factor)),
        )
    numbers = (
        b"attention.key_length",
        b"attention.value_length",
        b"attention.sliding_window",
        b"expert_count",
    )
    for key in (*numbers, b"rope.dimension_count", b"attention.head_count_kv", b"leading_dense_block_count"):
        for number in (0, 1, 7, 2**31, 2**32 - 1):
            name = b"llama." + key
            yield f"{name.decode()} = {number}", sound.having(name, 4, struct.pack("<I", number))


def _bad_tensors(sound: Parts, it: Tensor) -> Iterator[tuple[str, Parts]]:
    name = it.name.decode()
    yield (
        f"{name} missing",
        replace(sound, tensors=tuple(other for other in sound.tensors if other is not it)),
    )
    yield f"{name} renamed", sound.changing(it.name, name=b"other")
    yield f"{name} transposed", sound.changing(it.name, shape=it.shape[::-1])
    yield f"{name} of no elements", sound.changing(it.name, shape=(0,), data=b"")
    yield f"{name} scalar", sound.changing(it.name, shape=(), data=it.data[:4])
    yield f"{name} of four dimensions", sound.changing(it.name, shape=(*it.shape, 1, 1, 1)[:4])
    yield (
        f"{name} halved",
        sound.changing(it.name, shape=(it.shape[0] // 2, *it.shape[1:]), data=it.data[::2]),
    )
    yield f"{name} doubled", sound.changing(it.name, shape=(it.shape[0] * 2, *it.shape[1:]), data=it.data * 2)
    for kind, scale in ((1, 0.5), (24, 0.25), (26, 1), (28, 2), (30, 0.5), (8, 34 / 128), (12, 144 / 1024)):
        data = it.data[: int(len(it.data) * scale)]
        yield f"{name} of type {kind}", sound.changing(it.name, kind=kind, data=data)
    for label, byte in (("zero", b"\0"), ("NaN", b"\xff")):
        yield f"{name} all {label}", sound.changing(it.name, data=byte * len(it.data))


def survey(path: Path, answers: int) -> None:
    """Load a file as the daemon does, ask it for a few tokens, and write in a word what came of it."""
    from modeld.engine.llama.engine import load  # noqa: PLC0415  # loads the library, in a child only

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    word = "loaded"
    try:
        read_facts(path)
        spec = LoadSpec(model_id="m", path=str(path), options=LoadOptions(threads=1, slots=2, ctx=256))
        engine = load(spec, lambda _fraction: True)
        requests = (
            GenerateRequest(prompt="hello <s> w1 \xff\u20ac", max_tokens=3, ignore_eos=True),
            GenerateRequest(prompt="a" * 300, max_tokens=3),
            GenerateRequest(prompt="b", max_tokens=3, sampling=Sampling(temperature=0.0), logprobs=2),
        )
        for number, request in enumerate(requests):
            engine.submit(number, request)
        while engine.busy:
            engine.step()
        engine.close()
    except GgufError:
        word = "refused"
    except ModeldError:
        word = "failed"
    os.write(answers, word.encode())


def outcome(path: Path) -> tuple[str, float]:
    """Return what a forked child made of a file, a word or a signal, and the CPU seconds that it took."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        code = 1
        try:
            survey(path, theirs)
            code = 0
        except BaseException as error:  # noqa: BLE001, ASYNC103  # a finding, told by its name; the fork ends here
            os.write(theirs, f"defect {error!r}".encode())
        finally:
            os._exit(code)
    os.close(theirs)
    _, status, used = os.wait4(child, 0)
    word = os.read(ours, 4096).decode()
    os.close(ours)
    if os.WIFSIGNALED(status):
        word = f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return word, used.ru_utime + used.ru_stime


def main() -> None:
    """Survey a corpus: `python -m support.bad_gguf FOLDER FILES SEED [PART OF A NAME]`.

    Prints a line a file: the outcome, the seconds, the name. All files are made from tiny models of
    two kinds of vocabulary; FILES times six of each are damaged at random.
    """
    import modeld.engine.llama.engine  # noqa: F401, PLC0415  # once, before all children

    folder, files = Path(sys.argv[1]), int(sys.argv[2])
    dice = random.Random(int(sys.argv[3]))  # noqa: S311  # the same seed, the same damage
    wanted = sys.argv[4] if len(sys.argv) > 4 else ""
    path = folder / "bad.gguf"
    tiny = Parts.of(tiny_gguf.write_model(folder / "sound.gguf"))
    for kind, sound in (("spm", tiny), ("bpe", as_bpe(tiny))):
        sound.write(path)
        _tell(f"{kind}: sound", path)
        whole = path.read_bytes()
        header = len(whole) - sum(len(it.data) + -len(it.data) % 32 for it in sound.tensors)
        for name, parts in corpus(sound):
            if wanted in name:
                _tell(f"{kind}: {name}", parts.write(path))
        for name, content in damaged(whole, header, dice, files):
            if wanted in name:
                path.write_bytes(content)
                _tell(f"{kind}: {name}", path)


def _tell(name: str, path: Path) -> None:
    word, seconds = outcome(path)
    print(f"{word}\t{seconds:.2f}\t{name}", flush=True)  # noqa: T201  # it is a report


if __name__ == "__main__":
    main()
