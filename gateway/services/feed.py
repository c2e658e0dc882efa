"""ModelFeed: the present state of every model, and each change of it, for whoever subscribes."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import anyio
import msgspec

from gateway.core.errors import Overloaded, ShuttingDown
from gateway.core.models import ModelStateChange
from gateway.core.names import ModelRef
from gateway.core.states import ModelState

BUFFER_CHANGES = 256
"""Changes held for one subscriber who does not read; with one more he gets a snapshot instead."""

MAX_STATES = 200
"""States told at once: rendering them must not hold up the event loop."""


class Interest(msgspec.Struct, frozen=True):
    """Which models a subscriber wants to hear of; what is empty does not restrict."""

    models: frozenset[ModelRef] = frozenset()
    providers: frozenset[str] = frozenset()

    def covers(self, ref: ModelRef) -> bool:
        """Tell whether `ref` is one of those models."""
        return (not self.models or ref in self.models) and (
            not self.providers or ref.provider in self.providers
        )


class StateUpdate(msgspec.Struct, frozen=True):
    """What a subscriber is told at once, in order.

    A snapshot replaces all that was told before. Where there are more than MAX_STATES models, the
    updates after it tell the rest, before any change.
    """

    is_snapshot: bool
    states: tuple[ModelStateChange, ...]


class Subscription:
    """One subscriber's view of a ModelFeed; one reader."""

    def __init__(self, feed: "ModelFeed", interest: Interest) -> None:
        self._feed = feed
        self._interest = interest
        self._needs_snapshot = True
        self._rest: deque[ModelStateChange] = deque()
        self._changes: deque[ModelStateChange] = deque()
        self._woken = anyio.Event()

    async def read(self) -> StateUpdate:
        """Return what is new, waiting for it; a snapshot the first time, after more changes than
        the buffer holds, and when a model went away.

        Between a snapshot and the changes after it none is lost and none told twice. Raises
        ShuttingDown, once all is read, when the feed is closed.
        """
        while (update := self._next()) is None:
            if self._feed.closed:
                raise ShuttingDown("The gateway is shutting down.")
            self._woken = anyio.Event()
            await self._woken.wait()
        return update

    def push(self, change: ModelStateChange) -> None:
        """Take note of a change, if it is of interest; for the feed. Never blocks."""
        if self._needs_snapshot or not self._interest.covers(change.ref):
            return
        if len(self._changes) < BUFFER_CHANGES:
            self._changes.append(change)
            self._woken.set()
        else:
            self.restart()

    def restart(self) -> None:
        """Let the next update be a snapshot; for the feed."""
        self._needs_snapshot = True
        self._rest.clear()
        self._changes.clear()
        self._woken.set()

    def wake(self) -> None:
        """Let a waiting reader look again; for the feed."""
        self._woken.set()

    def _next(self) -> StateUpdate | None:
        is_snapshot = self._needs_snapshot
        if is_snapshot:
            if not self._feed.is_filled:
                return None
            self._needs_snapshot = False
            states = self._feed.states()
            self._rest.extend(state for state in states if self._interest.covers(state.ref))
        source = self._rest if is_snapshot or self._rest else self._changes
        told = tuple(source.popleft() for _ in range(min(len(source), MAX_STATES)))
        return StateUpdate(is_snapshot, told) if is_snapshot or told else None


class _Known:
    """The last word on one model: `version` tells when it came, `is_listed` whether the provider
    lists it (a pinned revision is in memory and in no listing)."""

    def __init__(self, change: ModelStateChange, version: int, is_listed: bool) -> None:
        self.change = change
        self.version = version
        self.is_listed = is_listed


class ModelFeed:
    """Keeps the states that transitions and listings tell, and passes on what differs.

    All of it happens on the event loop without a pause, so what a subscriber sees is one order.
    """

    def __init__(self, *, max_subscribers: int) -> None:
        self._max_subscribers = max_subscribers
        self._subscribers: set[Subscription] = set()
        self._known: dict[ModelRef, _Known] = {}
        self._version = 0
        self._closing = anyio.Event()
        self.is_filled = False

    @property
    def subscriber_count(self) -> int:
        return len(self._subscribers)

    @property
    def closed(self) -> bool:
        return self._closing.is_set()

    async def wait_closed(self) -> None:
        """Return once the feed is closed."""
        await self._closing.wait()

    def states(self) -> list[ModelStateChange]:
        """Return the present state of every model, sorted by name."""
        return [self._known[ref].change for ref in sorted(self._known, key=str)]

    def of(self, provider: str) -> list[ModelStateChange]:
        """Return the present state of every model of a provider, in no order."""
        return [known.change for ref, known in self._known.items() if ref.provider == provider]

    @contextmanager
    def subscribe(self, interest: Interest) -> Iterator[Subscription]:
        """Give a subscription for as long as the block lasts.

        Raises Overloaded when there are too many, ShuttingDown when the feed is closed.
        """
        if self.closed:
            raise ShuttingDown("The gateway is shutting down.")
        if len(self._subscribers) >= self._max_subscribers:
            raise Overloaded(f"All {self._max_subscribers} subscriptions are taken.")
        subscription = Subscription(self, interest)
        self._subscribers.add(subscription)
        try:
            yield subscription
        finally:
            self._subscribers.discard(subscription)

    def observe(self, change: ModelStateChange) -> None:
        """Take a transition and tell the subscribers. A core.ports.ModelObserver."""
        known = self._known.get(change.ref)
        self._put(change, is_listed=known is not None and known.is_listed)

    def mark(self) -> int:
        """Return this moment, for `reconcile`: take it before the look at the providers begins."""
        return self._version

    def reconcile(self, truths: Mapping[str, Sequence[ModelStateChange]], *, since: int) -> None:
        """Take what each provider listed, and tell what no transition told.

        What was observed after `since` is newer than the listing and stays. When a model went
        away, every subscriber gets a snapshot.
        """
        for truth in truths.values():
            for change in truth:
                known = self._known.get(change.ref)
                if known is not None and known.version > since:
                    known.is_listed = True
                else:
                    self._put(change, is_listed=True)
        if any([self._drop_unlisted(name, truth, since) for name, truth in truths.items()]):
            for subscriber in self._subscribers:
                subscriber.restart()
        if not self.is_filled:
            self.is_filled = True
            self._wake_all()

    def close(self) -> None:
        """End every subscription with ShuttingDown and refuse new ones."""
        self._closing.set()
        self._wake_all()

    def _put(self, change: ModelStateChange, *, is_listed: bool) -> None:
        known = self._known.get(change.ref)
        self._version += 1
        self._known[change.ref] = _Known(change, self._version, is_listed)
        if known is None or _differ(known.change, change):
            for subscriber in self._subscribers:
                subscriber.push(change)

    def _drop_unlisted(self, provider: str, truth: Sequence[ModelStateChange], since: int) -> bool:
        """Forget the provider's models that are gone; tell whether one of them had been listed."""
        listed = {change.ref for change in truth}
        gone = [
            ref
            for ref, known in self._known.items()
            if ref.provider == provider
            and ref not in listed
            and known.version <= since
            and (known.is_listed or known.change.state is ModelState.NOT_LOADED)
        ]
        return any([self._known.pop(ref).is_listed for ref in gone])

    def _wake_all(self) -> None:
        for subscriber in self._subscribers:
            subscriber.wake()


def _differ(before: ModelStateChange, after: ModelStateChange) -> bool:
    """Sizes are left out: a listing tells that of the files, a transition that in memory."""
    return (before.state, before.message) != (after.state, after.message)
