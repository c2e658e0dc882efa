from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.stopping import StopMatcher

letters = st.text(alphabet="ab<|é", max_size=40)


def oracle(text: str, stops: list[str]) -> tuple[str, bool]:
    cuts = [text.find(stop) for stop in stops if stop in text]
    return (text[: min(cuts)], True) if cuts else (text, False)


def split(text: str, cuts: list[int]) -> list[str]:
    places = sorted({min(cut, len(text)) for cut in cuts})
    edges = [0, *places, len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


@given(
    text=letters,
    stops=st.lists(st.text(alphabet="ab<|é", min_size=1, max_size=5), max_size=4),
    cuts=st.lists(st.integers(0, 40), max_size=10),
)
def test_any_split_of_a_text_stops_where_the_whole_text_would(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    matcher = StopMatcher(stops)
    shown = ""
    for piece in split(text, cuts):
        shown += matcher.push(piece)
        assert not any(stop in shown for stop in stops)
        if matcher.stopped:
            break
    shown += matcher.flush()
    expected, stopped = oracle(text, stops)
    # A stop that begins earlier may only complete in a later piece than one that begins later.
    assert matcher.stopped == stopped
    if stopped:
        assert expected.startswith(shown) or shown.startswith(expected)
        assert not any(stop in shown for stop in stops)
    else:
        assert shown == text


def test_a_stop_string_split_over_pieces_never_leaks() -> None:
    matcher = StopMatcher(["<|end|>"])
    assert matcher.push("Hello <|e") == "Hello "
    assert matcher.push("nd") == ""
    assert matcher.push("|> more") == ""
    assert matcher.stopped
    assert matcher.flush() == ""


def test_held_text_that_is_no_stop_is_let_go() -> None:
    matcher = StopMatcher(["<|end|>"])
    assert matcher.push("a <|e") == "a "
    assert matcher.push("x") == "<|ex"
    assert matcher.push(" <|") == " "
    assert matcher.flush() == "<|"
