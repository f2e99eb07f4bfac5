"""Stop strings are found however the text is cut into pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punie_mlx.serve.stops import StopStrings


def passed(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    cutter = StopStrings(stops)
    text = "".join(cutter.feed(p) for p in pieces)
    return text + cutter.finish(), cutter.found


@pytest.mark.parametrize(
    ("pieces", "stops", "expected", "found"),
    [
        (["one two thr", "ee four"], ["three"], "one two ", True),
        (["one two thr", "ough"], ["three"], "one two through", False),
        (["a", "a", "a", "b", "c"], ["aab"], "a", True),
        (["x<", "<<", "END"], ["<<<END", "zzz"], "x", True),
        (["end st"], ["stop"], "end st", False),
        (["both later and first"], ["first", "later"], "both ", True),
        (["no stops"], [], "no stops", False),
    ],
)
def test_text_ends_before_the_first_stop(pieces: list[str], stops: list[str], expected: str, found: bool) -> None:
    assert passed(pieces, stops) == (expected, found)


def test_what_cannot_be_a_stop_is_passed_on_at_once() -> None:
    cutter = StopStrings(["STOP"])
    assert cutter.feed("going on S") == "going on "
    assert cutter.feed("o on") == "So on"


@given(st.lists(st.text("ab", max_size=4)), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_pieces_make_no_difference(pieces: list[str], stops: list[str]) -> None:
    assert passed(pieces, stops) == passed(["".join(pieces)], stops)
