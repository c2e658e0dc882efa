"""The GraphQL endpoint over real services, served by uvicorn on loopback."""

import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route

from gateway.core.models import Capability, ModelInfo
from gateway.core.names import ModelRef
from gateway.core.ports import ProviderStore, SessionStore
from gateway.core.states import ModelState
from gateway.services.catalog import Catalog
from gateway.services.control import ModelControlService
from gateway.services.gateway import Gateway
from gateway.services.images import ImagePolicy
from gateway.services.recorder import SessionRecorder
from gateway.services.router import ModelRouterService
from gateway.services.streams import StreamService
from gateway.services.tracker import ModelStateTracker
from gateway.testing import MemoryModelStateStore, MemoryProviderStore, MemorySessionStore
from schema import create_graphql
from tests.integration.schema.listing_provider import ListingProvider

NODE = "test-node"
LLAMA = ModelInfo(
    ModelRef("ollama", "llama3:8b"),
    state=ModelState.LOADED,
    size_bytes=4_661_224_676,
    context_length=8192,
    capabilities=(Capability.CHAT, Capability.TOOLS),
    metadata=(("family", "llama"), ("quantization", "Q4_0")),
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


@dataclass
class GraphQLServer:
    """What a test may set up before `serving`, and the address once it is served."""

    providers: Mapping[str, ListingProvider] = field(default_factory=dict)
    sessions: SessionStore = field(default_factory=MemorySessionStore)
    provider_states: ProviderStore = field(default_factory=MemoryProviderStore)
    catalog_timeout_s: float = 0.8
    ide: bool = False

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Serve `/graphql` at a free port; yield the URL of the server."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            async with anyio.create_task_group() as tasks:
                app = create_graphql(self._gateway(tasks), ide=self.ide)
                server = uvicorn.Server(
                    uvicorn.Config(
                        Starlette(routes=[Route("/graphql", app)]),
                        lifespan="off",
                        ws="none",
                        log_config=None,
                        access_log=False,
                    )
                )
                tasks.start_soon(server.serve, [listener])
                try:
                    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
                finally:
                    server.should_exit = True

    def _gateway(self, tasks: anyio.abc.TaskGroup) -> Gateway:
        catalog = Catalog(self.providers, timeout_s=self.catalog_timeout_s, ttl_s=0)
        model_states = MemoryModelStateStore()
        recorder = SessionRecorder(self.sessions)
        router = ModelRouterService(
            self.providers, catalog, aliases={}, images=ImagePolicy(2**20, 10**6)
        )
        return Gateway(
            node=NODE,
            provider_names=tuple(self.providers),
            catalog=catalog,
            router=router,
            control=ModelControlService(self.providers, catalog, tasks, aliases={}),
            streams=StreamService(
                router, recorder, tasks, node=NODE, max_streams=8, buffer_events=8
            ),
            recorder=recorder,
            tracker=ModelStateTracker(
                catalog,
                model_states,
                self.provider_states,
                provider_names=tuple(self.providers),
                node=NODE,
                interval_s=60,
            ),
            sessions=self.sessions,
            model_states=model_states,
            provider_states=self.provider_states,
        )


def make_server() -> GraphQLServer:
    """Return a server of three models at two providers, not started."""
    return GraphQLServer(
        {
            "ollama": ListingProvider("ollama", [LLAVA, LLAMA]),
            "huggingface": ListingProvider("huggingface", [SMOL]),
        }
    )
