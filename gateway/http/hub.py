"""`/api/v1/hub` and `/api/v1/settings/hf-token`: what the Hub has, and the token for it."""

from typing import Any, get_args

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.core.errors import InvalidRequest
from gateway.core.hub import (
    Freshness,
    HubDetails,
    HubModel,
    HubQuery,
    HubReport,
    Sort,
    TokenReport,
)
from gateway.http.body import decode_body, read_request
from gateway.http.errors import json_response
from gateway.problems import describe
from gateway.services.gateway import Gateway

MAX_TOKEN_BODY_BYTES = 16 * 2**10
_SECRET = {"Cache-Control": "no-store"}
_SWITCHES = {"": False, "true": True, "1": True, "false": False, "0": False}


class TokenBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`validate`: ask the Hub first, and store nothing that it does not know."""

    token: str
    validate: bool = True


_DECODER = msgspec.json.Decoder(TokenBody)


class HubFace:
    """The routes of the Hub and of its token."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def routes(self) -> list[Route]:
        token = "/api/v1/settings/hf-token"
        return [
            Route("/api/v1/hub/models", self.search, methods=["GET"]),
            Route("/api/v1/hub/models/{name:path}", self.details, methods=["GET"]),
            Route("/api/v1/hub/recommended", self.recommended, methods=["GET"]),
            Route(token, self.report_token, methods=["GET"]),
            Route(token, self.set_token, methods=["PUT"]),
            Route(token, self.delete_token, methods=["DELETE"]),
        ]

    async def search(self, request: Request) -> Response:
        found = await self._gateway.hub.search(parse_query(request.query_params))
        models = [describe_model(model) for model in found.models]
        return json_response({"models": models, **describe_freshness(found.freshness)})

    async def details(self, request: Request) -> Response:
        found = await self._gateway.hub.details(request.path_params["name"])
        return json_response(describe_report(found))

    async def recommended(self, _request: Request) -> Response:
        return json_response({"models": list(self._gateway.hub.recommended)})

    async def report_token(self, request: Request) -> Response:
        validate = parse_switch(request.query_params, "validate")
        report = await self._gateway.hub_token.report(validate=validate)
        return json_response(describe_token(report), headers=_SECRET)

    async def set_token(self, request: Request) -> Response:
        body = await read_request(request, MAX_TOKEN_BODY_BYTES, _parse)
        report = await self._gateway.hub_token.set(body.token, validate=body.validate)
        return json_response(describe_token(report), headers=_SECRET)

    async def delete_token(self, _request: Request) -> Response:
        report = await self._gateway.hub_token.delete()
        return json_response(describe_token(report), headers=_SECRET)


def parse_query(query: QueryParams) -> HubQuery:
    """Return the search that `search`, `author`, `task`, `library`, `sort` and `limit` make."""
    values: dict[str, Any] = {
        name: query[name] for name in ("search", "author", "task", "library") if name in query
    }
    sort, limit = query.get("sort", "downloads"), query.get("limit", "20")
    if sort not in get_args(Sort):
        raise InvalidRequest(
            f"There is no sort '{sort}'.",
            hint=f"It is one of: {', '.join(get_args(Sort))}.",
            param="sort",
        )
    if not (limit.isascii() and limit.isdecimal() and len(limit) < 10):
        raise InvalidRequest("'limit' is a whole number.", param="limit")
    return HubQuery(**values, sort=sort, limit=int(limit))  # type: ignore[arg-type]


def parse_switch(query: QueryParams, name: str) -> bool:
    """Return whether a switch is on; it is off when it is not there."""
    text = query.get(name, "").lower()
    if text not in _SWITCHES:
        raise InvalidRequest(f"'{name}' is true or false.", param=name)
    return _SWITCHES[text]


def describe_model(model: HubModel) -> dict[str, Any]:
    """Return a model as JSON shows it; null is what the Hub does not tell."""
    return msgspec.structs.asdict(model)


def describe_report(report: HubReport) -> dict[str, Any]:
    """Return the details of a model as JSON shows them."""
    details: HubDetails = report.details
    return {
        **describe_model(details.model),
        "architecture": details.architecture,
        "context_length": details.context_length,
        "dtypes": dict(details.dtypes),
        "size_bytes": details.size_bytes,
        "files": [msgspec.structs.asdict(file) for file in details.files],
        "fit": msgspec.structs.asdict(report.fit),
        **describe_freshness(report.freshness),
    }


def describe_freshness(freshness: Freshness) -> dict[str, Any]:
    """Return where an answer comes from, as JSON shows it."""
    problem = None if freshness.stale is None else describe(freshness.stale)
    return {
        "source": "cache" if freshness.is_cached else "hub",
        "age_s": round(freshness.age_s, 1),
        "stale": None if problem is None else {"code": problem.code, "message": problem.message},
    }


def describe_token(report: TokenReport) -> dict[str, Any]:
    """Return what may be told of the token."""
    account = report.account
    return {
        "source": report.source,
        "updated_at": report.updated_at,
        "valid": report.valid,
        "account": None if account is None else msgspec.structs.asdict(account),
    }


def _parse(data: bytes) -> TokenBody:
    return decode_body(data, _DECODER)
