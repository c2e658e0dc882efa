"""`GET /api/v1/models`: every provider's models, the names that stand for several, and what is
wrong with the silent ones."""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any, TypeVar

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.core.errors import InvalidRequest
from gateway.core.models import Capability, ModelFilter, ModelInfo, select_models
from gateway.core.states import ModelState
from gateway.http.errors import json_response
from gateway.problems import describe
from gateway.services.catalog import ProviderFault
from gateway.services.gateway import Gateway

E = TypeVar("E", bound=StrEnum)


class ModelsFace:
    """The listing of the native face; answers within the catalogue's own bound."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def routes(self) -> list[Route]:
        return [Route("/api/v1/models", self.models, methods=["GET"])]

    async def models(self, request: Request) -> Response:
        wanted = parse_filter(request.query_params)
        listing = await self._gateway.listing()
        return json_response(
            {
                "models": [_describe(model) for model in select_models(listing.models, wanted)],
                "provider_errors": describe_faults(listing.faults),
            }
        )


def describe_faults(faults: Sequence[ProviderFault]) -> list[dict[str, Any]]:
    """Return one entry for each provider whose models are missing from the listing."""
    problems = [(fault.provider, describe(fault.error)) for fault in faults]
    return [
        {
            "provider": name,
            "code": about.code,
            "message": about.message,
            "hint": about.hint,
            "retryable": about.retryable,
        }
        for name, about in problems
    ]


def parse_filter(query: QueryParams) -> ModelFilter:
    """Return the filter that `provider`, `state`, `capability` and `text` make.

    Each but `text` may be given several times or as a list with commas.
    """
    return ModelFilter(
        providers=frozenset(_values(query, "provider")),
        states=_members(ModelState, (text.upper() for text in _values(query, "state")), "state"),
        capabilities=_members(
            Capability, (text.lower() for text in _values(query, "capability")), "capability"
        ),
        text=query.get("text", ""),
    )


def _values(query: QueryParams, name: str) -> list[str]:
    given = ",".join(query.getlist(name)).split(",")
    return [value.strip() for value in given if value.strip()]


def _members(kind: type[E], values: Iterable[str], param: str) -> frozenset[E]:
    found = set()
    for value in values:
        if value not in set(kind):
            raise InvalidRequest(
                f"There is no {param} '{value}'.",
                hint=f"It is one of: {', '.join(kind)}.",
                param=param,
            )
        found.add(kind(value))
    return frozenset(found)


def _describe(model: ModelInfo) -> dict[str, Any]:
    described: dict[str, Any] = {
        "id": model.id,
        "provider": model.ref.provider,
        "name": model.ref.qualified_model,
        "state": model.state,
        "size_bytes": model.size_bytes,
        "context_length": model.context_length,
        "capabilities": list(model.capabilities),
        "batched": model.batched,
        "virtual": model.virtual,
        "metadata": dict(model.metadata),
    }
    if model.message is not None:
        described["message"] = model.message
    return described
