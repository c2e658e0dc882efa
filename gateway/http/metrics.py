"""`/metrics`, for Prometheus."""

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.services.gateway import Gateway
from gateway.telemetry.exposition import render


class MetricsFace:
    """The route of the figures."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def routes(self) -> list[Route]:
        return [Route("/metrics", self.metrics, methods=["GET"])]

    async def metrics(self, request: Request) -> Response:
        samples = await self._gateway.metrics.gather()
        accept = request.headers.get("accept", "")
        body, content_type = await anyio.to_thread.run_sync(render, samples, accept)
        # As a header: given as media type, a charset would be added to the one that is there.
        return Response(body, headers={"Content-Type": content_type, "Cache-Control": "no-store"})
