"""`/api/v1/rotations`: names that stand for one model after the other, over HTTP."""

from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.core.errors import InvalidRequest
from gateway.core.rotation import Rotation, RotationOrder, Step
from gateway.http.body import decode_body, read_request
from gateway.http.errors import json_response
from gateway.services.gateway import Gateway
from gateway.settings import Settings


class AdvanceBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    to: str | None = None


_ORDER = msgspec.json.Decoder(RotationOrder)
_ADVANCE = msgspec.json.Decoder(AdvanceBody)


class RotationsFace:
    """The routes of rotations."""

    def __init__(self, gateway: Gateway, settings: Settings) -> None:
        self._rotations = gateway.rotations
        self._settings = settings

    def routes(self) -> list[Route]:
        one = "/api/v1/rotations/{name}"
        return [
            Route("/api/v1/rotations", self.list, methods=["GET"]),
            Route(one, self.show, methods=["GET"]),
            Route(one, self.put, methods=["PUT"]),
            Route(one, self.remove, methods=["DELETE"]),
            Route(f"{one}/pause", self.pause, methods=["POST"]),
            Route(f"{one}/resume", self.resume, methods=["POST"]),
            Route(f"{one}/advance", self.advance, methods=["POST"]),
            Route(f"{one}/history", self.history, methods=["GET"]),
        ]

    async def list(self, _request: Request) -> Response:
        found = await self._rotations.all()
        return json_response({"rotations": [describe_rotation(each) for each in found]})

    async def show(self, request: Request) -> Response:
        return _reply(await self._rotations.find(_name(request)))

    async def put(self, request: Request) -> Response:
        parse = partial(decode_body, decoder=_ORDER)
        order = await read_request(request, self._settings.max_body_bytes, parse)
        return _reply(await self._rotations.put(_name(request), order))

    async def remove(self, request: Request) -> Response:
        return _reply(await self._rotations.remove(_name(request)))

    async def pause(self, request: Request) -> Response:
        return _reply(await self._rotations.pause(_name(request)))

    async def resume(self, request: Request) -> Response:
        return _reply(await self._rotations.resume(_name(request)))

    async def advance(self, request: Request) -> Response:
        to = await read_request(request, self._settings.max_body_bytes, _parse_advance)
        step = await self._rotations.advance(_name(request), to)
        return json_response(describe_step(step), 202)

    async def history(self, request: Request) -> Response:
        limit = request.query_params.get("limit", "50")
        if not (limit.isascii() and limit.isdecimal() and len(limit) < 9):
            raise InvalidRequest("'limit' is not a number.", param="limit")
        steps = await self._rotations.history(_name(request), int(limit))
        return json_response({"steps": [describe_step(step) for step in steps]})


def describe_rotation(rotation: Rotation) -> dict[str, Any]:
    """Return a rotation as JSON shows it; times are Unix seconds of the database."""
    return {
        "name": rotation.name,
        "model": rotation.model,
        "current": rotation.current,
        "source": rotation.source,
        "paused": rotation.paused,
        "due_at": rotation.due_at,
        "counted": rotation.counted,
        **msgspec.to_builtins(rotation.order),
        "step": None if rotation.step is None else describe_step(rotation.step),
        "created_at": rotation.created_at,
        "updated_at": rotation.updated_at,
    }


def describe_step(step: Step) -> dict[str, Any]:
    return {
        "id": step.id,
        "trigger": step.trigger,
        "state": step.state,
        "phase": step.phase,
        "origin": step.origin,
        "wish": step.wish,
        "target": step.target,
        "skipped": msgspec.to_builtins(step.skipped),
        "message": step.message,
        "node": step.node,
        "asked_at": step.asked_at,
        "begun_at": step.begun_at,
        "ended_at": step.ended_at,
    }


def _parse_advance(data: bytes) -> str | None:
    body: AdvanceBody = decode_body(data or b"{}", _ADVANCE)
    return body.to


def _reply(rotation: Rotation) -> Response:
    return json_response(describe_rotation(rotation))


def _name(request: Request) -> str:
    name: str = request.path_params["name"]
    return name
