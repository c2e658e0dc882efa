"""The pages that the gateway serves to browsers: what is at `/`, and the chat page.

Neither holds any data, so neither needs a key: what a page asks for is asked with one.
"""

from pathlib import Path

from starlette.datastructures import Headers, QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Scope

from gateway import __version__
from gateway.http.errors import json_response
from gateway.settings import Settings

FACES = {
    "native": "/api/v1/stream",
    "generate": "/api/v1/generate",
    "embed": "/api/v1/embed",
    "models": "/api/v1/models",
    "openai": "/v1",
    "graphql": "/graphql",
    "live": "/health/live",
    "ready": "/health/ready",
    "metrics": "/metrics",
}

_FOLDER = Path(__file__).parent / "chat"
_FILES = {
    "/chat": ("chat.html", "text/html"),
    "/chat.css": ("chat.css", "text/css"),
    "/chat.js": ("chat.js", "text/javascript"),
    "/chat-stream.js": ("chat-stream.js", "text/javascript"),
    "/chat-events.js": ("chat-events.js", "text/javascript"),
}
CHAT_ROUTES = tuple(_FILES)

_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)


def opens_page(scope: Scope) -> bool:
    """Tell whether a person opens the address in a browser, and asks nothing with it."""
    if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
        return False
    names_html = "text/html" in Headers(scope=scope).get("accept", "")
    return names_html and "query" not in QueryParams(scope["query_string"])


class PagesFace:
    """The routes of the pages. Reads their files once."""

    def __init__(self, settings: Settings) -> None:
        graphiql = _GRAPHIQL if settings.environment == "development" else ""
        self._index = _INDEX.replace("<!-- graphiql -->", graphiql).encode()
        self._files = {
            path: ((_FOLDER / name).read_bytes(), media_type)
            for path, (name, media_type) in _FILES.items()
        }

    def routes(self) -> list[Route]:
        return [
            Route("/", self.index, methods=["GET"]),
            *(Route(path, self.file, methods=["GET"]) for path in self._files),
        ]

    async def index(self, request: Request) -> Response:
        if opens_page(request.scope):
            return _page(self._index, "text/html")
        return json_response({"name": "Model Gateway", "version": __version__, "faces": FACES})

    async def file(self, request: Request) -> Response:
        return _page(*self._files[request.url.path])


def _page(content: bytes, media_type: str) -> Response:
    headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
    return Response(content, headers=headers, media_type=media_type)


_GRAPHIQL = ' Look around in <a href="/graphql">GraphiQL</a>.'
_INDEX = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Model Gateway</title><link rel="icon" href="data:,"><link rel="stylesheet" href="/chat.css">
</head><body class="index"><h1>Model Gateway</h1>
<p><a href="/chat">Chat</a> with a model here.<!-- graphiql --></p>
<p>Programs speak to</p><ul>
<li><code>POST /api/v1/stream</code>: an answer as server-sent events</li>
<li><code>/v1</code>: what clients of the OpenAI API take as their base URL</li>
<li><code>POST /graphql</code>: models, loads, downloads and more, live by subscription</li>
<li><a href="/health/ready">/health/ready</a>: whether it serves</li></ul>
<p>If there are API keys, every request needs one:
<code>authorization: Bearer gw-...</code></p></body></html>
"""
