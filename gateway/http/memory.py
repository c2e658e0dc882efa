"""`GET /api/v1/memory`: what the models of all providers hold of this machine's memory."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.core.ledger import DeviceAccount, MemoryReport
from gateway.core.models import Resident
from gateway.http.errors import json_response
from gateway.services.gateway import Gateway


class MemoryFace:
    """The route that shows the ledger."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def routes(self) -> list[Route]:
        return [Route("/api/v1/memory", self.memory, methods=["GET"])]

    async def memory(self, request: Request) -> Response:
        return json_response(describe_memory(await self._gateway.memory.report()))


def describe_memory(report: MemoryReport) -> dict[str, Any]:
    """Return the ledger as JSON shows it; null is unknown."""
    return {
        "eviction_policy": report.policy,
        "devices": [_describe_device(account) for account in report.devices],
        "elsewhere": list(report.elsewhere),
        "evictions": [
            {"provider": each.provider, "reason": each.reason, "count": each.count}
            for each in report.evictions
        ],
    }


def _describe_device(account: DeviceAccount) -> dict[str, Any]:
    return {
        "device": account.device,
        "budget_bytes": account.budget_bytes,
        "used_bytes": account.used_bytes,
        "reserved_bytes": account.reserved_bytes,
        "overhead_bytes": account.overhead_bytes,
        "free_bytes": account.free_bytes,
        "providers": account.used_by_provider,
        "models": [_describe_model(resident) for resident in account.residents],
    }


def _describe_model(resident: Resident) -> dict[str, Any]:
    return {
        "model": str(resident.ref),
        "provider": resident.ref.provider,
        "memory_bytes": resident.memory_bytes,
        "basis": resident.basis,
        "in_use": resident.leases > 0,
        "pinned": resident.pinned,
    }
