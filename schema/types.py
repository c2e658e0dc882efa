"""The enums and scalars of the GraphQL face, and what else its types share.

Enums are the core's under GraphQL's customary upper-case names: `CHAT` is REST's `chat`.
"""

from datetime import UTC, datetime
from enum import Enum
from typing import NewType

import strawberry

Long = NewType("Long", int)

LONG = strawberry.scalar(
    name="Long",
    description="A whole number beyond 32 bits, written as a JSON number; exact to 2^53 in any "
    "client.",
    serialize=int,
    parse_value=int,
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


def to_datetime(unix_s: float) -> datetime:
    """Return the moment of a Unix time, with its time zone: UTC."""
    return datetime.fromtimestamp(unix_s, UTC)
