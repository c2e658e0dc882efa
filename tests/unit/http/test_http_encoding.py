"""JSON on one line: every text reads back as it was."""

import json

from hypothesis import given
from hypothesis import strategies as st

from gateway.http.encoding import encode_json

ANY_CHARACTER = st.characters(exclude_categories=())  # lone surrogates, too


@given(st.text(ANY_CHARACTER))
def test_any_text_reads_back(text: str) -> None:
    assert json.loads(encode_json({"text": text, text: 1})) == {"text": text, text: 1}


@given(st.text(ANY_CHARACTER | st.sampled_from("\r\n\u2028\u2029\u0085\x0b\x0c\x1c")))
def test_no_reader_finds_an_end_of_line_in_it(text: str) -> None:
    encoded = encode_json({"text": text})
    assert len(encoded.decode().splitlines()) == 1
    assert len(encoded.splitlines()) == 1
