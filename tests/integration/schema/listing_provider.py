"""A provider that lists what a test tells it to, hangs or raises; an in-memory core Provider."""

from collections.abc import AsyncGenerator, Sequence

import anyio

from gateway.core.embeddings import Embeddings, EmbedRequest
from gateway.core.errors import ProviderRejected
from gateway.core.events import Event
from gateway.core.messages import GenerateRequest
from gateway.core.models import ModelInfo, Resident
from gateway.core.names import ModelRef
from tests.scripted_provider import Uncontrolled


class ListingProvider(Uncontrolled):
    """Answers listings from `listed`; `error` is raised instead, `hangs` never answers."""

    def __init__(self, name: str, listed: Sequence[ModelInfo] = ()) -> None:
        self._name = name
        self.listed = tuple(listed)
        self.error: Exception | None = None
        self.hangs = False

    @property
    def name(self) -> str:
        return self._name

    async def models(self) -> Sequence[ModelInfo]:
        if self.hangs:
            await anyio.sleep_forever()
        if self.error is not None:
            raise self.error
        return self.listed

    async def stream(self, request: GenerateRequest, ref: ModelRef) -> AsyncGenerator[Event, None]:
        raise ProviderRejected(self._name, "A scripted provider does not generate.")
        yield

    async def embed(self, request: EmbedRequest, ref: ModelRef) -> Embeddings:
        raise ProviderRejected(self._name, "A scripted provider does not embed.")

    async def resident(self) -> Sequence[Resident]:
        return ()

    async def aclose(self) -> None:
        return None
