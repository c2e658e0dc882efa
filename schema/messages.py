"""The messages of graphql-transport-ws, and the codes that its connections are closed with.

Source: https://github.com/enisdenjo/graphql-ws/blob/master/PROTOCOL.md.
"""

from enum import IntEnum
from typing import Annotated, Any, TypeAlias

import msgspec

PROTOCOL = "graphql-transport-ws"

Payload: TypeAlias = dict[str, Any] | None
OperationId: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class Close(IntEnum):
    """Why a connection is closed. Those from 4000 on are fatal: a client does not try again."""

    GOING_AWAY = 1001
    TOO_LARGE = 1009
    MALFORMED = 4400
    UNAUTHORIZED = 4401
    FORBIDDEN = 4403
    UNKNOWN_PROTOCOL = 4406
    INIT_TIMEOUT = 4408
    ID_TAKEN = 4409
    INIT_TWICE = 4429


class ConnectionInit(msgspec.Struct, frozen=True, tag="connection_init"):
    payload: Payload = None


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    payload: Payload = None


class Pong(msgspec.Struct, frozen=True, tag="pong"):
    payload: Payload = None


class Subscribe(msgspec.Struct, frozen=True, tag="subscribe"):
    """`payload` is a request as HTTP has it in its body, not looked at yet."""

    id: OperationId
    payload: msgspec.Raw


class Complete(msgspec.Struct, frozen=True, tag="complete"):
    id: OperationId


ClientMessage: TypeAlias = ConnectionInit | Ping | Pong | Subscribe | Complete


class Malformed(Exception):
    """A frame that is no message of the protocol; the text says why."""


def decode_message(frame: str | None) -> ClientMessage:
    """Return the message in a frame, None being a binary one; raise Malformed."""
    if frame is None:
        raise Malformed("A message is text, not bytes.")
    try:
        message: ClientMessage = msgspec.json.decode(frame, type=ClientMessage)
    except msgspec.ValidationError as error:
        raise Malformed(f"This is no message: {error}.") from None
    except (ValueError, RecursionError):
        raise Malformed("This is no JSON.") from None
    return message
