"""`/api/v1/collections`, `export` and `import`: collections of models over HTTP."""

from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.core.collections import (
    Collection,
    CollectionChange,
    CollectionOrder,
    ImportPlan,
    describe_bundle,
    read_bundle,
)
from gateway.core.errors import InvalidRequest
from gateway.http.body import decode_body, read_request
from gateway.http.caller import caller_of
from gateway.http.errors import json_response
from gateway.services.collections import CollectionService
from gateway.services.gateway import Gateway
from gateway.settings import Settings


class CollectionBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: str
    category: str = ""
    description: str = ""
    models: list[str] = []


class CollectionChangeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What is left out or null stays as it is."""

    name: str | None = None
    category: str | None = None
    description: str | None = None


class MemberBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    model: str


_CREATE = msgspec.json.Decoder(CollectionBody)
_CHANGE = msgspec.json.Decoder(CollectionChangeBody)
_MEMBER = msgspec.json.Decoder(MemberBody)


class CollectionsFace:
    """The routes of collections; `{id}` may be a collection's name as well."""

    def __init__(self, gateway: Gateway, settings: Settings) -> None:
        self._gateway = gateway
        self._settings = settings

    def routes(self) -> list[Route]:
        one = "/api/v1/collections/{id}"
        return [
            Route("/api/v1/collections", self.list, methods=["GET"]),
            Route("/api/v1/collections", self.create, methods=["POST"]),
            Route(one, self.show, methods=["GET"]),
            Route(one, self.change, methods=["PATCH"]),
            Route(one, self.remove, methods=["DELETE"]),
            Route(f"{one}/models", self.add_model, methods=["POST"]),
            Route(f"{one}/models", self.remove_model, methods=["DELETE"]),
            Route("/api/v1/export", self.export, methods=["GET"]),
            Route("/api/v1/import", self.read_in, methods=["POST"]),
        ]

    async def list(self, request: Request) -> Response:
        found = await self._collections.all(request.query_params.get("category"))
        return json_response({"collections": [describe_collection(each) for each in found]})

    async def create(self, request: Request) -> Response:
        body = await self._read(request, _CREATE)
        order = CollectionOrder(body.name, body.category, body.description, tuple(body.models))
        return json_response(describe_collection(await self._collections.create(order)), 201)

    async def show(self, request: Request) -> Response:
        return _reply(await self._collections.find(_id(request)))

    async def change(self, request: Request) -> Response:
        body = await self._read(request, _CHANGE)
        change = CollectionChange(body.name, body.category, body.description)
        return _reply(await self._collections.change(_id(request), change))

    async def remove(self, request: Request) -> Response:
        return _reply(await self._collections.remove(_id(request)))

    async def add_model(self, request: Request) -> Response:
        body = await self._read(request, _MEMBER)
        return _reply(await self._collections.add_model(_id(request), body.model))

    async def remove_model(self, request: Request) -> Response:
        model = request.query_params.get("model")
        if model is None:
            raise InvalidRequest("Which model? Add ?model= to the address.", param="model")
        return _reply(await self._collections.remove_model(_id(request), model))

    async def export(self, _request: Request) -> Response:
        bundle = await self._collections.export()
        return json_response(
            describe_bundle(bundle),
            200,
            {"Content-Disposition": 'attachment; filename="gateway-export.json"'},
        )

    async def read_in(self, request: Request) -> Response:
        bundle = await read_request(request, self._settings.max_body_bytes, read_bundle)
        is_dry = request.query_params.get("dry_run", "false").lower() in ("true", "1")
        caller = caller_of(request)
        plan = await self._collections.read_in(bundle, dry_run=is_dry, by=caller.id)
        return json_response({**describe_import(plan), "dry_run": is_dry})

    @property
    def _collections(self) -> CollectionService:
        return self._gateway.collections

    async def _read(self, request: Request, decoder: msgspec.json.Decoder[Any]) -> Any:
        parse = partial(decode_body, decoder=decoder)
        return await read_request(request, self._settings.max_body_bytes, parse)


def describe_collection(collection: Collection) -> dict[str, Any]:
    """Return a collection as JSON shows it; times are Unix seconds."""
    return {**msgspec.structs.asdict(collection), "models": list(collection.models)}


def describe_import(plan: ImportPlan) -> dict[str, Any]:
    return {name: list(names) for name, names in msgspec.structs.asdict(plan).items()}


def _reply(collection: Collection) -> Response:
    return json_response(describe_collection(collection))


def _id(request: Request) -> str:
    key: str = request.path_params["id"]
    return key
