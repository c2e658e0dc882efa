"""`/health/live` and `/health/ready`."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.http.errors import json_response
from gateway.services.gateway import Gateway


class HealthFace:
    """The routes for load balancers."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def routes(self) -> list[Route]:
        return [
            Route("/health/live", self.live, methods=["GET"]),
            Route("/health/ready", self.ready, methods=["GET"]),
        ]

    async def live(self, _request: Request) -> Response:
        return json_response({"status": "ok"})

    async def ready(self, _request: Request) -> Response:
        reasons = self._gateway.unready_reasons()
        body = {
            "status": "unready" if reasons else "ready",
            "reasons": reasons,
            "records": self._gateway.describe_records(),
        }
        return json_response(body, 503 if reasons else 200)
