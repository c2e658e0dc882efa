"""A manager over tiny models and an Ollama service over the scripted peer, in one ledger."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import anyio
from anyio.abc import TaskGroup

from gateway.core.errors import GatewayError
from gateway.core.events import Finished
from gateway.core.eviction import EvictionPolicy
from gateway.core.messages import GenerateRequest, Message
from gateway.core.names import ModelRef, parse_ref
from gateway.engine.memory.budget import MemoryBudget
from gateway.providers.ollama import OllamaService, OllamaTimeouts
from gateway.providers.ollama_ledger_wire import SharedMemory
from gateway.providers.ollama_listing_wire import name_key
from gateway.providers.ollama_memory_wire import OllamaDevices, Stay
from tests.integration.engine.house import House, keeping_house
from tests.integration.ollama_peer import OllamaPeer
from tests.told import stream_of

MB = 1_000_000
PATIENCE_S = 60.0
X, Y, Z = (parse_ref("ollama", name) for name in "xyz")
SIZE = 8 * MB
"""Of the file of each of the peer's models; it is taken to hold 10 MB, and holds 9."""


def request_to(ref: ModelRef) -> GenerateRequest:
    return GenerateRequest("r", str(ref), messages=(Message.user("Hello"),))


class Reader:
    """Somebody who asks Ollama; `started` is set at the first event."""

    def __init__(self, ref: ModelRef) -> None:
        self.ref = ref
        self.scope = anyio.CancelScope()
        self.started = anyio.Event()
        self.done = anyio.Event()
        self.finished = False
        self.error: GatewayError | None = None

    async def read(self, service: OllamaService) -> None:
        try:
            with self.scope:
                asked = request_to(self.ref)
                async with aclosing(stream_of(service, asked, self.ref)) as events:
                    async for event in events:
                        self.started.set()
                        self.finished = isinstance(event, Finished)
        except GatewayError as error:
            self.error = error
        finally:
            self.done.set()


class Neighbours:
    """`house` has the manager and the clock, `ollama` the service, `peer` what is really there."""

    def __init__(
        self, house: House, peer: OllamaPeer, ollama: OllamaService, memory: SharedMemory
    ) -> None:
        self.house = house
        self.peer = peer
        self.ollama = ollama
        self.memory = memory
        self.tasks: TaskGroup

    @property
    def budget(self) -> MemoryBudget:
        return self.house.budgets.of("cpu")

    @property
    def really_held(self) -> int:
        """What all models take, whatever the ledger says."""
        theirs = sum(self.peer.models[key].held_size for key in self.peer.loaded)
        ours = sum(place.share.held_bytes for place in self.house.manager._placement)
        return theirs + ours

    def begin(self, ref: ModelRef) -> Reader:
        reader = Reader(ref)
        self.tasks.start_soon(reader.read, self.ollama)
        return reader

    async def ask(self, ref: ModelRef) -> Reader:
        reader = Reader(ref)
        await reader.read(self.ollama)
        if reader.error is not None:
            raise reader.error
        return reader

    def stay(self, ref: ModelRef) -> Stay:
        """What the ledger knows of one of Ollama's models."""
        return self.memory._stays[name_key(ref)]

    async def settle(self) -> None:
        """Let the ledger be what Ollama says."""
        await self.ollama.resident()

    def evictions(self) -> dict[tuple[str, str], int]:
        counts = self.house.ledger.report().evictions
        return {(each.provider, each.reason): each.count for each in counts}


@asynccontextmanager
async def neighbours(
    folder: Path,
    budget: int,
    *,
    wait_s: float = 0.0,
    by_hand: bool = True,
    evict_s: float = 5.0,
    policy: EvictionPolicy = "lru",
    devices: OllamaDevices = OllamaDevices(),  # noqa: B008
    now: Callable[[], float] = lambda: 1.79e9,
) -> AsyncIterator[Neighbours]:
    """Both are left empty; nothing may take longer than PATIENCE_S."""
    async with (
        keeping_house(
            folder, budget=budget, by_hand=by_hand, policy=policy, place_wait_s=wait_s
        ) as house,
        OllamaPeer() as peer,
        anyio.create_task_group() as tasks,
    ):
        for ref in (X, Y, Z):
            peer.add_model(ref.model, size=SIZE)
        memory = SharedMemory(
            house.ledger,
            tasks,
            devices=devices,
            wait_s=wait_s,
            clock=house.ledger._clock,
            now=now,
            evict_s=evict_s,
        )
        ollama = OllamaService(peer.url, OllamaTimeouts(control_s=5.0), memory=memory)
        both = Neighbours(house, peer, ollama, memory)
        both.tasks = tasks
        try:
            with anyio.fail_after(PATIENCE_S):
                yield both
        finally:
            await ollama.aclose()
            tasks.cancel_scope.cancel()
