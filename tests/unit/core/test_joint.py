"""Stop strings over the joint of two answers: as if one model had said all of it."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.events import TextDelta
from gateway.core.joint import Joint

letters = st.text(alphabet="ab<|é", max_size=8)
stop_strings = st.lists(st.text(alphabet="ab<|é", min_size=2, max_size=5), max_size=2)


def end_at(text: str, stops: list[str]) -> int | None:
    return min((text.find(stop) for stop in stops if stop in text), default=None)


@st.composite
def joined(draw: st.DrawFn) -> tuple[str, list[str], list[str]]:
    """Return what one model said, the parts of what the next one says, and stop strings: some of
    them are in the whole text, and often over the joint."""
    said, parts = draw(letters), draw(st.lists(letters, max_size=6))
    whole = said + "".join(parts)
    begin = draw(st.integers(0, len(said)))
    found = whole[begin : begin + draw(st.integers(2, 5))]
    return said, parts, [stop for stop in (found, *draw(stop_strings)) if stop]


@given(joined())
def test_a_stop_string_ends_the_answer_wherever_the_joint_is(
    case: tuple[str, list[str], list[str]],
) -> None:
    said, parts, stops = case
    if end_at(said, stops) is not None:
        return  # the first model would have ended there
    joint = Joint(said, stops)
    told: list[TextDelta] = []
    whole = said
    for part in parts:
        # The next model finds the stop strings that begin in its own words.
        own_end = end_at(whole[len(said) :] + part, stops)
        if own_end is not None:
            break
        whole += part
        told += joint.push(TextDelta(part, 1))
        if joint.is_over:
            break
    is_over = joint.is_over
    if not is_over:
        told += joint.flush()
    end = end_at(whole, stops)
    assert is_over == (end is not None)
    expected = whole if end is None else whole[: max(end, len(said))]
    assert said + "".join(delta.text for delta in told) == expected


@given(said=letters, parts=st.lists(letters), stops=stop_strings)
def test_tokens_and_their_ids_go_with_the_text_that_is_told(
    said: str, parts: list[str], stops: list[str]
) -> None:
    joint = Joint(said, stops)
    told: list[TextDelta] = []
    pushed = 0
    for number, part in enumerate(parts):
        told += joint.push(TextDelta(part, 1, ids=(number,)))
        pushed += 1
        if joint.is_over:
            break
    else:
        told += joint.flush()
    assert sum(delta.tokens for delta in told) + joint.held_tokens == pushed
    ids = [token for delta in told for token in delta.ids]
    assert ids == list(range(len(ids)))
