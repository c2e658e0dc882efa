"""The OpenAI face: `/v1/models`, `/v1/chat/completions` and `/v1/completions`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.core.errors import ModelNotFound, ProviderUnavailable
from gateway.core.events import Generation
from gateway.core.models import ModelInfo
from gateway.core.names import nearest_names
from gateway.core.routing import describe_guess, resolve_route
from gateway.http.errors import json_response
from gateway.http.models import describe_faults
from gateway.http.openai_chunks import (
    ChatChunks,
    CompletionChunks,
    describe_chat,
    describe_completion,
)
from gateway.http.openai_wire import Completion, parse_chat, parse_completion
from gateway.http.orders import Counter, Order
from gateway.services.catalog import Listing
from gateway.services.gateway import Gateway
from gateway.services.live import LiveStream


class OpenAIFace:
    """The routes of the OpenAI face."""

    def __init__(self, gateway: Gateway, counter: Counter) -> None:
        self._gateway = gateway
        self._counter = counter

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
        return await self._counter.fill(request, read_chat)

    async def complete(self, request: Request) -> Response:
        return await self._counter.fill(request, read_completion)

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


def read_chat(data: bytes, request_id: str, caller: str) -> Order:
    """Return what a chat body orders; raises InvalidRequest and its kind."""
    return _to_order(parse_chat(data, request_id, caller), ChatChunks, describe_chat)


def read_completion(data: bytes, request_id: str, caller: str) -> Order:
    """Return what the body of a plain completion orders; raises InvalidRequest and its kind."""
    wanted = parse_completion(data, request_id, caller)
    return _to_order(wanted, CompletionChunks, describe_completion)


def _to_order(
    wanted: Completion,
    chunks: type[ChatChunks] | type[CompletionChunks],
    describe: Callable[[LiveStream, Generation], msgspec.Struct],
) -> Order:
    encode = partial(chunks, includes_usage=wanted.includes_usage)
    return Order(wanted.request, "openai", wanted.is_stream, encode, describe)


def _describe(model: ModelInfo) -> dict[str, Any]:
    return {"id": model.id, "object": "model", "created": 0, "owned_by": model.ref.provider}


def _describe_virtual(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "gateway"}
