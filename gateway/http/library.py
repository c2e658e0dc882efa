"""`/api/v1/models/available`, `verify`, `delete` and `clean`: the files of models over HTTP."""

from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.core.library import Check, CleanPlan, Verification
from gateway.core.models import ModelInfo
from gateway.http.body import decode_body, read_request
from gateway.http.disconnect import unless_disconnected
from gateway.http.errors import json_response
from gateway.http.hub import parse_switch
from gateway.http.models import describe_faults
from gateway.services.gateway import Gateway
from gateway.services.library import LibraryEntry, LibraryListing
from gateway.settings import Settings


class VerifyBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    model: str
    check: Check | None = None
    force: bool | None = None


class DeleteBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    model: str


class CleanBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Without a reason nothing is removed."""

    unused_days: float | None = None
    max_bytes: int | None = None
    unfinished_days: float | None = None
    dry_run: bool | None = None


_VERIFY = msgspec.json.Decoder(VerifyBody)
_DELETE = msgspec.json.Decoder(DeleteBody)
_CLEAN = msgspec.json.Decoder(CleanBody)


class LibraryFace:
    """The routes that list, verify and remove."""

    def __init__(self, gateway: Gateway, settings: Settings) -> None:
        self._gateway = gateway
        self._settings = settings

    def routes(self) -> list[Route]:
        return [
            Route("/api/v1/models/available", self.available, methods=["GET"]),
            Route("/api/v1/models/verify", self.verify, methods=["POST"]),
            Route("/api/v1/models/delete", self.delete, methods=["POST"]),
            Route("/api/v1/models/clean", self.clean, methods=["POST"]),
        ]

    async def available(self, request: Request) -> Response:
        updates = parse_switch(request.query_params, "updates")
        return json_response(describe_library(await self._gateway.library.listing(updates=updates)))

    async def verify(self, request: Request) -> Response:
        body = await self._read(request, _VERIFY)
        work = partial(
            self._gateway.library.verify,
            body.model,
            body.check or Check.CHECKSUMS,
            force=bool(body.force),
        )
        verified = await unless_disconnected(request, work)
        return json_response(
            {
                **describe_entry(verified.entry),
                "warnings": list(verified.warnings),
                "fresh": verified.is_fresh,
            }
        )

    async def delete(self, request: Request) -> Response:
        removed = await self._gateway.library.delete((await self._read(request, _DELETE)).model)
        return json_response({"model": removed.id, "freed_bytes": removed.freed_bytes})

    async def clean(self, request: Request) -> Response:
        body = await self._read(request, _CLEAN)
        plan = await self._gateway.library.clean(
            unused_days=body.unused_days,
            max_bytes=body.max_bytes,
            unfinished_days=body.unfinished_days,
            dry_run=bool(body.dry_run),
        )
        return json_response({**describe_cleaning(plan), "dry_run": bool(body.dry_run)})

    async def _read(self, request: Request, decoder: msgspec.json.Decoder[Any]) -> Any:
        parse = partial(decode_body, decoder=decoder)
        return await read_request(request, self._settings.max_body_bytes, parse)


def describe_library(listing: LibraryListing) -> dict[str, Any]:
    return {
        "local_models": [describe_entry(entry) for entry in listing.local],
        "cached_hub_models": [describe_entry(entry) for entry in listing.hub],
        "ollama_models": [_describe_info(info) for info in listing.ollama],
        "oddities": [msgspec.structs.asdict(oddity) for oddity in listing.oddities],
        "disks": [msgspec.structs.asdict(disk) for disk in listing.disks],
        "provider_errors": describe_faults(listing.faults),
    }


def describe_entry(entry: LibraryEntry) -> dict[str, Any]:
    """Return a model's files as JSON shows them; null is unknown, times are Unix seconds."""
    shelved = entry.model
    return {
        "id": entry.id,
        "source": shelved.model.source,
        "format": shelved.model.card.format,
        "path": shelved.model.path,
        "repository": shelved.repository,
        "sha": shelved.model.revision,
        "refs": list(shelved.refs),
        "size_bytes": shelved.size_bytes,
        "usable": entry.is_usable,
        "brings_code": shelved.model.card.brings_code,
        "allowed": shelved.model.trust.allowed,
        "first_seen": entry.first_seen,
        "last_used": entry.last_used,
        "last_updated": shelved.updated_at,
        "update_available": entry.update_available,
        "verification": _describe_verification(entry.verification),
    }


def describe_cleaning(plan: CleanPlan) -> dict[str, Any]:
    return {
        "removed": [
            {"model": f"huggingface/{r.name}", "reason": r.reason, "freed_bytes": r.frees_bytes}
            for r in plan.removals
        ],
        "kept_in_use": [f"huggingface/{name}" for name in plan.kept],
        "unfinished": [
            {
                "repository": each.repository,
                "freed_bytes": each.size_bytes,
                "last_updated": each.changed_at,
            }
            for each in plan.unfinished
        ],
        "before_bytes": plan.before_bytes,
        "after_bytes": plan.after_bytes,
    }


def _describe_verification(found: Verification | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "verdict": found.verdict,
        "check": found.check,
        "reason": found.reason,
        "at": found.at,
    }


def _describe_info(info: ModelInfo) -> dict[str, Any]:
    return {
        "id": info.id,
        "state": info.state,
        "size_bytes": info.size_bytes,
        "metadata": dict(info.metadata),
    }
