"""ModelStateTracker: the only writer of the states of models and providers in the database."""

import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence

import anyio

from gateway.core.drift import StateDrift
from gateway.core.errors import DatabaseUnavailable
from gateway.core.models import ModelStateChange
from gateway.core.ports import ModelStateStore, ProviderStore
from gateway.services.catalog import Catalog, Listing, describe_providers
from gateway.services.feed import ModelFeed

logger = logging.getLogger(__name__)

MAX_TOLD = 10
"""Models of one reconciliation that the log names."""


class ModelStateTracker:
    """Records every transition at once, and the whole truth at the start and every `interval_s`;
    the feed is told both before the database is.

    A change that could not be written is not retried: the next reconciliation brings the truth.
    """

    def __init__(
        self,
        catalog: Catalog,
        models: ModelStateStore,
        providers: ProviderStore,
        feed: ModelFeed,
        *,
        provider_names: Sequence[str],
        node: str,
        interval_s: float,
        kinds: Mapping[str, str] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`kinds` tells the kind of providers that are not called by it."""
        self._catalog = catalog
        self._models = models
        self._providers = providers
        self._feed = feed
        self._provider_names = provider_names
        self._node = node
        self._interval_s = interval_s
        self._kinds = kinds
        self._now = now
        self._changes: deque[ModelStateChange] = deque()
        self._changed = anyio.Event()
        self._must_look = False
        self._writing = anyio.Lock()
        self.healthy = True
        self.drift: Counter[tuple[str, str, str]] = Counter()
        """How often the record was not the truth: by provider, what it said, and what was so."""

    def observe(self, change: ModelStateChange) -> None:
        """Take note of a transition; never blocks. A core.ports.ModelObserver."""
        self._catalog.forget()
        self._feed.observe(change)
        self._changes.append(change)
        self._changed.set()

    def look_again(self) -> None:
        """Have the providers looked at now: something changed that no transition told."""
        self._catalog.forget()
        self._must_look = True
        self._changed.set()

    async def run(self) -> None:
        """Keep the database true for ever; end it by cancelling."""
        while True:
            self._must_look = False
            await self._guarded(self.reconcile)
            with anyio.move_on_after(self._interval_s):
                while not self._must_look:
                    await self._changed.wait()
                    await self._guarded(self.write_changes)

    async def reconcile(self) -> None:
        """Look at every provider and write what is there: states of providers and of models. Where
        the record differs although nothing is on its way to it, that is counted and told."""
        begun = self._feed.mark()
        listing = await self._catalog.listing(fresh=True)
        at = self._now()
        truths = _states_by_provider(listing, self._provider_names)
        self._feed.reconcile(truths, since=begun)
        statuses = describe_providers(listing, self._provider_names, at=at, kinds=self._kinds)
        await self._providers.put(self._node, statuses)
        await self.write_changes()
        for name in truths:
            # The feed's word: what was observed since the listing began is newer than it.
            on_its_way = {change.ref for change in self._changes}
            drift = await self._models.reconcile(self._node, name, self._feed.of(name), at)
            self._tell([each for each in drift if each.ref not in on_its_way])

    async def write_changes(self) -> None:
        """Write the transitions observed since the last call."""
        # One at a time and in order: the last write of a stopping gateway waits for its turn.
        async with self._writing:
            changes = list(self._changes)
            self._changes.clear()
            self._changed = anyio.Event()
            if changes:
                await self._models.apply(self._node, changes, self._now())

    async def write_last(self) -> None:
        """Write what is left, for a gateway that stops; a dead database is only logged."""
        await self._guarded(self.write_changes)

    def _tell(self, drift: Sequence[StateDrift]) -> None:
        for each in drift:
            self.drift[each.ref.provider, each.recorded.value, each.found.value] += 1
        if drift:
            told = "; ".join(map(str, drift[:MAX_TOLD]))
            more = f"; and {len(drift) - MAX_TOLD} more" if len(drift) > MAX_TOLD else ""
            logger.info("states repaired: %s%s", told, more)

    async def _guarded(self, write: Callable[[], Awaitable[None]]) -> None:
        try:
            await write()
        except DatabaseUnavailable as error:
            if self.healthy:
                logger.warning("states are not recorded: %s", error.message)
            self.healthy = False
        else:
            self.healthy = True


def _states_by_provider(
    listing: Listing, providers: Sequence[str]
) -> dict[str, list[ModelStateChange]]:
    """Return the states that each provider told; one that did not answer is left out."""
    silent = {fault.provider for fault in listing.faults}
    return {
        name: [
            ModelStateChange(model.ref, model.state, model.size_bytes, model.message)
            for model in listing.of(name)
        ]
        for name in providers
        if name not in silent
    }
