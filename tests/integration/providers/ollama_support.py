"""What the Ollama tests share: a service for a peer, requests, and reading a stream to its end."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import anyio

from gateway.core.errors import GatewayError
from gateway.core.events import Event
from gateway.core.messages import GenerateRequest, ImagePart, Message, TextPart
from gateway.core.names import ModelRef, parse_ref
from gateway.core.ports import ModelObserver
from gateway.providers.ollama import OllamaService, OllamaTimeouts
from tests.told import stream_of

REF = parse_ref("ollama", "llama3.2")
PATIENCE_S = 10.0
"""No test waits longer: a hang is a failure."""


@asynccontextmanager
async def serving(
    url: str,
    *,
    num_ctx: int | None = None,
    truncate: bool = False,
    patience_s: float = PATIENCE_S,
    observe: ModelObserver = lambda change: None,
    **timeouts: float,
) -> AsyncIterator[OllamaService]:
    """A service for the server at `url`, closed at the end."""
    service = OllamaService(
        url,
        OllamaTimeouts(**{"control_s": 5.0, **timeouts}),
        num_ctx=num_ctx,
        truncate=truncate,
        observe=observe,
    )
    try:
        with anyio.fail_after(patience_s):
            yield service
    finally:
        await service.aclose()


def ask(text: str = "Hello", **fields: Any) -> GenerateRequest:
    """A chat of one message."""
    fields.setdefault("messages", (say("user", text),))
    return GenerateRequest(id="r1", model="llama3.2", **fields)


def say(role: Any, text: str, images: tuple[bytes, ...] = (), **fields: Any) -> Message:
    return Message(role, (TextPart(text), *(ImagePart(data) for data in images)), **fields)


async def read(
    service: OllamaService, request: GenerateRequest | None = None, ref: ModelRef = REF
) -> list[Event]:
    """Every event of a stream that ends well."""
    events, error = await read_all(service, request, ref)
    if error is not None:
        raise error
    return events


async def read_all(
    service: OllamaService, request: GenerateRequest | None = None, ref: ModelRef = REF
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
