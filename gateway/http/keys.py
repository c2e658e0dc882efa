"""`/api/v1/keys`: API keys over HTTP, for those who have an admin's."""

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.core.keys import ApiKey, KeyOrder, KeyScope
from gateway.http.body import decode_body, read_request
from gateway.http.errors import json_response
from gateway.services.gateway import Gateway
from gateway.settings import Settings

_SECRET = {"Cache-Control": "no-store"}


class KeyBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A limit that is left out or null is none."""

    name: str
    scopes: list[KeyScope]
    max_streams: int | None = None
    requests_per_minute: int | None = None


_DECODER = msgspec.json.Decoder(KeyBody)


class KeysFace:
    """The routes that make, list and revoke keys."""

    def __init__(self, gateway: Gateway, settings: Settings) -> None:
        self._gateway = gateway
        self._settings = settings

    def routes(self) -> list[Route]:
        return [
            Route("/api/v1/keys", self.list, methods=["GET"]),
            Route("/api/v1/keys", self.create, methods=["POST"]),
            Route("/api/v1/keys/{id}", self.revoke, methods=["DELETE"]),
        ]

    async def list(self, _request: Request) -> Response:
        keys = await self._gateway.keys.all()
        return json_response({"keys": [describe_key(key) for key in keys]})

    async def create(self, request: Request) -> Response:
        order = await read_request(request, self._settings.max_body_bytes, _parse)
        key, text = await self._gateway.keys.create(order)
        return json_response({**describe_key(key), "key": text}, 201, _SECRET)

    async def revoke(self, request: Request) -> Response:
        return json_response(
            describe_key(await self._gateway.keys.revoke(request.path_params["id"]))
        )


def describe_key(key: ApiKey) -> dict[str, Any]:
    """Return a key as JSON shows it; null is no limit, or not revoked."""
    return msgspec.structs.asdict(key)


def _parse(data: bytes) -> KeyOrder:
    body = decode_body(data, _DECODER)
    return KeyOrder(body.name, tuple(body.scopes), body.max_streams, body.requests_per_minute)
