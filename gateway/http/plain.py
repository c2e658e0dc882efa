"""Bodies as nearly all are: texts and a few options, read in one go.

What is read here the faces' own readers would read alike. Nothing is refused here: whatever has
more, or is wrong, is left to them, who say why.
"""

from collections.abc import Sequence
from typing import Literal, TypeVar

import msgspec

from gateway.core.errors import InvalidRequest
from gateway.core.messages import NO_OPTIONS, Message, Options, TextPart
from gateway.core.options import require_in_range

MAX_BYTES = 128 * 2**10
"""Neither as many values nor as many messages as may be fit into a body of this size."""

T = TypeVar("T")


class PlainMessage(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    role: Literal["system", "user", "assistant"]
    content: str


class PlainOptions(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, gc=False):
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    max_tokens: int | None = None


def decode_plain(data: bytes, decoder: msgspec.json.Decoder[T]) -> T | None:
    """Return the body where the decoder, of a plain kind, takes all of it as it is."""
    if len(data) > MAX_BYTES or b"\\u0000" in data:
        return None
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def read_messages(bodies: Sequence[PlainMessage]) -> tuple[Message, ...] | None:
    """Return the conversation, if there is one."""
    return tuple([Message(body.role, (TextPart(body.content),)) for body in bodies]) or None


def read_options(body: PlainOptions | None) -> Options | None:
    """Return the options, if all are in range."""
    if body is None:
        return NO_OPTIONS
    options = Options(
        temperature=body.temperature,
        top_p=body.top_p,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        seed=body.seed,
        max_tokens=body.max_tokens,
    )
    if options == NO_OPTIONS:
        return NO_OPTIONS
    try:
        require_in_range(options)
    except InvalidRequest:
        return None
    return options
