"""ModelRotationService: names that stand for one model after the other.

What a rotation is, who answers for it and whose step it is stands in the database; requests are
answered by what was known last. Here is what may be asked for; `RotationWorker` takes the steps.
"""

import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing, suppress

import anyio

from gateway.core.errors import (
    InvalidRequest,
    ModelNotFound,
    RotationInConfig,
    RotationNotFound,
    ShuttingDown,
    StaleTransition,
)
from gateway.core.models import ModelInfo
from gateway.core.ports import RotationStore, Worker
from gateway.core.rotation import Rotation, RotationOrder, Step, Trigger, check_rotations
from gateway.core.virtual import VirtualModel
from gateway.services.catalog import Listing
from gateway.services.handover import Handover
from gateway.services.rotation_board import RotationBoard
from gateway.services.rotation_watch import RotationEvent, RotationWatch
from gateway.services.rotation_worker import RotationWorker

LEASE_S = 15.0
LOOK_S = 1.0
"""How often the database is looked at: gateways differ for no longer."""
SETTLE_S = 2 * LOOK_S
"""How long who answered before stays after a switch, for gateways that have not looked yet."""
MAX_LISTED = 500


class ModelRotationService:
    """On one event loop; `run` does the work, everything else may be called meanwhile.

    Every method but `asked` raises DatabaseUnavailable; those with a name raise RotationNotFound.
    """

    def __init__(
        self,
        store: RotationStore,
        handover: Handover,
        *,
        orders: Mapping[str, RotationOrder],
        providers: Collection[str],
        aliases: Mapping[str, str],
        virtual: Collection[str],
        rules: dict[str, VirtualModel],
        node: str,
        boot: str,
        max_watchers: int,
        lease_s: float = LEASE_S,
        look_s: float = LOOK_S,
        settle_s: float = SETTLE_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        stepped: Callable[[Step], None] = lambda _: None,
    ) -> None:
        """`orders` are those of the config, which win; `virtual` the names of virtual models.
        `rules` is what the router follows for `rotation/...`: written here, and read there.
        `stepped` is told of each step that ended here."""
        self._store = store
        self._handover = handover
        self._orders = orders
        self._aliases = aliases
        self._virtual = virtual
        self._board = RotationBoard(rules, providers=providers, aliases=aliases)
        self._watch = RotationWatch(self._board, max_watchers=max_watchers)
        self._worker = RotationWorker(
            store,
            handover,
            self._board,
            Worker(node, boot, lease_s),
            orders=orders,
            look_s=look_s,
            settle_s=settle_s,
            clock=clock,
            sleep=sleep,
            stepped=stepped,
        )
        self._draining = False

    async def all(self) -> list[Rotation]:
        """Return every rotation, by name."""
        await self._worker.look()
        return self._board.all()

    async def find(self, name: str) -> Rotation:
        return _require(await self._store.find(name), name)

    async def put(self, name: str, order: RotationOrder) -> Rotation:
        """Make a rotation, or change one; who answers goes on to if he is still in it.

        Raises InvalidRequest, and RotationInConfig for one that the config holds.
        """
        self._require_free(name)
        check_rotations({name: order}, rules=self._virtual, aliases=self._aliases)
        await self._store.put(name, order, "database")
        return await self._relook(name)

    async def remove(self, name: str) -> Rotation:
        """Forget a rotation with its history; its models stay as they are."""
        self._require_free(name)
        found = await self.find(name)
        await self._store.remove(name)
        await self._worker.look()
        return found

    async def pause(self, name: str) -> Rotation:
        """Let no step begin by itself; one that is under way goes on."""
        _require(await self._store.pause(name), name)
        return await self._relook(name)

    async def resume(self, name: str) -> Rotation:
        """Undo `pause`; the time to the next step begins anew."""
        _require(await self._store.resume(name), name)
        return await self._relook(name)

    async def advance(self, name: str, to: str | None = None) -> Step:
        """Queue a step to the next model, or to the one that is named, as requests may name it;
        also of a paused rotation.

        Raises InvalidRequest for a model that is not in it or answers already, AmbiguousModel for
        a name of several, StaleTransition while a step is queued or under way.
        """
        if self._draining:
            raise ShuttingDown("The gateway is shutting down.")
        rotation = await self.find(name)
        if to is not None:
            to = await self._spell(to, rotation)
        if to is not None and to == rotation.current:
            raise InvalidRequest(f"{to} answers already.", param="to")
        step = await self._store.ask(secrets.token_hex(8), name, Trigger.HAND, to)
        if step is None:
            raise StaleTransition(f"A step of rotation '{name}' is under way.")
        self._worker.wake()
        return step

    async def history(self, name: str, limit: int = 50) -> Sequence[Step]:
        """Return the newest steps, newest first."""
        if not 0 <= limit <= MAX_LISTED:
            raise InvalidRequest(f"'limit' must be from 0 to {MAX_LISTED}.", param="limit")
        await self.find(name)
        return await self._store.history(name, limit)

    async def watch(self, names: Collection[str] = ()) -> AsyncGenerator[RotationEvent, None]:
        """Yield the rotations as they are now, those of the names or all, then each that changes.

        Who reads slowly misses what is between. Raises RotationNotFound, Overloaded, and
        ShuttingDown when the gateway stops.
        """
        for name in names:
            await self.find(name)
        async with aclosing(self._watch.watch(names)) as events:
            async for event in events:
                yield event

    def asked(self, model: str) -> None:
        """Take note that a request goes to a rotation; for the router. Touches no database."""
        self._worker.asked(model)

    def listed(self, listing: Listing) -> list[ModelInfo]:
        """Return each rotation as a model of a listing: it can do what who answers now can."""
        return self._board.listed(listing)

    def joined(self, listing: Listing) -> Listing:
        """Return the listing with the rotations in it, to be shown."""
        return self._board.joined(listing)

    async def restore(self) -> None:
        """Put down what the config says and learn what there is, before requests come. While the
        database is away, the first model of each rotation in the config answers."""
        await self._worker.restore()

    async def run(self) -> None:
        """Take steps for ever; end it by cancelling, which gives back what is under way."""
        await self._worker.run()

    async def drain(self) -> None:
        """Begin no more steps and give back those under way, for the next start to go on with."""
        self._draining = True
        self._watch.close()
        await self._worker.drain()

    async def _spell(self, model: str, rotation: Rotation) -> str:
        """Return the model as the rotation names it; raises InvalidRequest unless it is in it."""
        models = rotation.order.models
        if model in models:
            return model
        with suppress(ModelNotFound, InvalidRequest):
            if (same := await self._handover.find_same(model, models)) is not None:
                return same
        raise InvalidRequest(
            f"'{model[:200]}' is not in rotation '{rotation.name}'.",
            hint=f"It has: {', '.join(models)}.",
            param="to",
        )

    async def _relook(self, name: str) -> Rotation:
        await self._worker.look()
        self._worker.wake()
        return _require(self._board.known.get(name), name)

    def _require_free(self, name: str) -> None:
        if name in self._orders:
            raise RotationInConfig(f"Rotation '{name}' is in the config, which wins.")


def _require(rotation: Rotation | None, name: str) -> Rotation:
    if rotation is None:
        raise RotationNotFound(f"There is no rotation '{name[:64]}'.")
    return rotation
