"""Errors that cite prompts, and those that do not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.citations import MAX_TEXT, cites

PROMPT = "My password is correct horse battery staple, and I live in Upsala."


@pytest.mark.parametrize(
    "message",
    [
        f"The prompt is too odd: {PROMPT}",
        "near 'correct horse battery sta' at 12",
        "cut: and I live in Upsala.",
    ],
)
def test_a_run_of_the_prompt_is_a_citation(message: str) -> None:
    assert cites(message, ["something else", PROMPT])


def test_what_is_said_in_other_words_is_none() -> None:
    assert not cites("CUDA out of memory. Tried to allocate 20 GiB.", [PROMPT])
    assert not cites("this is it", ["hi", "is"])
    assert not cites("", [PROMPT])


def test_a_short_prompt_is_cited_whole() -> None:
    assert cites("The secret 314159 is no number.", ["314159"])


def test_of_a_text_that_is_too_long_to_look_through_it_is_assumed() -> None:
    assert cites("Out of memory.", ["a" * (MAX_TEXT + 1)])


@given(st.text(min_size=19, max_size=40), st.text(max_size=50), st.text(max_size=50))
def test_wherever_nineteen_characters_stand_they_are_found(run: str, head: str, tail: str) -> None:
    assert cites(f"{head}{run}{tail}", [f"{tail}{run}{head}"])
