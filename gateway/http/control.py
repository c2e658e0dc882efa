"""`/api/v1/models/load`, `unload`, `status` and `config`: the lifecycle of models over HTTP."""

from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.core.errors import GatewayError, InvalidRequest
from gateway.core.loading import (
    ConfigChange,
    ConfigReport,
    Device,
    Dtype,
    LoadConfig,
    LoadPlan,
    ModelStatus,
    Quantization,
)
from gateway.core.states import ModelState
from gateway.core.written_config import describe_config
from gateway.http.body import decode_body, read_request
from gateway.http.disconnect import unless_disconnected
from gateway.http.errors import json_response
from gateway.http.options import parse_keep_alive, to_options
from gateway.http.stream import NativeOptionsBody
from gateway.problems import describe
from gateway.services.gateway import Gateway
from gateway.settings import Settings


class LoadConfigBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    device: Device | None = None
    dtype: Dtype | None = None
    quantization: Quantization | None = None
    context_length: int | None = None


class LoadBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    model: str
    config: LoadConfigBody | None = None
    pinned: bool | None = None
    keep_alive: float | str | None = None
    dry_run: bool | None = None
    wait: bool | None = None


class UnloadBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    model: str
    force: bool | None = None
    wait: bool | None = None


class ConfigBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A part that is there replaces that part whole; null for `keep_alive` is the gateway's own."""

    load: LoadConfigBody | None = None
    defaults: NativeOptionsBody | None = None
    keep_alive: float | str | msgspec.UnsetType | None = msgspec.UNSET
    pinned: bool | None = None


_LOAD = msgspec.json.Decoder(LoadBody)
_UNLOAD = msgspec.json.Decoder(UnloadBody)
_CONFIG = msgspec.json.Decoder(ConfigBody)


class ControlFace:
    """The routes that load, unload and configure."""

    def __init__(self, gateway: Gateway, settings: Settings) -> None:
        self._gateway = gateway
        self._settings = settings

    def routes(self) -> list[Route]:
        return [
            Route("/api/v1/models/load", self.load, methods=["POST"]),
            Route("/api/v1/models/unload", self.unload, methods=["POST"]),
            Route("/api/v1/models/status", self.status, methods=["GET"]),
            Route("/api/v1/models/config", self.config, methods=["GET"]),
            Route("/api/v1/models/config", self.configure, methods=["PUT"]),
        ]

    async def load(self, request: Request) -> Response:
        body = await self._read(request, _LOAD)
        config = to_load_config(body.config, "config.")
        if body.dry_run:
            return json_response(
                describe_plan(await self._gateway.control.plan(body.model, config))
            )
        load = partial(
            self._gateway.control.load,
            body.model,
            config,
            pinned=body.pinned,
            keep_alive_s=parse_keep_alive(body.keep_alive),
            wait=bool(body.wait),
        )
        status = await unless_disconnected(request, load)
        return _reply(status, ModelState.LOADED)

    async def unload(self, request: Request) -> Response:
        body = await self._read(request, _UNLOAD)
        unload = partial(
            self._gateway.control.unload,
            body.model,
            force=bool(body.force),
            wait=bool(body.wait),
        )
        status = await unless_disconnected(request, unload)
        return _reply(status, ModelState.NOT_LOADED)

    async def status(self, request: Request) -> Response:
        control = self._gateway.control
        if "model" in request.query_params:
            status = await control.status(request.query_params["model"])
            return json_response(describe_status(status))
        statuses = await control.statuses()
        return json_response({"models": [describe_status(status) for status in statuses]})

    async def config(self, request: Request) -> Response:
        report = await self._gateway.control.config(_named(request))
        return json_response(describe_report(report))

    async def configure(self, request: Request) -> Response:
        name = _named(request)
        change = to_change(await self._read(request, _CONFIG))
        return json_response(describe_report(await self._gateway.configs.configure(name, change)))

    async def _read(self, request: Request, decoder: msgspec.json.Decoder[Any]) -> Any:
        parse = partial(decode_body, decoder=decoder)
        return await read_request(request, self._settings.max_body_bytes, parse)


def to_load_config(body: LoadConfigBody | None, prefix: str) -> LoadConfig | None:
    """Return the config; raises InvalidRequest for a context that nobody could have."""
    if body is None:
        return None
    if body.context_length is not None and body.context_length < 1:
        raise InvalidRequest(
            f"'context_length' is {body.context_length}; it must be at least 1.",
            param=f"{prefix}context_length",
        )
    return LoadConfig(
        device=body.device or "auto",
        dtype=body.dtype or "auto",
        quantization=body.quantization or "none",
        context_length=body.context_length,
    )


def to_change(body: ConfigBody) -> ConfigChange:
    keep_alive = body.keep_alive
    return ConfigChange(
        load=to_load_config(body.load, "load."),
        defaults=None if body.defaults is None else to_options(body.defaults, "defaults."),
        keep_alive_s=(
            keep_alive
            if isinstance(keep_alive, msgspec.UnsetType)
            else parse_keep_alive(keep_alive)
        ),
        pinned=body.pinned,
    )


def describe_status(status: ModelStatus) -> dict[str, Any]:
    """Return a status as JSON shows it; null is unknown, or does not apply."""
    described = msgspec.structs.asdict(status)
    del described["ref"]
    expires_in_s = status.expires_in_s
    return {
        "model": str(status.ref),
        **described,
        "config": describe_config(status.config),
        "expires_in_s": None if expires_in_s is None else round(expires_in_s, 3),
        "error": None if status.error is None else _describe_error(status.error),
    }


def describe_plan(plan: LoadPlan) -> dict[str, Any]:
    return {
        "model": str(plan.ref),
        "need_bytes": plan.need_bytes,
        "free_bytes": plan.free_bytes,
        "budget_bytes": plan.budget_bytes,
        "evictions": [str(ref) for ref in plan.evictions],
        "fits": plan.fits,
        "already_loaded": plan.already_loaded,
        "reason": plan.reason,
    }


def describe_report(report: ConfigReport) -> dict[str, Any]:
    return {
        "model": str(report.ref),
        "config": describe_config(report.config),
        "requires_reload": report.requires_reload,
    }


def _describe_error(error: GatewayError) -> dict[str, Any]:
    # Without the id of a request: it is not this one that failed.
    problem = describe(error)
    return {
        "code": problem.code,
        "message": problem.message,
        "hint": problem.hint,
        "retryable": problem.retryable,
    }


def _reply(status: ModelStatus, wanted: ModelState) -> Response:
    """Return 200 when it is as it was asked to be, 202 while it is on its way."""
    return json_response(describe_status(status), 200 if status.state is wanted else 202)


def _named(request: Request) -> str:
    name = request.query_params.get("model")
    if name is None:
        raise InvalidRequest("Which model? Add ?model= to the address.", param="model")
    return name
