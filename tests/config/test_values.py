# SPDX-License-Identifier: GPL-3.0-only
"""Kinds of values: durations, sizes, numbers, truth values, lists."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.config.kinds import BOOL, LIST, PATH, duration
from modeld.config.values import (
    BadValue,
    parse_duration,
    parse_int,
    parse_size,
    show_duration,
    told,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30.0),
        ("1m30s", 90.0),
        ("500ms", 0.5),
        ("2h", 7200.0),
        ("1.5s", 1.5),
        (".5s", 0.5),
        ("1.s", 1.0),
        ("1h2m3s4ms", 3723.004),
        ("250us", 0.00025),
        ("3\u00b5s", 3e-6),
        ("0", 0.0),
        ("+5s", 5.0),
        ("-1m", -60.0),
        (" 7s ", 7.0),
        ("45", 45.0),
        (45, 45.0),
        (0.25, 0.25),
    ],
)
def test_durations_read_as_in_go(text: object, seconds: float) -> None:
    """All units, fractions and sums of Go's syntax are read; a plain number is seconds."""
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s",
        "5 s",
        "1d",
        "--1s",
        "+-1s",
        "1s2",
        "one",
        "1e3s",
        "inf",
        "nan",
        "5S",
        True,
        None,
        [],
        "9" * 400 + "h",
        float("nan"),
        float("inf"),
        10**400,
    ],
)
def test_what_is_no_duration_is_refused(text: object) -> None:
    """Words, unknown units, gaps, NaN, infinities and absurd lengths are refused."""
    with pytest.raises(BadValue, match=r"duration|hundred years"):
        parse_duration(text)


@given(st.floats(min_value=0, max_value=1e8))
def test_a_shown_duration_reads_as_itself(seconds: float) -> None:
    """What `show_duration` writes, `parse_duration` reads back."""
    assert parse_duration(show_duration(seconds)) == pytest.approx(seconds, rel=1e-6, abs=1e-9)


def test_a_duration_may_have_a_least_value() -> None:
    """A duration below its least value is refused with that value."""
    with pytest.raises(BadValue, match="the least is 100ms"):
        duration(0.1).parse("5ms")


@pytest.mark.parametrize(
    ("text", "mib"),
    [("22GiB", 22528), ("512 MiB", 512), ("1g", 1024), ("1GB", 953), (8000, 8000), ("64", 64), (2.0, 2)],
)
def test_sizes_in_mib(text: object, mib: int) -> None:
    """A budget may be a plain number of MiB, or carry its unit."""
    assert parse_size(text, 2**20, 0, 2**30) == mib


@pytest.mark.parametrize(
    "text", ["1.5", "GiB", "5 apples", "-1", -1, True, None, float("nan"), "1e9", "9" * 25]
)
def test_what_is_no_size_is_refused(text: object) -> None:
    """Fractions of nothing, unknown units, negative and absurd sizes are refused."""
    with pytest.raises(BadValue):
        parse_size(text, 2**20, 0, 2**30)


@pytest.mark.parametrize("value", [True, 1.5, "1.5", "x", None, [], float("inf"), "\u0663", 11, -1])
def test_what_is_no_number_in_range_is_refused(value: object) -> None:
    """Truth values, fractions, words, foreign digits and numbers out of range are refused."""
    with pytest.raises(BadValue):
        parse_int(value, 0, 10)


@pytest.mark.parametrize("word", ["true", "TRUE", "1", "yes", "on", True, 1])
def test_words_for_true(word: object) -> None:
    """Every usual word for true is true."""
    assert BOOL.parse(word) is True


@pytest.mark.parametrize("word", ["false", "0", "No", "off", False, 0])
def test_words_for_false(word: object) -> None:
    """Every usual word for false is false."""
    assert BOOL.parse(word) is False


@pytest.mark.parametrize("word", ["", "maybe", 2, None, 0.0])
def test_other_words_are_no_truth(word: object) -> None:
    """Anything else is refused."""
    with pytest.raises(BadValue, match="neither true nor false"):
        BOOL.parse(word)


def test_lists_from_text_and_from_lists() -> None:
    """Commas separate; blanks, empty items and repetitions go."""
    assert LIST.parse(" GET, POST,,GET ") == ("GET", "POST")
    assert LIST.parse(["a", "b"]) == ("a", "b")
    with pytest.raises(BadValue):
        LIST.parse(["a", 1])


def test_a_path_expands_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` is the home folder; an unknown user's is an error."""
    monkeypatch.setenv("HOME", "/home/op")
    assert str(PATH.parse("~/models")) == "/home/op/models"
    with pytest.raises(BadValue, match="whole path"):
        PATH.parse("~no-such-user-here/models")
    assert str(PATH.parse("./~no-such-user-here/models")) == "~no-such-user-here/models"


def test_values_in_messages_stay_short() -> None:
    """Whatever a file holds, a message about it stays readable."""
    for value in ("x" * 5000, 10**5000, [[1] * 5000], {"a": 1}, None, object()):
        assert len(told(value)) < 80
