"""The gateway's services in one hand: what the edges are given."""

from collections.abc import Sequence

import anyio
import msgspec

from gateway.core.ports import ModelStateStore, ProviderStore, SessionStore
from gateway.services.catalog import Catalog, Listing
from gateway.services.collections import CollectionService
from gateway.services.configs import ConfigService
from gateway.services.control import ModelControlService
from gateway.services.decisions import DecisionService
from gateway.services.downloads import DownloadService
from gateway.services.embeddings import EmbeddingService
from gateway.services.feed import ModelFeed
from gateway.services.gatekeeper import Gatekeeper
from gateway.services.hub import HubService
from gateway.services.hub_token import HubTokenService
from gateway.services.keys import KeyService
from gateway.services.library import LibraryService
from gateway.services.memory import MemoryService
from gateway.services.metrics import MetricsService
from gateway.services.recorder import SessionRecorder
from gateway.services.rotation import ModelRotationService
from gateway.services.router import ModelRouterService
from gateway.services.rules import RuleService
from gateway.services.streams import StreamService
from gateway.services.tracker import ModelStateTracker


class Gateway(msgspec.Struct, frozen=True):
    """Built by `bootstrap.running`, alive while it runs."""

    node: str
    provider_names: Sequence[str]
    catalog: Catalog
    router: ModelRouterService
    control: ModelControlService
    streams: StreamService
    embeddings: EmbeddingService
    recorder: SessionRecorder
    tracker: ModelStateTracker
    feed: ModelFeed
    sessions: SessionStore
    model_states: ModelStateStore
    provider_states: ProviderStore
    keys: KeyService
    gatekeeper: Gatekeeper
    library: LibraryService
    configs: ConfigService
    collections: CollectionService
    hub: HubService
    hub_token: HubTokenService
    metrics: MetricsService
    downloads: DownloadService
    decisions: DecisionService
    rules: RuleService
    rotations: ModelRotationService
    memory: MemoryService

    async def listing(self) -> Listing:
        """Return what requests may ask for: the models of all providers, and the names that stand
        for several of them."""
        return self.rules.joined(self.rotations.joined(await self.catalog.listing()))

    async def drain(self, grace_s: float) -> None:
        """Refuse new work, end the subscriptions at once; let what else runs finish for
        `grace_s`, then end it."""
        self.feed.close()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.streams.drain, grace_s)
            tasks.start_soon(self.embeddings.drain, grace_s)
            tasks.start_soon(self.downloads.drain)
            tasks.start_soon(self.rotations.drain)

    def unready_reasons(self) -> list[str]:
        """Return why no new request should be sent here; empty when ready."""
        reasons = []
        if self.streams.draining:
            reasons.append("shutting_down")
        if not (self.recorder.healthy and self.tracker.healthy):
            reasons.append("database_unavailable")
        if not self.recorder.journal_healthy:
            reasons.append("journal_unavailable")
        return reasons

    def describe_records(self) -> dict[str, int]:
        """Return what waits to be recorded, and what became of the records since the start."""
        return {
            "pending": self.recorder.pending,
            "journal_bytes": self.recorder.journal_bytes,
            **msgspec.structs.asdict(self.recorder.counts),
        }
