"""What requests for tokens order, and in which form they want it: the same for each way to ask."""

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway import telemetry
from gateway.core.events import Generation
from gateway.core.keys import Caller
from gateway.core.messages import GenerateRequest
from gateway.http.body import read_request
from gateway.http.caller import caller_of
from gateway.http.decision_ids import note_decision
from gateway.http.disconnect import unless_disconnected
from gateway.http.errors import json_response
from gateway.http.sse import StreamReply
from gateway.http.sse_events import EventEncoder
from gateway.services.live import LiveStream, StreamReader
from gateway.services.streams import StreamService
from gateway.settings import Settings


class Order(msgspec.Struct, frozen=True):
    """What a body asks for: as a stream in the form of `encode`, or as a whole in that of
    `describe`."""

    request: GenerateRequest
    face: str
    is_stream: bool
    encode: Callable[[LiveStream], EventEncoder]
    describe: Callable[[LiveStream, Generation], Any]
    is_resumable: bool = False
    is_detached: bool = False


ReadOrder = Callable[[bytes, str, str], Order]
"""Returns what a body asks for, by the ids of its request and of its caller; raises InvalidRequest
and its kind."""

Learn = Callable[[Request, ReadOrder], None]
"""Is told of a request that passed every check, and how its body was read."""


def open_stream(streams: StreamService, order: Order, caller: Caller) -> StreamReader:
    """Open what is ordered as a stream; raises what `StreamService.open` does."""
    return streams.open(
        order.request,
        face=order.face,
        caller=caller,
        is_resumable=order.is_resumable,
        is_detached=order.is_detached,
    )


class Counter:
    """Where orders are taken and filled, by the long way."""

    def __init__(self, streams: StreamService, settings: Settings, learn: Learn) -> None:
        self._streams = streams
        self._settings = settings
        self._learn = learn

    async def fill(self, request: Request, read: ReadOrder) -> Response:
        """Return the reply to `request`, whose body is for `read`."""
        request_id = telemetry.request_id.get()
        most = self._settings.max_body_bytes
        caller = caller_of(request)
        order = await read_request(request, most, lambda data: read(data, request_id, caller.id))
        self._learn(request, read)
        if order.is_stream:
            attach = partial(open_stream, self._streams, order, caller)
            return StreamReply(attach, order.encode, self._settings)
        generate = partial(
            self._streams.generate,
            order.request,
            face=order.face,
            caller=caller,
            decided=partial(note_decision, request.scope),
        )
        stream, answer = await unless_disconnected(request, generate)
        return json_response(order.describe(stream, answer))
