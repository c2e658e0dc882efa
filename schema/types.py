"""The enums and scalars of the GraphQL face, and what else its types share.

Enums are the core's under GraphQL's customary upper-case names: `CHAT` is REST's `chat`.
"""

from datetime import UTC, datetime
from enum import Enum
from typing import NewType

import strawberry
from graphql import GraphQLError

from gateway import problems
from gateway.core.errors import GatewayError

Long = NewType("Long", int)


def _parse_long(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise GraphQLError("Long cannot represent a value that is no whole number.")
    return value


LONG = strawberry.scalar(
    name="Long",
    description="A whole number beyond 32 bits, written as a JSON number; exact to 2^53 in any "
    "client.",
    serialize=int,
    parse_value=_parse_long,
)
"""The built-in Int ends at 2 GiB when it counts bytes; text would sort and add up wrongly."""


@strawberry.enum(description="Where a model's weights are.")
class ModelState(Enum):
    NOT_LOADED = strawberry.enum_value("NOT_LOADED", description="On disk or at its provider.")
    LOADING = strawberry.enum_value("LOADING", description="On its way into memory.")
    LOADED = strawberry.enum_value("LOADED", description="In memory, ready to answer.")
    UNLOADING = strawberry.enum_value("UNLOADING", description="On its way out of memory.")
    FAILED = strawberry.enum_value("FAILED", description="It could not be loaded; see message.")


@strawberry.enum(description="What a model can be asked for.")
class Capability(Enum):
    CHAT = strawberry.enum_value("CHAT", description="Answers messages.")
    COMPLETION = strawberry.enum_value("COMPLETION", description="Continues a text.")
    VISION = strawberry.enum_value("VISION", description="Reads images.")
    TOOLS = strawberry.enum_value("TOOLS", description="Calls tools.")
    THINKING = strawberry.enum_value("THINKING", description="Shows its reasoning.")
    EMBEDDING = strawberry.enum_value("EMBEDDING", description="Turns text into vectors.")
    INSERT = strawberry.enum_value("INSERT", description="Fills a gap in a text.")
    STRUCTURED = strawberry.enum_value("STRUCTURED", description="Keeps to a JSON schema.")


@strawberry.enum(description="Whether a provider answered when it was last asked.")
class ProviderState(Enum):
    UNKNOWN = strawberry.enum_value("UNKNOWN", description="It has not been asked yet.")
    UP = strawberry.enum_value("UP", description="It answered.")
    DOWN = strawberry.enum_value("DOWN", description="It failed or did not answer in time.")


@strawberry.enum(description="Why a stream ended.")
class StreamEnd(Enum):
    STOP = strawberry.enum_value("STOP", description="The model was done.")
    LENGTH = strawberry.enum_value("LENGTH", description="The most tokens allowed were reached.")
    TOOL_CALLS = strawberry.enum_value("TOOL_CALLS", description="The model called tools.")
    CANCELLED = strawberry.enum_value("CANCELLED", description="The client left or cancelled.")
    ERROR = strawberry.enum_value("ERROR", description="It failed; see errorCode.")
    INTERRUPTED = strawberry.enum_value("INTERRUPTED", description="The gateway died under it.")


@strawberry.enum(description="Who says a message.")
class Role(Enum):
    SYSTEM = strawberry.enum_value("SYSTEM", description="Whoever sets the rules.")
    USER = strawberry.enum_value("USER", description="Whoever asks.")
    ASSISTANT = strawberry.enum_value("ASSISTANT", description="The model.")
    TOOL = strawberry.enum_value("TOOL", description="A tool that the model called.")


@strawberry.enum(description="How hard to think.")
class ThinkLevel(Enum):
    LOW = strawberry.enum_value("LOW", description="A little.")
    MEDIUM = strawberry.enum_value("MEDIUM", description="As usual.")
    HIGH = strawberry.enum_value("HIGH", description="Much.")


@strawberry.enum(description="What form an answer has.")
class ResponseFormatType(Enum):
    TEXT = strawberry.enum_value("TEXT", description="Any text.")
    JSON_OBJECT = strawberry.enum_value("JSON_OBJECT", description="A JSON object.")
    JSON_SCHEMA = strawberry.enum_value("JSON_SCHEMA", description="JSON that follows a schema.")


@strawberry.enum(description="What a request waits for.")
class Stage(Enum):
    QUEUED = strawberry.enum_value("QUEUED", description="Its turn.")
    DOWNLOADING = strawberry.enum_value("DOWNLOADING", description="The model's files.")
    LOADING = strawberry.enum_value("LOADING", description="The model, on its way into memory.")
    PREFILL = strawberry.enum_value("PREFILL", description="The model, which reads the prompt.")


@strawberry.enum(description="The number format of a model's weights.")
class Dtype(Enum):
    AUTO = strawberry.enum_value("AUTO", description="As the operator set, else as stored.")
    FLOAT32 = strawberry.enum_value("FLOAT32", description="32 bits.")
    BFLOAT16 = strawberry.enum_value("BFLOAT16", description="16 bits, the range of FLOAT32.")
    FLOAT16 = strawberry.enum_value("FLOAT16", description="16 bits, half precision.")


@strawberry.enum(description="How far a model's weights are quantized when it is loaded.")
class Quantization(Enum):
    NONE = strawberry.enum_value("NONE", description="Not at all.")
    INT8 = strawberry.enum_value("INT8", description="To 8 bits.")
    INT4 = strawberry.enum_value("INT4", description="To 4 bits.")


@strawberry.type(description="What is wrong.")
class Problem:
    code: str = strawberry.field(description="What is wrong, for programs.")
    message: str = strawberry.field(description="What is wrong, for people.")
    hint: str | None = strawberry.field(description="What to do about it.")
    retryable: bool = strawberry.field(description="Whether trying again makes sense.")

    @classmethod
    def of(cls, error: GatewayError) -> "Problem":
        problem = problems.describe(error)
        return cls(
            code=problem.code,
            message=problem.message,
            hint=problem.hint,
            retryable=problem.retryable,
        )


def to_datetime(unix_s: float) -> datetime:
    """Return the moment of a Unix time, with its time zone: UTC."""
    return datetime.fromtimestamp(unix_s, UTC)
