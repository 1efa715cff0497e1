# SPDX-License-Identifier: GPL-3.0-only
"""The text filter: what it shows never depends on how the bytes were split."""

from __future__ import annotations

import codecs
import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.domain.text_filter import TextFilter


def run(pieces, stops=()):
    """Return (text shown, stopped) for pieces of bytes, and hold what must hold on the way."""
    text_filter = TextFilter(stops)
    shown = ""
    for piece in pieces:
        shown += text_filter.push(piece)
    return shown + text_filter.flush(), text_filter.stopped


def reference(data, stops):
    """Return the same of the whole, by the plainest means."""
    return plain(data.decode("utf-8", errors="replace"), stops)


def plain(text, stops):
    """Return (what comes before the first stop sequence, whether there is one)."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


def split(data, cuts):
    """Cut `data` at the given places."""
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


texts = st.text(alphabet="ab€\n😀", max_size=40).map(str.encode)
raw = st.binary(max_size=40) | st.lists(st.sampled_from([b"a", b"b", b"\xe2", b"\x82\xac", b"\xff"])).map(
    b"".join
)
stop_lists = st.lists(
    st.text(alphabet="ab€\n😀\ufffd", min_size=1, max_size=5)
    | st.text(alphabet="ab", min_size=1, max_size=2).map(lambda period: (period * 9)[:12]),
    max_size=4,
)
cut_lists = st.lists(st.integers(0, 1000), max_size=40)


@given(texts | raw, stop_lists, cut_lists)
def test_any_split_shows_what_the_whole_would(data, stops, cuts):
    """However the bytes are split, the text and the stop are those of the whole."""
    assert run(split(data, cuts), stops) == reference(data, stops)


@given(texts, stop_lists, cut_lists)
def test_nothing_shown_is_ever_taken_back(data, stops, cuts):
    """What was shown at any moment is a beginning of the final text."""
    whole, _ = reference(data, stops)
    text_filter = TextFilter(stops)
    shown = ""
    for piece in split(data, cuts):
        shown += text_filter.push(piece)
        assert whole.startswith(shown)


@given(texts | raw, stop_lists, cut_lists)
def test_text_waits_only_as_long_as_it_could_begin_a_stop(data, stops, cuts):
    """After each piece just the longest end is held back that a stop sequence begins with."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    text_filter = TextFilter(stops)
    known = shown = ""
    for piece in split(data, cuts):
        known += decoder.decode(piece)
        shown += text_filter.push(piece)
        whole, stopped = plain(known, stops)
        held = 0 if stopped else max((beginning(whole, stop) for stop in stops), default=0)
        assert shown == whole[: len(whole) - held]
        assert text_filter.stopped is stopped


def beginning(text, stop):
    """Return how many characters at the end of a text a stop sequence, not whole, begins with."""
    return max(length for length in range(len(stop)) if text.endswith(stop[:length]))


def words(letters, longest):
    """Return every text of these letters that is not empty and not longer."""
    return [
        "".join(word)
        for length in range(1, longest + 1)
        for word in itertools.product(letters, repeat=length)
    ]


def test_every_stop_of_two_letters_is_found_in_every_text_of_them():
    """Repetitions in a stop sequence and in the text, in all ways: one sequence, and two at once."""
    alone = [(stop,) for stop in words("ab", 4)]
    for stops, length in (
        *((one, 9) for one in alone),
        *((pair, 6) for pair in itertools.permutations(words("ab", 3), 2)),
    ):
        for letters in itertools.product("ab", repeat=length):
            text = "".join(letters)
            assert run([letter.encode() for letter in letters], stops) == plain(text, stops), (text, stops)


@given(raw, cut_lists)
def test_bad_bytes_are_replaced_as_python_does(data, cuts):
    """Bytes that are not UTF-8 become U+FFFD exactly as `bytes.decode` has it."""
    assert run(split(data, cuts))[0] == data.decode("utf-8", errors="replace")


def test_a_character_is_never_split():
    """The bytes of one character are shown together, when the last one is there."""
    text_filter = TextFilter()
    assert [text_filter.push(bytes([byte])) for byte in "a€".encode()] == ["a", "", "", "€"]


def test_text_without_stops_is_shown_at_once():
    """Without stop sequences nothing waits."""
    text_filter = TextFilter()
    assert text_filter.push(b"hello") == "hello"
    assert text_filter.flush() == ""


def test_only_the_possible_beginning_of_a_stop_is_held():
    """Text waits exactly as long as it could begin a stop sequence."""
    text_filter = TextFilter(["STOP"])
    assert [text_filter.push(piece) for piece in (b"go ST", b"O", b"RE ")] == ["go ", "", "STORE "]
    assert not text_filter.stopped


def test_after_a_stop_nothing_is_shown():
    """The text ends before the stop sequence, for good."""
    text_filter = TextFilter(["\n\n"])
    assert text_filter.push(b"one\n") == "one"
    assert text_filter.push(b"\ntwo") == ""
    assert text_filter.stopped
    assert text_filter.push(b"three") == ""
    assert text_filter.flush() == ""


def test_the_stop_that_is_complete_first_wins():
    """Of several stop sequences the one whose end comes first decides; then the longest."""
    assert run([b"xabcd"], ["abcd", "bc"]) == ("xa", True)
    assert run([b"xabc"], ["bc", "abc"]) == ("x", True)


def test_a_stop_may_contain_what_bad_bytes_become():
    """A stop sequence that ends in U+FFFD is found even in the flush."""
    assert run([b"a\xe2"], ["a�"]) == ("", True)


def test_empty_stops_mean_nothing():
    """An empty stop sequence never matches."""
    assert run([b"abc"], ["", ""]) == ("abc", False)


@pytest.mark.parametrize("stop", ["a" * 5000 + "b", "b" * 1_000_000])
@pytest.mark.slow
def test_long_stops_cost_no_more_than_short_ones(stop):
    """The worst text for a stop sequence still takes constant time a character."""
    text_filter = TextFilter([stop])
    began = time.perf_counter()
    for _ in range(20_000):
        text_filter.push(b"aaaa")
    assert time.perf_counter() - began < 5
    assert not text_filter.stopped
