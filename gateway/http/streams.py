"""`/api/v1/streams`: open a stream without reading it, read one that is open, stop one."""

from functools import partial

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.core.errors import InvalidRequest
from gateway.http.caller import caller_of
from gateway.http.decision_ids import note_decision
from gateway.http.errors import json_response
from gateway.http.native_events import NativeEvents
from gateway.http.sse import StreamReply
from gateway.http.sse_events import STREAM_ID
from gateway.http.stream import read_asked
from gateway.services.gateway import Gateway
from gateway.settings import Settings

_MAX_DIGITS = 12


class StreamsFace:
    """The routes of streams that are open, or were until lately."""

    def __init__(self, gateway: Gateway, settings: Settings) -> None:
        self._gateway = gateway
        self._settings = settings

    def routes(self) -> list[Route]:
        one = "/api/v1/streams/{id}"
        return [
            Route("/api/v1/streams", self.open, methods=["POST"]),
            Route(one, self.one, methods=["GET", "DELETE"]),
        ]

    async def open(self, request: Request) -> Response:
        """Start a detached stream and tell how to read it."""
        asked = await read_asked(request, self._settings)
        streams = self._gateway.streams
        reader = streams.open(asked.request, caller=caller_of(request), is_detached=True)
        reader.leave()
        stream_id = reader.stream.id
        note_decision(request.scope, stream_id)
        url = f"/api/v1/streams/{stream_id}"
        told = {
            "stream_id": stream_id,
            "url": url,
            "token": streams.tokens.issue(stream_id),
            "token_expires_in_s": streams.tokens.lifetime_s,
        }
        headers = {"Location": url, "Cache-Control": "no-store", STREAM_ID: stream_id}
        return json_response(told, 202, headers)

    async def one(self, request: Request) -> Response:
        match request.method:
            case "GET":
                return self._read(request)
            case "DELETE":
                return self._stop(request)
            case _:  # HEAD, which comes with GET: it would take the stream from its reader
                raise HTTPException(405, headers={"Allow": "GET, DELETE"})

    def _read(self, request: Request) -> Response:
        stream = self._gateway.streams.find(
            request.path_params["id"],
            caller=caller_of(request).id,
            token=request.query_params.get("token", ""),
        )
        after = _parse_event_id(request.headers.get("last-event-id", ""))
        if stream.is_delivered(after):
            return Response(status_code=204)  # on which EventSource connects no more
        return StreamReply(
            partial(stream.attach, after),
            partial(NativeEvents, after=after),
            self._settings,
            awaits_first=False,
        )

    def _stop(self, request: Request) -> Response:
        self._gateway.streams.stop(request.path_params["id"], caller=caller_of(request).id)
        return Response(status_code=204)


def _parse_event_id(text: str) -> int:
    """Return the number of the last event that a reader had; without one it had none."""
    if not text:
        return 0
    if not (text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS):
        raise InvalidRequest(
            "'Last-Event-ID' is not the id of an event.", hint="Events are numbered from 1."
        )
    return int(text)
