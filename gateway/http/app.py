"""The ASGI application: which face answers where, and what every request passes before it."""

from collections.abc import Collection

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from gateway.core.hosts import is_loopback
from gateway.http.access import LIMIT_HEADERS, Door, RequireKeys
from gateway.http.collections import CollectionsFace
from gateway.http.control import ControlFace
from gateway.http.decision_ids import DECISION_ID
from gateway.http.decisions import DecisionsFace
from gateway.http.downloads import DownloadsFace
from gateway.http.embeddings import EmbeddingsFace
from gateway.http.errors import EXCEPTION_HANDLERS
from gateway.http.health import HealthFace
from gateway.http.hosts import Hosts
from gateway.http.hub import HubFace
from gateway.http.keys import KeysFace
from gateway.http.library import LibraryFace
from gateway.http.memory import MemoryFace
from gateway.http.metrics import MetricsFace
from gateway.http.middleware import (
    REQUEST_ID,
    RefuseForeignHosts,
    RefuseForeignPages,
    RefuseWhileDraining,
    RequestIds,
    UnexpectedErrors,
)
from gateway.http.models import ModelsFace
from gateway.http.openai import OpenAIFace
from gateway.http.orders import Counter, Learn
from gateway.http.pages import PagesFace
from gateway.http.rotations import RotationsFace
from gateway.http.routes import RoutesFace
from gateway.http.sse_events import STREAM_ID
from gateway.http.stream import NativeFace
from gateway.http.streams import StreamsFace
from gateway.services.gateway import Gateway
from gateway.settings import Settings


class _Application:
    """An ASGI application as the endpoint of one path. A mount would redirect POST with 307."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


def create_app(
    gateway: Gateway,
    settings: Settings,
    graphql: ASGIApp,
    *,
    learn: Learn = lambda request, read: None,
) -> Starlette:
    """Return the application that serves every face; `graphql` gets all of /graphql, and `learn` is
    told of the requests for tokens that may be answered by another way the next time."""
    endpoint = _Application(graphql)
    counter = Counter(gateway.streams, settings, learn)
    routes: list[BaseRoute] = [
        # Looked through one by one: first those that are asked for most.
        *NativeFace(counter).routes(),
        *OpenAIFace(gateway, counter).routes(),
        *HealthFace(gateway).routes(),
        *MetricsFace(gateway).routes(),
        *PagesFace(settings).routes(),
        *StreamsFace(gateway, settings).routes(),
        *ModelsFace(gateway).routes(),
        *ControlFace(gateway, settings).routes(),
        *LibraryFace(gateway, settings).routes(),
        *CollectionsFace(gateway, settings).routes(),
        *DownloadsFace(gateway, settings).routes(),
        *RotationsFace(gateway, settings).routes(),
        *KeysFace(gateway, settings).routes(),
        *HubFace(gateway).routes(),
        *DecisionsFace(gateway).routes(),
        *RoutesFace(gateway, settings).routes(),
        *EmbeddingsFace(gateway, settings).routes(),
        *MemoryFace(gateway).routes(),
        Route("/graphql", endpoint, name="graphql"),
        WebSocketRoute("/graphql", endpoint, name="graphql-ws"),
    ]
    hosts, door = Hosts(_choose_hosts(settings)), Door(settings.host)
    app = Starlette(
        routes=routes,
        middleware=_middleware(gateway, settings, routes, hosts, door),
        exception_handlers=EXCEPTION_HANDLERS,
    )
    app.router.redirect_slashes = False
    return app


def _choose_hosts(settings: Settings) -> Collection[str] | None:
    """Return the names that the gateway answers to beside this machine's own; None for any."""
    is_bound = is_loopback(settings.host) or settings.allowed_hosts
    return settings.allowed_hosts if is_bound else None


def _middleware(
    gateway: Gateway, settings: Settings, routes: list[BaseRoute], hosts: Hosts, door: Door
) -> list[Middleware]:
    """Outermost first: every reply has its id, and browsers may read the errors, too."""
    is_traced = bool(settings.traces_endpoint)
    proxies = Middleware(ProxyHeadersMiddleware, list(settings.trusted_proxies))
    stack = [proxies, Middleware(RequestIds, metrics=gateway.metrics, is_traced=is_traced)]
    if settings.cors_origins:
        stack.append(
            Middleware(
                CORSMiddleware,
                allow_origins=settings.cors_origins,
                allow_methods=["*"],
                allow_headers=["*"],
                expose_headers=[
                    REQUEST_ID,
                    STREAM_ID,
                    DECISION_ID,
                    "Retry-After",
                    "WWW-Authenticate",
                    *LIMIT_HEADERS,
                ],
            )
        )
    stack.append(Middleware(UnexpectedErrors))
    stack.append(Middleware(RefuseForeignHosts, hosts=hosts))
    stack.append(Middleware(RefuseForeignPages, allowed=settings.cors_origins))
    stack.append(
        Middleware(
            RequireKeys,
            gatekeeper=gateway.gatekeeper,
            streams=gateway.streams,
            routes=routes,
            door=door,
        )
    )
    stack.append(Middleware(RefuseWhileDraining, streams=gateway.streams, readable=["/graphql"]))
    return stack
