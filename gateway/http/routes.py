"""`/api/v1/routes`: the names that mean other models, and what would be decided by them."""

import re
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway import telemetry
from gateway.core.embeddings import EmbedRequest
from gateway.core.errors import InvalidRequest, RouteNotFound
from gateway.core.messages import GenerateRequest
from gateway.core.rules import Rule, RuleDraft
from gateway.core.virtual import Candidate, Order
from gateway.http.body import decode_body, read_request
from gateway.http.caller import caller_of
from gateway.http.embeddings import EmbedBody, parse_embed_request
from gateway.http.errors import json_response
from gateway.http.stream import parse_stream_request
from gateway.services.gateway import Gateway
from gateway.settings import Settings

_TAG = re.compile(r'(?:W/)?"(\d{1,18})"')


class CandidateBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    model: str
    weight: float = 1.0


class RouteBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Either `model`, for an alias, or `candidates`."""

    model: str | None = None
    candidates: list[str | CandidateBody] | None = None
    order: Order | None = None
    continue_on_failure: bool | None = None
    max_continuations: int | None = None


class _Peek(msgspec.Struct):
    """Embeddings have an input."""

    input: msgspec.Raw = msgspec.Raw(b"null")


_BODY = msgspec.json.Decoder(RouteBody)
_EMBED: msgspec.json.Decoder[Any] = msgspec.json.Decoder(EmbedBody)
_PEEK = msgspec.json.Decoder(_Peek)


class RoutesFace:
    """The routes of routes."""

    def __init__(self, gateway: Gateway, settings: Settings) -> None:
        self._gateway = gateway
        self._settings = settings

    def routes(self) -> list[Route]:
        one = "/api/v1/routes/{name:path}"
        return [
            Route("/api/v1/routes", self.list, methods=["GET"]),
            Route("/api/v1/routes/explain", self.explain, methods=["POST"]),
            Route(one, self.show, methods=["GET"]),
            Route(one, self.put, methods=["PUT"]),
            Route(one, self.remove, methods=["DELETE"]),
        ]

    async def list(self, _request: Request) -> Response:
        rules = self._gateway.rules.all()
        return json_response({"routes": [describe_rule(rule) for rule in rules]})

    async def show(self, request: Request) -> Response:
        return _reply(self._gateway.rules.find(_name(request)))

    async def put(self, request: Request) -> Response:
        parse = partial(parse_route, name=_name(request))
        draft = await read_request(request, self._settings.max_body_bytes, parse)
        expected = _expected(request)
        is_new = all(rule.name != draft.name for rule in self._gateway.rules.all())
        by = caller_of(request).id
        rule = await self._gateway.rules.set(draft, expected=expected, by=by)
        warnings = await self._gateway.rules.warnings(draft)
        return _reply(rule, 201 if is_new else 200, warnings=warnings)

    async def remove(self, request: Request) -> Response:
        removed = await self._gateway.rules.remove(_name(request), expected=_expected(request))
        return json_response(describe_rule(removed))

    async def explain(self, request: Request) -> Response:
        """Tell what would be decided about a body of the native face now; it is not run."""
        parse = partial(self._parse_asked, request_id=telemetry.request_id.get())
        asked = await read_request(request, self._settings.max_body_bytes, parse)
        caller = caller_of(request)
        return json_response(
            await self._gateway.decisions.explain(asked, face="native", caller=caller)
        )

    def _parse_asked(self, data: bytes, *, request_id: str) -> GenerateRequest | EmbedRequest:
        if bytes(decode_body(data, _PEEK).input) == b"null":
            return parse_stream_request(data, request_id).request
        most = self._settings.max_embed_inputs
        return parse_embed_request(
            data, decoder=_EMBED, request_id=request_id, max_inputs=most
        ).request


def parse_route(data: bytes, *, name: str) -> RuleDraft:
    """Return what a body wants `name` to mean; raises InvalidRequest and its kind."""
    body = decode_body(data, _BODY)
    candidates = [
        Candidate(each) if isinstance(each, str) else Candidate(each.model, each.weight)
        for each in body.candidates or ()
    ]
    return RuleDraft(
        name,
        body.model,
        tuple(candidates),
        body.order or "listed",
        bool(body.continue_on_failure),
        body.max_continuations,
    )


def describe_rule(rule: Rule) -> dict[str, Any]:
    """Return a route as JSON shows it; times are Unix seconds."""
    draft = rule.draft
    told: dict[str, Any] = {"name": draft.name, "source": rule.source}
    if draft.model is not None:
        told["model"] = draft.model
    else:
        told |= {
            "order": draft.order,
            "candidates": draft.candidates,
            "continue_on_failure": draft.continue_on_failure,
            "max_continuations": draft.max_continuations,
        }
    return told | {
        "version": rule.version,
        "updated_at": rule.updated_at,
        "updated_by": rule.updated_by,
        "problem": rule.problem,
    }


def _reply(rule: Rule, status: int = 200, **more: Any) -> Response:
    headers = {"ETag": f'"{rule.version}"'}
    return json_response({**describe_rule(rule), **more}, status, headers)


def _name(request: Request) -> str:
    name: str = request.path_params["name"]
    if not name:
        raise RouteNotFound("A route has a name.", param="name")
    return name


def _expected(request: Request) -> int | None:
    """Return the version that the request is about: `If-Match` names one, `If-None-Match: *` is
    for a name that means nothing yet."""
    if request.headers.get("if-none-match", "").strip() == "*":
        return 0
    given = request.headers.get("if-match", "*").strip()
    if given == "*":
        return None
    if (tag := _TAG.fullmatch(given)) is None:
        raise InvalidRequest(
            "'If-Match' is not the version of a route.", hint='It is the ETag, such as "7".'
        )
    return int(tag[1])
