"""A gateway of `build_gateway` behind a real server on loopback."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp

from gateway.core.ports import Provider, Tracer
from gateway.core.sessions import Session
from gateway.engine.memory.ledger import MemoryLedger
from gateway.http.app import create_app
from gateway.http.connections import ConnectionGuard, ConnectionLimits
from gateway.http.express.way import ExpressWay
from gateway.http.protocol import guarded_protocol
from gateway.http.server import VANISHED_S, listen
from gateway.services.gateway import Gateway
from gateway.settings import Settings
from tests.integration.gateways import build_gateway
from tests.integration.http.primed import learning, primed_protocol


class Way:
    """How requests for tokens come in: each by the long way first, or each by the express one."""

    is_express = False


class Served:
    """A gateway that is being served, and a client for it."""

    def __init__(self, url: str, gateway: Gateway, client: httpx.AsyncClient) -> None:
        self.url = url
        self.gateway = gateway
        self.client = client

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def last_session(self) -> Session:
        """Return the record of the newest stream once it is closed and written."""
        while self.gateway.streams.live_count:
            await anyio.lowlevel.checkpoint()
        assert await self.gateway.recorder.flush(5)
        [session] = await self.gateway.sessions.recent(1)
        return session


@asynccontextmanager
async def serving(
    *providers: Provider,
    graphql: ASGIApp = PlainTextResponse("graphql"),  # noqa: B008
    wrap: Callable[[ASGIApp], ASGIApp] = lambda app: app,
    patience_s: float = 30.0,
    max_connections: int = 5000,
    vanished_s: float = VANISHED_S,
    retry_sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    tracer: Tracer | None = None,
    ledger: MemoryLedger | None = None,
    **values: Any,
) -> AsyncIterator[Served]:
    """Serve `providers` with `values` as settings; nothing may take longer than `patience_s`."""
    # A listing may take long on a machine that is busy with other things.
    chosen = {"catalog_timeout_s": 20.0} | values
    settings = Settings(providers=tuple(p.name for p in providers), node="test", **chosen)
    with listen("127.0.0.1", 0, vanished_s=vanished_s) as listener, anyio.fail_after(patience_s):
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with anyio.create_task_group() as tasks:
            gateway = build_gateway(
                settings, tasks, providers, retry_sleep=retry_sleep, tracer=tracer, ledger=ledger
            )
            await gateway.gatekeeper.load()
            tasks.start_soon(gateway.recorder.run)
            tasks.start_soon(gateway.router.health.watch)
            tasks.start_soon(gateway.decisions.run)
            limits = ConnectionLimits(max_connections, head_s=settings.head_timeout_s)
            express = ExpressWay(gateway, settings)
            protocol = primed_protocol if Way.is_express else guarded_protocol
            learn = learning(express) if Way.is_express else express.learn
            server = uvicorn.Server(
                uvicorn.Config(
                    wrap(create_app(gateway, settings, graphql, learn=learn)),
                    lifespan="off",
                    ws="none",
                    log_config=None,
                    access_log=False,
                    timeout_graceful_shutdown=2,
                    http=protocol(ConnectionGuard(limits), express),
                )
            )
            done = anyio.Event()
            tasks.start_soon(_serve, server, listener, done)
            # verify: no certificates are loaded, which takes longer than most tests.
            async with httpx.AsyncClient(
                base_url=url, timeout=20, trust_env=False, verify=False
            ) as client:
                yield Served(url, gateway, client)
            server.should_exit = True
            await done.wait()
            tasks.cancel_scope.cancel()


async def _serve(server: uvicorn.Server, listener: socket.socket, done: anyio.Event) -> None:
    await server.serve([listener])
    done.set()
