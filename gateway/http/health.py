"""`/health/live`, `/health/ready`, and `/`, which says what is served here."""

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from gateway import __version__
from gateway.http.errors import json_response
from gateway.services.gateway import Gateway

FACES = {
    "native": "/api/v1/stream",
    "generate": "/api/v1/generate",
    "embed": "/api/v1/embed",
    "models": "/api/v1/models",
    "openai": "/v1",
    "graphql": "/graphql",
    "live": "/health/live",
    "ready": "/health/ready",
}


class HealthFace:
    """The routes for load balancers and for people who look what this is."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def routes(self) -> list[Route]:
        return [
            Route("/", self.index, methods=["GET"]),
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

    async def index(self, request: Request) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            headers = {"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'"}
            return HTMLResponse(_page(), headers=headers)
        return json_response({"name": "Model Gateway", "version": __version__, "faces": FACES})


def _page() -> str:
    items = "".join(f'<li>{name}: <a href="{path}">{path}</a></li>' for name, path in FACES.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Model Gateway</title>'
        f"</head><body><h1>Model Gateway {__version__}</h1><ul>{items}</ul></body></html>"
    )
