"""The GraphQL endpoint over real services, served by uvicorn on loopback."""

import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.lowlevel
import uvicorn
from msgspec.structs import replace

from gateway.core.models import Capability, ModelInfo, ModelStateChange
from gateway.core.names import ModelRef
from gateway.core.ports import DownloadSource, ProviderStore, SessionStore
from gateway.core.states import ModelState
from gateway.http.app import create_app
from gateway.http.stream import read_stream_values
from gateway.settings import Settings
from gateway.testing import (
    MemoryProviderStore,
    MemorySessionStore,
)
from schema import create_graphql
from tests.integration.gateways import build_gateway
from tests.integration.schema.listing_provider import ListingProvider
from tests.integration.schema.loading_provider import LoadingProvider

NODE = "test-node"
LLAMA = ModelInfo(
    ModelRef("ollama", "llama3:8b"),
    state=ModelState.LOADED,
    size_bytes=4_661_224_676,
    context_length=8192,
    capabilities=(Capability.CHAT, Capability.TOOLS),
    metadata=(("family", "llama"), ("quantization", "Q4_0")),
    batched=True,
)
LLAVA = ModelInfo(
    ModelRef("ollama", "llava:7b"),
    size_bytes=4_733_363_377,
    capabilities=(Capability.CHAT, Capability.VISION),
)
SMOL = ModelInfo(
    ModelRef("huggingface", "smol"),
    state=ModelState.FAILED,
    size_bytes=270_000_000,
    capabilities=(Capability.CHAT, Capability.COMPLETION),
    message="The weights are torn.",
)

TINY = ModelInfo(ModelRef("memory", "tiny"), size_bytes=1000)


@dataclass
class GraphQLServer:
    """What a test may set up before `serving`, and what is there once it is served."""

    providers: Mapping[str, ListingProvider] = field(default_factory=dict)
    sessions: SessionStore = field(default_factory=MemorySessionStore)
    provider_states: ProviderStore = field(default_factory=MemoryProviderStore)
    catalog_timeout_s: float = 0.8
    ide: bool = False
    is_tracking: bool = False
    """Whether states are recorded, which is what subscriptions begin with."""
    settings: dict[str, Any] = field(default_factory=dict)
    sources: Mapping[str, DownloadSource] = field(default_factory=dict)
    """Where downloads come from."""
    limits: dict[str, Any] = field(default_factory=dict)
    """Other limits of the WebSockets than the application's."""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Serve the whole application at a free port; yield its URL."""
        settings = Settings(
            environment="development" if self.ide else "production",
            providers=tuple(self.providers) or ("none",),
            catalog_timeout_s=self.catalog_timeout_s,
            reconcile_interval_s=60,
            **self.settings,
        )
        with _listen() as listener:
            async with anyio.create_task_group() as tasks:
                self.gateway = build_gateway(
                    settings,
                    tasks,
                    list(self.providers.values()),
                    node=NODE,
                    sessions=self.sessions,
                    statuses=self.provider_states,
                    sources=self.sources,
                )
                await self.gateway.gatekeeper.load()
                for provider in self.providers.values():
                    if isinstance(provider, LoadingProvider):
                        provider.observe = self.gateway.tracker.observe
                self.view = create_graphql(self.gateway, settings, read_stream_values)
                self.sockets = self.view.sockets
                self.sockets.limits = replace(self.sockets.limits, **self.limits)
                server = uvicorn.Server(
                    uvicorn.Config(
                        create_app(self.gateway, settings, self.view),
                        lifespan="off",
                        log_config=None,
                        access_log=False,
                        ws_per_message_deflate=False,
                        timeout_graceful_shutdown=2,
                    )
                )
                done = anyio.Event()
                if self.is_tracking:
                    tasks.start_soon(self.gateway.tracker.run)
                if self.sources:
                    tasks.start_soon(self.gateway.downloads.run)
                tasks.start_soon(_serve, server, listener, done)
                try:
                    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
                finally:
                    with anyio.CancelScope(shield=True):
                        server.should_exit = True
                        await done.wait()
                    tasks.cancel_scope.cancel()

    def change(self, model: ModelInfo, *states: ModelState) -> None:
        """Let a provider tell transitions of one of its models."""
        for state in states:
            self.gateway.tracker.observe(ModelStateChange(model.ref, state))

    async def until_idle(self) -> None:
        """Wait until nobody subscribes and no WebSocket is open."""
        with anyio.fail_after(5):
            while self.gateway.feed.subscriber_count or self.sockets.count:
                await anyio.lowlevel.checkpoint()


def _listen() -> socket.socket:
    # asyncio turns Nagle's algorithm off only where the protocol is named: 40 ms a reply.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(2048)
    return listener


async def _serve(server: uvicorn.Server, listener: socket.socket, done: anyio.Event) -> None:
    try:
        await server.serve([listener])
    finally:
        done.set()


def make_server() -> GraphQLServer:
    """Return a server of three models at two providers, not started."""
    return GraphQLServer(
        {
            "ollama": ListingProvider("ollama", [LLAVA, LLAMA]),
            "huggingface": ListingProvider("huggingface", [SMOL]),
        }
    )


def make_loading_server(**settings: Any) -> GraphQLServer:
    """Return a server that records states, with one model that can be loaded: `memory/tiny`."""
    provider = LoadingProvider("memory", [TINY])
    return GraphQLServer({"memory": provider}, is_tracking=True, settings=settings)
