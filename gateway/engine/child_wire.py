"""What the gateway and the process of a model say to each other, and how it looks as bytes. Pure.

A frame is the length of its payload (4 bytes, the highest first) and the payload: one message as
msgpack. Either side takes a frame that it cannot read for the end of the other.
"""

import struct
from typing import Any

import msgspec

from gateway.core import errors
from gateway.core.errors import GatewayError, Internal, PayloadTooLarge
from gateway.core.events import Event
from gateway.core.messages import GenerateRequest
from gateway.engine.opening import EngineSpec

MAX_FRAME_BYTES = 2**28
BEAT_S = 1.0
"""How often a child says that it is well."""
EXIT_OUT_OF_MEMORY = 71
"""The exit status of a child that says so; os.EX_OSERR, which nothing else here uses."""
WINDOW = 64
"""Events of one stream that may be on their way or unread; only a Grant lets the child say more."""

_LENGTH = struct.Struct(">I")


class WireError(Exception):
    """The other side sent what nobody of ours would send."""


class Fault(msgspec.Struct, frozen=True):
    """A GatewayError as plain data: the name of its class and what it holds."""

    kind: str
    state: dict[str, Any]


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


class Open(_Message, frozen=True):
    """The first message: load this. A memory limit of 0 is none."""

    spec: EngineSpec
    log_level: int
    memory_limit_bytes: int


class Ask(_Message, frozen=True):
    """Answer this; whatever belongs to the answer carries its id."""

    id: int
    request: GenerateRequest


class Grant(_Message, frozen=True):
    """The reader has taken so many events: as many more may come."""

    id: int
    events: int


class Cancel(_Message, frozen=True):
    id: int


class Close(_Message, frozen=True):
    """Free everything and end."""


class Opened(_Message, frozen=True):
    memory_bytes: int


class Refused(_Message, frozen=True):
    """The model could not be loaded."""

    fault: Fault


class Told(_Message, frozen=True):
    id: int
    event: Event


class Released(_Message, frozen=True):
    """The last word of an answer: the model no longer works for it."""

    id: int
    fault: Fault | None = None


class Beat(_Message, frozen=True):
    """The process is well, and takes this much."""

    memory_bytes: int


ToChild = Open | Ask | Grant | Cancel | Close
FromChild = Opened | Refused | Told | Released | Beat

_encoder = msgspec.msgpack.Encoder()
_to_child: msgspec.msgpack.Decoder[ToChild] = msgspec.msgpack.Decoder(ToChild)
_from_child: msgspec.msgpack.Decoder[FromChild] = msgspec.msgpack.Decoder(FromChild)


def encode_frame(message: ToChild | FromChild) -> bytes:
    """Return the frame of a message; raises PayloadTooLarge above MAX_FRAME_BYTES."""
    payload = _encoder.encode(message)
    if len(payload) > MAX_FRAME_BYTES:
        raise PayloadTooLarge(
            f"The request has {len(payload)} bytes; a model in a process of its own takes "
            f"{MAX_FRAME_BYTES}."
        )
    return _LENGTH.pack(len(payload)) + payload


def decode_to_child(payload: bytes) -> ToChild:
    """Return the gateway's message; raises WireError."""
    try:
        return _to_child.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"unreadable message: {error}") from None


def decode_from_child(payload: bytes) -> FromChild:
    """Return the child's message; raises WireError."""
    try:
        return _from_child.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"unreadable message: {error}") from None


class FrameSplitter:
    """Cuts a stream of bytes, in pieces of any size, into the payloads of its frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def push(self, data: bytes) -> list[bytes]:
        """Return the payloads that are complete now; raises WireError for one that is too long."""
        self._buffer += data
        payloads = []
        at = 0
        while len(self._buffer) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, at)
            if length > MAX_FRAME_BYTES:
                raise WireError(f"a frame of {length} bytes")
            end = at + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            payloads.append(bytes(self._buffer[at + _LENGTH.size : end]))
            at = end
        del self._buffer[:at]
        return payloads


def to_fault(error: GatewayError) -> Fault:
    """Return an error as data."""
    return Fault(type(error).__name__, dict(vars(error)))


def to_error(fault: Fault) -> GatewayError:
    """Return the error that was made data: its class, and everything it held."""
    kind = getattr(errors, fault.kind, None)
    message = fault.state.get("message")
    is_ours = isinstance(kind, type) and issubclass(kind, GatewayError)
    if kind is None or not is_ours or not isinstance(message, str):
        return Internal("The process of the model failed.")
    # Constructors differ in what they take; what they made of it is in the state.
    error: GatewayError = kind.__new__(kind)
    error.args = (message,)
    vars(error).update(dict.fromkeys(("hint", "param", "retry_after_s")) | fault.state)
    return error
