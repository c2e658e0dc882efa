"""What the tests of OpenAI-compatible servers share."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import anyio

from gateway.core.errors import GatewayError
from gateway.core.events import Event
from gateway.core.messages import GenerateRequest, Message
from gateway.core.names import ModelRef
from gateway.providers.openai import OpenAIService
from gateway.servers import OpenAIServer
from tests.told import stream_of

REF = ModelRef("lab", "m")
PATIENCE_S = 10.0
"""No test waits longer: a hang is a failure."""


@asynccontextmanager
async def serving(
    *urls: str, patience_s: float = PATIENCE_S, **fields: Any
) -> AsyncIterator[OpenAIService]:
    """A service called `lab` for the servers at `urls`, closed at the end."""
    server = OpenAIServer(urls=urls, **{"control_timeout_s": 5.0, **fields})
    service = OpenAIService("lab", server)
    try:
        with anyio.fail_after(patience_s):
            yield service
    finally:
        await service.aclose()


def ask(text: str = "Hello", **fields: Any) -> GenerateRequest:
    """A chat of one message."""
    fields.setdefault("messages", (Message.user(text),))
    return GenerateRequest(id="r1", model="lab/m", **fields)


async def read(
    service: OpenAIService, request: GenerateRequest | None = None, ref: ModelRef = REF
) -> list[Event]:
    """Every event of a stream that ends well."""
    events, error = await read_all(service, request, ref)
    if error is not None:
        raise error
    return events


async def read_all(
    service: OpenAIService, request: GenerateRequest | None = None, ref: ModelRef = REF
) -> tuple[list[Event], GatewayError | None]:
    """Every event of a stream and the error that ended it, if one did."""
    events: list[Event] = []
    async with aclosing(stream_of(service, request or ask(), ref)) as stream:
        try:
            async for event in stream:
                events.append(event)
        except GatewayError as error:
            return events, error
    return events, None
