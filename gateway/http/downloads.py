"""`/api/v1/downloads`: the queue of downloads over HTTP, and how they go as server-sent events."""

import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import msgspec
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway.core.downloads import (
    Download,
    DownloadOrder,
    DownloadPlan,
    DownloadState,
    parse_order,
)
from gateway.core.errors import GatewayError, InvalidRequest
from gateway.http.body import decode_body, read_request
from gateway.http.disconnect import unless_disconnected
from gateway.http.encoding import encode_json
from gateway.http.errors import json_response
from gateway.services.gateway import Gateway
from gateway.settings import Settings

logger = logging.getLogger(__name__)

LAST_EVENT = "end"
"""The id of a download's last event: a reader that comes back with it has heard everything."""
_RETRY = b"retry: 2000\n\n"
_Watch = Callable[[], AbstractAsyncContextManager[AsyncGenerator[Download, None]]]
_END_NAMES = {
    DownloadState.SUCCEEDED: "completed",
    DownloadState.SKIPPED: "completed",
    DownloadState.FAILED: "failed",
    DownloadState.CANCELLED: "cancelled",
}


class DownloadBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`dryRun` is `dry_run`."""

    repo: str
    revision: str | None = None
    patterns: list[str] | None = None
    force: bool | None = None
    dry_run: bool | None = None
    dryRun: bool | None = None


_DECODER = msgspec.json.Decoder(DownloadBody)


class DownloadsFace:
    """The routes of downloads."""

    def __init__(self, gateway: Gateway, settings: Settings) -> None:
        self._downloads = gateway.downloads
        self._settings = settings

    def routes(self) -> list[Route]:
        one = "/api/v1/downloads/{id}"
        return [
            Route("/api/v1/downloads", self.list, methods=["GET"]),
            Route("/api/v1/downloads", self.start, methods=["POST"]),
            Route(one, self.get, methods=["GET"]),
            Route(one, self.forget, methods=["DELETE"]),
            Route(f"{one}/events", self.events, methods=["GET"]),
            Route(f"{one}/pause", self.pause, methods=["POST"]),
            Route(f"{one}/resume", self.resume, methods=["POST"]),
            Route(f"{one}/cancel", self.cancel, methods=["POST"]),
        ]

    async def start(self, request: Request) -> Response:
        order, is_dry = await read_request(request, self._settings.max_body_bytes, _parse)
        if is_dry:
            plan = await unless_disconnected(request, partial(self._downloads.plan, order))
            return json_response(describe_plan(plan))
        download = await self._downloads.start(order)
        headers = {"Location": f"/api/v1/downloads/{download.id}"}
        return json_response(describe_download(download), 202, headers)

    async def list(self, request: Request) -> Response:
        limit = request.query_params.get("limit", "100")
        if not (limit.isascii() and limit.isdecimal() and len(limit) < 9):
            raise InvalidRequest("'limit' is not a number.", param="limit")
        found = await self._downloads.newest(int(limit), _states(request))
        return json_response({"downloads": [describe_download(each) for each in found]})

    async def get(self, request: Request) -> Response:
        return json_response(describe_download(await self._downloads.find(_id(request))))

    async def forget(self, request: Request) -> Response:
        return json_response(describe_download(await self._downloads.forget(_id(request))))

    async def pause(self, request: Request) -> Response:
        return json_response(describe_download(await self._downloads.pause(_id(request))))

    async def resume(self, request: Request) -> Response:
        return json_response(describe_download(await self._downloads.resume(_id(request))), 202)

    async def cancel(self, request: Request) -> Response:
        return json_response(describe_download(await self._downloads.cancel(_id(request))))

    async def events(self, request: Request) -> Response:
        """Tell the present, then each change; the last event says how it ended."""
        if request.method != "GET":  # HEAD, which comes with it: it would watch, and not read
            raise HTTPException(405, headers={"Allow": "GET"})
        download = await self._downloads.find(_id(request))
        if request.headers.get("last-event-id") == LAST_EVENT and download.ended:
            return Response(status_code=204)  # on which EventSource connects no more
        return _DownloadEvents(partial(self._downloads.watch, [download.id]), self._settings)


class _DownloadEvents(Response):
    """Takes a watcher's place, then tells. Being refused one is still a reply with a status."""

    def __init__(self, watch: _Watch, settings: Settings) -> None:
        super().__init__()
        self._watch = watch
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._watch() as changes:
            reply = EventSourceResponse(
                _frames(changes),
                headers={"Cache-Control": "no-cache"},
                ping=self._settings.ping_interval_s,
                ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
                sep="\n",
                send_timeout=self._settings.send_timeout_s,
                shutdown_grace_period=2.0,
            )
            await reply(scope, receive, send)


async def _frames(changes: AsyncGenerator[Download, None]) -> AsyncGenerator[bytes, None]:
    yield _RETRY
    try:
        async for download in changes:
            yield _frame(download)
    except GatewayError as error:
        # Without an end, so the reader connects again: it stops, or the database is away.
        logger.info("a download is told no further: %s", error.message)


def describe_download(download: Download) -> dict[str, Any]:
    """Return a download as JSON shows it; null is unknown, or does not apply."""
    order, progress = download.order, download.progress
    rate, eta_s = progress.rate, progress.eta_s
    return {
        "id": download.id,
        "repo": order.repo,
        "source": order.source,
        "model": order.name,
        "revision": order.revision,
        "patterns": list(order.patterns),
        "force": order.force,
        "state": download.state,
        "bytes_done": progress.bytes_done,
        "bytes_total": progress.bytes_total,
        "files_done": progress.files_done,
        "files_total": progress.files_total,
        "bytes_per_s": None if rate is None else round(rate),
        "eta_s": None if eta_s is None else round(eta_s, 1),
        "commit": download.commit,
        "path": download.path,
        "message": download.message,
        "error": None if download.error is None else msgspec.structs.asdict(download.error),
        "created_at": download.created_at,
        "updated_at": download.updated_at,
    }


def describe_plan(plan: DownloadPlan) -> dict[str, Any]:
    return {
        "repo": plan.order.repo,
        "source": plan.order.source,
        "model": plan.order.name,
        "commit": plan.commit,
        "files": [{"path": file.path, "size_bytes": file.size_bytes} for file in plan.files],
        "bytes_total": plan.bytes_total,
        "bytes_to_fetch": plan.bytes_to_fetch,
        "free_bytes": plan.free_bytes,
        "fits": plan.fits,
        "path": plan.path,
    }


def _parse(data: bytes) -> tuple[DownloadOrder, bool]:
    body = decode_body(data, _DECODER)
    order = parse_order(
        body.repo,
        revision=body.revision,
        patterns=body.patterns or (),
        force=bool(body.force),
    )
    return order, bool(body.dry_run or body.dryRun)


def _frame(download: Download) -> bytes:
    name = _END_NAMES.get(download.state, "progress")
    event_id = f"id: {LAST_EVENT}\n".encode() if download.ended else b""
    data = encode_json(describe_download(download))
    return b"event: " + name.encode() + b"\n" + event_id + b"data: " + data + b"\n\n"


def _states(request: Request) -> Sequence[DownloadState]:
    given = ",".join(request.query_params.getlist("state")).split(",")
    names = [name.strip().upper() for name in given if name.strip()]
    for name in names:
        if name not in set(DownloadState):
            raise InvalidRequest(
                f"There is no state '{name[:40]}'.",
                hint=f"It is one of: {', '.join(DownloadState)}.",
                param="state",
            )
    return [DownloadState(name) for name in names]


def _id(request: Request) -> str:
    download_id: str = request.path_params["id"]
    return download_id
