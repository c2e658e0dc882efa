"""The OpenAI face: `/v1/models`, `/v1/chat/completions` and `/v1/completions`."""

from collections.abc import Callable
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway import telemetry
from gateway.core.errors import ModelNotFound, ProviderUnavailable
from gateway.core.events import Generation
from gateway.core.keys import Caller
from gateway.core.models import ModelInfo
from gateway.core.names import nearest_names
from gateway.core.routing import describe_guess, resolve_route
from gateway.http.body import read_request
from gateway.http.caller import caller_of
from gateway.http.decision_ids import note_decision
from gateway.http.disconnect import unless_disconnected
from gateway.http.errors import json_response
from gateway.http.models import describe_faults
from gateway.http.openai_chunks import (
    ChatChunks,
    CompletionChunks,
    describe_chat,
    describe_completion,
)
from gateway.http.openai_wire import Completion, parse_chat, parse_completion
from gateway.http.sse import StreamReply
from gateway.http.sse_events import EventEncoder
from gateway.services.catalog import Listing
from gateway.services.gateway import Gateway
from gateway.services.live import LiveStream, StreamReader
from gateway.services.streams import StreamService
from gateway.settings import Settings


class OpenAIFace:
    """The routes of the OpenAI face."""

    def __init__(self, gateway: Gateway, settings: Settings) -> None:
        self._gateway = gateway
        self._settings = settings

    def routes(self) -> list[Route]:
        return [
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{id:path}", self.model, methods=["GET"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.complete, methods=["POST"]),
        ]

    async def models(self, _request: Request) -> Response:
        listing = await self._gateway.catalog.listing()
        data = [_describe(model) for model in listing.models]
        data += map(_describe_virtual, self._gateway.rules.virtual)
        data += [_describe_virtual(each.id) for each in self._gateway.rotations.listed(listing)]
        faults = describe_faults(listing.faults)
        return json_response({"object": "list", "data": data, "provider_errors": faults})

    async def model(self, request: Request) -> Response:
        name = request.path_params["id"]
        if name in self._gateway.rules.virtual:
            return json_response(_describe_virtual(name))
        listing = await self._gateway.catalog.listing()
        meant = self._gateway.rules.aliases.get(name, name)
        if any(meant == each.id for each in self._gateway.rotations.listed(listing)):
            return json_response(_describe_virtual(meant))
        return json_response(_describe(self._find(name, listing)))

    async def chat(self, request: Request) -> Response:
        wanted = await self._read(request, parse_chat)
        return await self._answer(request, wanted, ChatChunks, describe_chat)

    async def complete(self, request: Request) -> Response:
        wanted = await self._read(request, parse_completion)
        return await self._answer(request, wanted, CompletionChunks, describe_completion)

    async def _read(
        self, request: Request, parse: Callable[[bytes, str], Completion]
    ) -> Completion:
        request_id = telemetry.request_id.get()
        return await read_request(
            request, self._settings.max_body_bytes, lambda data: parse(data, request_id)
        )

    async def _answer(
        self,
        request: Request,
        wanted: Completion,
        chunks: type[ChatChunks] | type[CompletionChunks],
        describe_whole: Callable[[LiveStream, Generation], dict[str, Any]],
    ) -> Response:
        streams = self._gateway.streams
        caller = caller_of(request)
        if wanted.is_stream:
            asked = _Asked(streams, wanted, caller, chunks)
            return StreamReply(asked.open, asked.encode, self._settings)
        generate = partial(
            streams.generate,
            wanted.request,
            face="openai",
            caller=caller,
            decided=partial(note_decision, request.scope),
        )
        stream, answer = await unless_disconnected(request, generate)
        return json_response(describe_whole(stream, answer))

    def _find(self, name: str, listing: Listing) -> ModelInfo:
        """Return the model that `name` means.

        Raises the fault of its provider when that may be why the listing lacks it.
        """
        route = resolve_route(
            name,
            providers=self._gateway.provider_names,
            catalogue=listing.catalogue,
            aliases=self._gateway.rules.aliases,
        )
        if route.info is not None:
            return route.info
        for fault in listing.faults:
            if fault.provider != route.ref.provider:
                continue
            if isinstance(fault.error, ProviderUnavailable):
                raise describe_guess(name, route, fault.error, listing.catalogue)
            raise fault.error
        raise ModelNotFound(name, nearest_names(name, listing.catalogue.refs))


class _Asked:
    """A stream that is asked for. One small object in place of three partials: each stream has it
    to its end."""

    __slots__ = ("_caller", "_chunks", "_streams", "_wanted")

    def __init__(
        self,
        streams: StreamService,
        wanted: Completion,
        caller: Caller,
        chunks: type[ChatChunks] | type[CompletionChunks],
    ) -> None:
        self._streams = streams
        self._wanted = wanted
        self._caller = caller
        self._chunks = chunks

    def open(self) -> StreamReader:
        return self._streams.open(self._wanted.request, face="openai", caller=self._caller)

    def encode(self, stream: LiveStream) -> EventEncoder:
        return self._chunks(stream, includes_usage=self._wanted.includes_usage)


def _describe(model: ModelInfo) -> dict[str, Any]:
    return {"id": model.id, "object": "model", "created": 0, "owned_by": model.ref.provider}


def _describe_virtual(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "gateway"}
