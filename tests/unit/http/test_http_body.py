"""Bodies that were read: what they decode to and what the sentence of a mistake names."""

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.core.errors import InvalidRequest, InvalidText
from gateway.http.body import MAX_VALUES, decode_body, is_surely_clean, require_clean
from gateway.http.openai_wire import parse_chat, parse_completion
from gateway.http.stream import parse_stream_request


class Body(msgspec.Struct):
    text: str = ""
    items: list[int] | None = None
    free: dict[str, object] | None = None


DECODER = msgspec.json.Decoder(Body)


@pytest.mark.parametrize(
    ("data", "sentence", "param"),
    [
        (b'{"text": 1}', "The body is wrong at `$.text`: expected `str`, got `int`.", "text"),
        (b'{"items": [1, "x"]}', "`$.items[1]`", "items[1]"),
        (b"[]", "The body is wrong at `$`: expected `object`, got `array`.", None),
    ],
)
def test_a_mistake_is_named_by_its_place(data: bytes, sentence: str, param: str | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_body(data, DECODER)
    assert sentence in caught.value.message
    assert caught.value.param == param


def test_a_nul_is_found_wherever_it_is() -> None:
    with pytest.raises(InvalidText, match=r"free\.a\[0\]\.b") as caught:
        require_clean(Body(free={"a": [{"b": "x\x00"}]}))
    assert caught.value.param == "free.a[0].b"
    with pytest.raises(InvalidText):
        require_clean(Body(free={"\x00": 1}))
    require_clean(Body(text="fine", items=[1], free={"a": [None, True, 1.5, 2**63]}))


def test_a_surrogate_pair_is_a_character_and_not_a_mistake() -> None:
    assert decode_body(b'{"text": "\\ud83d\\ude00"}', DECODER).text == "\U0001f600"
    with pytest.raises(InvalidRequest, match="not JSON"):
        decode_body(b'{"text": "\\ud83d\\ude00", }', DECODER)


def test_more_values_than_anybody_means_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="more than"):
        require_clean(Body(free={"a": [0] * MAX_VALUES}))


@given(st.binary(max_size=200))
@example(b'{"model": "m", "prompt": "\\ud800"}')
def test_no_bytes_break_a_parser(data: bytes) -> None:
    for parse in (parse_stream_request, parse_chat, parse_completion):
        try:
            parse(data, "id")
        except InvalidRequest as error:
            assert error.message.endswith(".")


@given(st.binary(max_size=60), st.integers(1, 400))
def test_what_passes_at_a_glance_would_pass_the_whole_look(rubbish: bytes, most: int) -> None:
    for data in (rubbish, b'{"a":"' + rubbish + b'"}', b"[" + rubbish + b"]"):
        try:
            value = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        if is_surely_clean(data, most):
            require_clean(value, most)


@pytest.mark.parametrize(
    "data",
    [
        rb'{"a":"\u0000"}',
        rb'{"\u0000":1}',
        b'{"a":18446744073709551616}',
        b"[" * 102 + b"]" * 102,
        b'{"a":' * 101 + b"1" + b"}" * 101,
        b"[" + b"1," * 300 + b"1]",
    ],
)
def test_what_the_whole_look_refuses_does_not_pass_at_a_glance(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        require_clean(msgspec.json.decode(data), 300)
    assert not is_surely_clean(data, 300)
