from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from gateway.engine.detokenizer import Detokenizer


def decode_bytes(ids: Sequence[int]) -> str:
    return bytes(ids).decode("utf-8", errors="replace")


@given(st.text(max_size=30))
def test_tokens_of_one_byte_each_give_whole_characters_in_order(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    detokenizer = Detokenizer(decode_bytes)
    pieces = [detokenizer.push(token) for token in text.encode()]
    assert "".join(pieces) + detokenizer.flush() == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_an_emoji_appears_with_its_last_byte() -> None:
    detokenizer = Detokenizer(decode_bytes)
    assert [detokenizer.push(token) for token in "🙂".encode()] == ["", "", "", "🙂"]


def test_a_broken_character_shows_as_such_at_the_end() -> None:
    detokenizer = Detokenizer(decode_bytes)
    assert [detokenizer.push(token) for token in b"a\xf0\x9f"] == ["a", "", ""]
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""
