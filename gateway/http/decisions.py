"""`/api/v1/decisions`: why requests went where they went."""

import math

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.core.decision_records import MAX_LISTED, OUTCOMES, DecisionFilter, require_limit
from gateway.core.errors import InvalidRequest
from gateway.http.caller import caller_of
from gateway.http.errors import json_response
from gateway.services.gateway import Gateway

_TEXTS = ("requested_model", "provider", "model", "error", "caller")


class DecisionsFace:
    """The routes of decisions. Who may not read records sees his own."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def routes(self) -> list[Route]:
        return [
            Route("/api/v1/decisions", self.list, methods=["GET"]),
            Route("/api/v1/decisions/{id}", self.show, methods=["GET"]),
        ]

    async def list(self, request: Request) -> Response:
        wanted = parse_filter(request.query_params)
        found = await self._gateway.decisions.recent(wanted, caller=caller_of(request))
        return json_response({"decisions": found})

    async def show(self, request: Request) -> Response:
        decision_id: str = request.path_params["id"]
        return json_response(
            await self._gateway.decisions.find(decision_id, caller=caller_of(request))
        )


def parse_filter(query: QueryParams) -> DecisionFilter:
    """Return what the parameters of a listing ask for; raises InvalidRequest."""
    known = {*_TEXTS, "outcome", "since", "until", "limit"}
    for name in query:
        if name not in known:
            raise InvalidRequest(
                f"There is no parameter '{name}'.",
                hint=f"There are: {', '.join(sorted(known))}.",
                param=name,
            )
    outcome = query.get("outcome")
    if outcome not in (None, *OUTCOMES):
        raise InvalidRequest(
            f"'outcome' is '{outcome}'; it must be one of {', '.join(OUTCOMES)}.", param="outcome"
        )
    return DecisionFilter(
        **{name: query.get(name) for name in _TEXTS},
        outcome=outcome,
        since=_read_time(query, "since"),
        until=_read_time(query, "until"),
        limit=_read_limit(query),
    )


def _read_time(query: QueryParams, name: str) -> float | None:
    text = query.get(name)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < 2**33:
        raise InvalidRequest(f"'{name}' is not a time in Unix seconds.", param=name)
    return seconds


def _read_limit(query: QueryParams) -> int:
    text = query.get("limit", str(DecisionFilter().limit))
    if not (text.isascii() and text.isdecimal() and len(text) < 9):
        raise InvalidRequest(f"'limit' must be from 1 to {MAX_LISTED}.", param="limit")
    return require_limit(int(text))
