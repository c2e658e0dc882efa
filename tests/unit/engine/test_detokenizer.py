from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.engine.text.detokenizer import LONG, Detokenizer
from gateway.engine.text.prompt import PromptEncoder
from tests.tiny_tokenizers import byte_tokenizer, fallback_tokenizer

# Whole characters, their parts, bytes that are never right, what only looks like a character.
CHUNKS = [char.encode() for char in "aé€🙂\ufffd "]
CHUNKS += [b"\xff", b"\xc0", b"\xed\xa0\x80", b"\xf4\x90", b"\xe2", b"\x82", b"\xac"]
CHUNKS += [b"\xe2\x82", b"\xac\xe2", b"\x82\xac\xe2", b"\xf0\x9f", b"x\xf0"]


def decode_bytes(ids: Sequence[int]) -> str:
    return bytes(ids).decode("utf-8", errors="replace")


def decode_chunks(ids: Sequence[int]) -> str:
    return b"".join(CHUNKS[index] for index in ids).decode("utf-8", errors="replace")


def steps(
    ids: Sequence[int], decode: Callable[[Sequence[int]], str], bytes_: Any = None
) -> Iterator[tuple[str, str]]:
    """Yield after each token what was told so far, and at the end the whole."""
    detokenizer, told = Detokenizer(decode, bytes_ or {}), ""
    for count, token in enumerate(ids, 1):
        told += detokenizer.push(token)
        yield told, decode(ids[:count])
    yield told + detokenizer.flush(), decode(ids)
    assert detokenizer.flush() == ""


@given(st.lists(st.integers(0, len(CHUNKS) - 1), max_size=80))
def test_tokens_of_any_bytes_read_as_the_whole_at_once(ids: list[int]) -> None:
    *on_the_way, (told, whole) = steps(ids, decode_chunks)
    assert told == whole
    for told, whole in on_the_way:
        # One character is held back at most: the last, and only while it is none.
        assert told == whole or told + "\ufffd" == whole


@given(st.lists(st.integers(0, 255), max_size=80) | st.text(max_size=30).map(lambda t: t.encode()))
def test_a_byte_level_tokenizer_s_tokens_read_as_the_whole_at_once(values: Sequence[int]) -> None:
    encoder, ids = BYTE_LEVEL
    tokens = [ids[value] for value in values]
    *_, (told, whole) = steps(tokens, encoder.decode, encoder.byte_tokens)
    assert told == whole == bytes(values).decode("utf-8", "replace")


WORDS = ["\u2581the", "\u2581", "caf", "\u2581\u2581no"]


@given(st.lists(st.sampled_from(WORDS) | st.binary(min_size=1, max_size=6), max_size=30))
def test_a_byte_fallback_s_tokens_read_as_their_words_and_bytes(parts: list[str | bytes]) -> None:
    encoder, tokenizer = FALLBACK
    names: list[str] = []
    for part in parts:
        names += [part] if isinstance(part, str) else [f"<0x{byte:02X}>" for byte in part]
    tokens = tokenizer.convert_tokens_to_ids(names)
    said = b"".join(p if isinstance(p, bytes) else p.replace("\u2581", " ").encode() for p in parts)
    expected = said.decode("utf-8", "replace")
    # As the tokenizer has it, the first word loses its space.
    if parts and isinstance(parts[0], str):
        expected = expected.removeprefix(" ")
    *_, (told, whole) = steps(tokens, encoder.decode, encoder.byte_tokens)
    assert told == expected
    if "\ufffd" not in whole:
        assert told == whole


@given(st.text(max_size=30))
def test_tokens_of_one_byte_each_give_whole_characters_in_order(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    detokenizer = Detokenizer(decode_bytes)
    pieces = [detokenizer.push(token) for token in text.encode()]
    assert "".join(pieces) + detokenizer.flush() == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("cycle", [b"\xff", b"\x80", b"\xe2\x82", b"\xf0", b"a\xe2", b"a"])
def test_what_is_broken_for_long_costs_no_more_than_what_is_not(cycle: bytes) -> None:
    decoded: list[int] = []

    def decode(ids: Sequence[int]) -> str:
        decoded.append(len(ids))
        return decode_bytes(ids)

    detokenizer = Detokenizer(decode)
    told = "".join(detokenizer.push(byte) for byte in cycle * 500) + detokenizer.flush()
    assert told == (cycle * 500).decode("utf-8", "replace")
    assert max(decoded) <= LONG


def test_an_emoji_appears_with_its_last_byte() -> None:
    detokenizer = Detokenizer(decode_bytes)
    assert [detokenizer.push(token) for token in "🙂".encode()] == ["", "", "", "🙂"]


def test_a_broken_character_shows_as_such_at_the_end() -> None:
    detokenizer = Detokenizer(decode_bytes)
    assert [detokenizer.push(token) for token in b"a\xf0\x9f"] == ["a", "", ""]
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


def _byte_level() -> tuple[PromptEncoder, list[int]]:
    tokenizer = byte_tokenizer()
    # GPT-2's alphabet: a byte that is printable is itself, the others are letters from 256 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (byte for byte in range(256) if byte not in printable)
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + place) for place, byte in enumerate(others)}
    ids = tokenizer.convert_tokens_to_ids([letters[byte] for byte in range(256)])
    return PromptEncoder(tokenizer), ids


def _fallback() -> tuple[PromptEncoder, Any]:
    tokenizer = fallback_tokenizer(WORDS)
    return PromptEncoder(tokenizer), tokenizer


BYTE_LEVEL, FALLBACK = _byte_level(), _fallback()
