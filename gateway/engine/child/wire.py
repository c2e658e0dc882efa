"""What the gateway and the process of a model say to each other, and how it looks as bytes. Pure.

A frame is the length of its payload (4 bytes, the highest first) and the payload: one message as
msgpack. Either side takes a frame that it cannot read for the end of the other.
"""

import struct
from typing import Annotated, Any

import msgspec

from gateway.core import errors
from gateway.core.embeddings import Embeddings, EmbedRequest
from gateway.core.errors import GatewayError, Internal, InvalidRequest, PayloadTooLarge
from gateway.core.events import Event
from gateway.core.messages import GenerateRequest
from gateway.engine.decoding.loaded import Recipe
from gateway.engine.opening import EngineSpec

MAX_FRAME_BYTES = 2**28
BEAT_S = 1.0
"""How often a child says that it is well."""
EXIT_OUT_OF_MEMORY = 71
"""The exit status of a child that says so; os.EX_OSERR, which nothing else here uses."""
WINDOW = 64
"""Events of one stream that may be on their way or unread; only a Grant lets the child say more."""

_LENGTH = struct.Struct(">I")
_Count = Annotated[int, msgspec.Meta(ge=0)]


class WireError(Exception):
    """The other side sent what nobody of ours would send."""


class Fault(msgspec.Struct, frozen=True):
    """A GatewayError as plain data: the name of its class in the tree, and what it holds."""

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


class AskVectors(_Message, frozen=True):
    """The same of a model that embeds; the answer is one Embedded."""

    id: int
    request: EmbedRequest


class Grant(_Message, frozen=True):
    """The reader has taken so many events: as many more may come."""

    id: int
    events: _Count


class Cancel(_Message, frozen=True):
    id: int


class Lent(_Message, frozen=True):
    """The answer to a Need; what was granted counts until it is Returned."""

    id: int
    granted: bool


class Finish(_Message, frozen=True):
    """Do what the load put off."""


class Close(_Message, frozen=True):
    """Free everything and end."""


class Loading(_Message, frozen=True):
    """How much of the weights is read."""

    read_bytes: _Count
    total_bytes: _Count


class Opened(_Message, frozen=True):
    """The model is loaded: what the gateway has to know of it."""

    memory_bytes: _Count
    first_bytes: _Count
    is_batched: bool
    recipe: Recipe | None
    packing: float | None = None


class Refused(_Message, frozen=True):
    """The model could not be loaded."""

    fault: Fault


class Told(_Message, frozen=True):
    id: int
    event: Event


class Embedded(_Message, frozen=True):
    id: int
    embeddings: Embeddings


class Released(_Message, frozen=True):
    """The last word of an answer: the model no longer works for it."""

    id: int
    fault: Fault | None = None


class Beat(_Message, frozen=True):
    """The process is well, takes this much, and so much of its weights is packed."""

    memory_bytes: _Count
    packing: float | None = None


class Need(_Message, frozen=True):
    """The state of the sequences wants to grow: is there room in the budget? See `Memory`."""

    id: int
    size_bytes: _Count
    is_needed: bool


class Returned(_Message, frozen=True):
    """So much of what was Lent is free again."""

    size_bytes: _Count


ToChild = Open | Ask | AskVectors | Grant | Cancel | Lent | Finish | Close
FromChild = Loading | Opened | Refused | Told | Embedded | Released | Beat | Need | Returned

_encoder = msgspec.msgpack.Encoder()
_to_child: msgspec.msgpack.Decoder[ToChild] = msgspec.msgpack.Decoder(ToChild)
_from_child: msgspec.msgpack.Decoder[FromChild] = msgspec.msgpack.Decoder(FromChild)


def encode_frame(message: ToChild | FromChild) -> bytes:
    """Return the frame of a message.

    Raises PayloadTooLarge above MAX_FRAME_BYTES, InvalidRequest for what msgpack cannot hold.
    """
    try:
        payload = _encoder.encode(message)
    except (OverflowError, UnicodeEncodeError, RecursionError) as error:
        # Only the JSON of tools and schemas may hold such numbers, strings or depths.
        raise InvalidRequest(f"The process of the model cannot be told this: {error}.") from None
    if len(payload) > MAX_FRAME_BYTES:
        raise PayloadTooLarge(
            f"Request and answer may have {MAX_FRAME_BYTES} bytes each where a model has a process "
            f"of its own; there are {len(payload)}."
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
    """Return an error as data; a part of the engine may have a class of its own for one."""
    kind = next(kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
    return Fault(kind.__name__, dict(vars(error)))


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
