"""JSON as bytes, safe to put on one line of an event stream."""

import json
from typing import Any

import msgspec

# Legal inside JSON strings, but many readers of event streams take them for ends of lines.
_LINE_ENDS = (
    ("\u2028".encode(), rb"\u2028"),
    ("\u2029".encode(), rb"\u2029"),
    ("\u0085".encode(), rb"\u0085"),
)


_encode = msgspec.json.Encoder().encode


def encode_json(value: Any) -> bytes:
    """Return `value` as one line of JSON; any text, also with lone surrogates, reads back as is."""
    try:
        data = _encode(value)
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8 form, but it has a JSON escape
        return json.dumps(msgspec.to_builtins(value), separators=(",", ":")).encode()
    if not data.isascii():
        for character, escape in _LINE_ENDS:
            data = data.replace(character, escape)
    return data
