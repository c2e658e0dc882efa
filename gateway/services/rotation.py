"""ModelRotationService: names that stand for one model after the other.

What a rotation is, who answers for it and whose step it is stands in the database. Each gateway
looks there again and again, has a step queued when it is time, takes it on if nobody did, and
follows the steps of others with its own models. Requests are answered by what was known last.
"""

import logging
import secrets
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence

import anyio
import msgspec
from anyio.abc import TaskGroup

from gateway.core.errors import (
    DatabaseUnavailable,
    GatewayError,
    InvalidRequest,
    Overloaded,
    RotationInConfig,
    RotationNotFound,
    ShuttingDown,
    StaleTransition,
)
from gateway.core.models import ModelInfo
from gateway.core.names import ModelRef
from gateway.core.ports import RotationStore, Worker
from gateway.core.rotation import (
    PREFIX,
    RESERVED,
    Rotation,
    RotationOrder,
    Step,
    Trigger,
    check_rotations,
    describe_rule,
    find_trigger,
)
from gateway.core.routing import resolve_route
from gateway.core.states import ModelState
from gateway.core.virtual import VirtualModel
from gateway.services.catalog import Listing
from gateway.services.handover import Handover
from gateway.services.rotation_run import StepRun, follow

logger = logging.getLogger(__name__)

LEASE_S = 15.0
LOOK_S = 1.0
"""How often the database is looked at: gateways differ for no longer."""
SETTLE_S = 2 * LOOK_S
"""How long who answered before stays after a switch, for gateways that have not looked yet."""
AGAIN_S = 30.0
"""Between two tries to follow a step that this gateway could not."""
STOP_S = 3.0
MAX_LISTED = 500


class RotationEvent(msgspec.Struct, frozen=True):
    """A rotation as it is now; None: it was removed."""

    name: str
    rotation: Rotation | None


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
        self._providers = providers
        self._aliases = aliases
        self._virtual = virtual
        self._rules = rules
        self._worker = Worker(node, boot, lease_s)
        self._max_watchers = max_watchers
        self._look_s = look_s
        self._settle_s = settle_s
        self._clock = clock
        self._sleep = sleep
        self._stepped = stepped
        self._known: dict[str, Rotation] = {}
        self._serving: dict[str, _Serving] = {}
        self._runs: dict[str, StepRun | None] = {}
        self._counts: Counter[str] = Counter()
        self._ahead_s = 0.0
        self._looking = anyio.Lock()
        self._work = anyio.Event()
        self._news = anyio.Event()
        self._watchers = 0
        self._is_put = False
        self._draining = False

    async def restore(self) -> None:
        """Put down what the config says and learn what there is, before requests come. While the
        database is away, the first model of each rotation in the config answers."""
        try:
            await self._put_config()
        except DatabaseUnavailable as error:
            logger.warning("rotations wait for the database: %s", error.message)
            found = [
                Rotation(name, order, "config", order.models[0], created_at=0.0, updated_at=0.0)
                for name, order in self._orders.items()
            ]
            self._take({rotation.name: rotation for rotation in found}, ())

    async def all(self) -> list[Rotation]:
        """Return every rotation, by name."""
        await self.look()
        return [self._known[name] for name in sorted(self._known)]

    async def find(self, name: str) -> Rotation:
        return _require(await self._store.find(name), name)

    async def put(self, name: str, order: RotationOrder) -> Rotation:
        """Make a rotation, or change one; who answers goes on to if he is still in it.

        Raises InvalidRequest, and RotationInConfig for one that the config holds.
        """
        self._require_free(name)
        check_rotations({name: order}, rules=self._virtual)
        await self._store.put(name, order, "database")
        return await self._relook(name)

    async def remove(self, name: str) -> Rotation:
        """Forget a rotation with its history; its models stay as they are."""
        self._require_free(name)
        found = await self.find(name)
        await self._store.remove(name)
        await self.look()
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
        """Queue a step to the next model, or to the one that is named; also of a paused rotation.

        Raises InvalidRequest for a model that is not in it or answers already, StaleTransition
        while a step is queued or under way.
        """
        if self._draining:
            raise ShuttingDown("The gateway is shutting down.")
        rotation = await self.find(name)
        if to is not None and to not in rotation.order.models:
            raise InvalidRequest(
                f"'{to[:200]}' is not in rotation '{name}'.",
                hint=f"It has: {', '.join(rotation.order.models)}.",
                param="to",
            )
        if to is not None and to == rotation.current:
            raise InvalidRequest(f"{to} answers already.", param="to")
        step = await self._store.ask(secrets.token_hex(8), name, Trigger.HAND, to)
        if step is None:
            raise StaleTransition(f"A step of rotation '{name}' is under way.")
        self._work.set()
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
        if self._watchers >= self._max_watchers:
            raise Overloaded(f"All {self._max_watchers} subscriptions are taken.")
        for name in names:
            await self.find(name)
        self._watchers += 1
        try:
            told: dict[str, Rotation] = {}
            while not self._draining:
                news = self._news
                for event in _differences(told, self._known, names):
                    yield event
                await news.wait()
            raise ShuttingDown("The gateway is shutting down.")
        finally:
            self._watchers -= 1

    def asked(self, model: str) -> None:
        """Take note that a request named `model`; for the router. Touches no database."""
        name = model.removeprefix(PREFIX)
        rotation = self._known.get(name) if model.startswith(PREFIX) else None
        if rotation is None or rotation.order.requests is None:
            return
        self._counts[name] += 1
        counted = rotation.counted + self._counts[name]
        if counted >= rotation.order.requests and not (rotation.paused or rotation.step):
            self._work.set()

    def listed(self, listing: Listing) -> list[ModelInfo]:
        """Return each rotation as a model of a listing: it can do what who answers now can."""
        return [self._describe(name, listing) for name in sorted(self._serving)]

    def joined(self, listing: Listing) -> Listing:
        """Return the listing with the rotations in it, to be shown."""
        return msgspec.structs.replace(listing, models=(*listing.models, *self.listed(listing)))

    async def run(self) -> None:
        """Take steps for ever; end it by cancelling, which gives back what is under way."""
        async with anyio.create_task_group() as tasks:
            while True:
                self._work = anyio.Event()
                try:
                    await self._turn(tasks)
                except DatabaseUnavailable as error:
                    logger.warning("rotations wait for the database: %s", error.message)
                except Exception:
                    logger.exception("rotations cannot be looked at")
                with anyio.move_on_after(self._look_s):
                    await self._work.wait()

    async def drain(self) -> None:
        """Begin no more steps and give back those under way, for the next start to go on with."""
        self._draining = True
        self._tell()
        runs = [run for run in self._runs.values() if run is not None]
        for run in runs:
            run.stop()
        with anyio.move_on_after(STOP_S):
            for run in runs:
                await run.stopped.wait()

    async def look(self) -> None:
        """Learn how things stand in the database."""
        async with self._looking:
            before = set(self._runs)
            began = self._clock()
            now, rotations = await self._store.look()
            self._ahead_s = now - began
            self._take({rotation.name: rotation for rotation in rotations}, before)

    async def _relook(self, name: str) -> Rotation:
        await self.look()
        self._work.set()
        return _require(self._known.get(name), name)

    async def _turn(self, tasks: TaskGroup) -> None:
        """Look, follow what others did, have queued what is due, and take on what nobody has."""
        await self._flush()
        await self._put_config()
        if self._draining:
            return
        for rotation in [*self._known.values()]:
            self._follow(rotation, tasks)
            trigger = find_trigger(rotation, self._now())
            if trigger is not None and rotation.name not in self._runs:
                asked = await self._store.ask(secrets.token_hex(8), rotation.name, trigger)
                if asked is not None:
                    self._work.set()
            if self._may_take(rotation):
                await self._take_on(rotation, tasks)

    def _may_take(self, rotation: Rotation) -> bool:
        node, boot, _ = msgspec.structs.astuple(self._worker)
        step = rotation.step
        is_free = step is not None and step.is_free(node, boot, self._now())
        return is_free and rotation.name not in self._runs

    async def _take_on(self, rotation: Rotation, tasks: TaskGroup) -> None:
        step = await self._store.claim(self._worker, rotation.name)
        if step is None:
            return
        run = StepRun(
            rotation,
            step,
            self._store,
            self._worker,
            self._handover,
            serve=lambda model: self._serve(rotation.name, model, before=step.origin),
            kept=self._kept,
            now=self._now,
            settle_s=self._settle_s,
            sleep=self._sleep,
        )
        self._runs[rotation.name] = run
        tasks.start_soon(self._carry_out, run, name=f"rotation {rotation.name}")

    async def _carry_out(self, run: StepRun) -> None:
        name = run.step.rotation
        try:
            await run.run()
        except Exception:
            logger.exception("step %s of rotation %s broke off", run.step.id, name)
        finally:
            if not run.step.is_active:
                self._stepped(run.step)
            self._end_run(name)

    async def _put_config(self) -> None:
        """Put down what the config says: once after the start, and what somebody else removed."""
        for name, order in self._orders.items():
            if not self._is_put or name not in self._known:
                await self._store.put(name, order, "config")
        await self.look()
        if not self._is_put:
            self._is_put = True
            for rotation in self._known.values():
                if rotation.source == "config" and rotation.name not in self._orders:
                    logger.warning(
                        "rotation %s came from a config and is in this one no more: "
                        "`gateway rotations rm %s` removes it",
                        rotation.name,
                        rotation.name,
                    )

    def _follow(self, rotation: Rotation, tasks: TaskGroup) -> None:
        """Bring this gateway to where the rotation is, if another one took the step."""
        serving = self._serving.get(rotation.name)
        if serving is None or rotation.name in self._runs or serving.model == rotation.current:
            return
        if serving.model not in rotation.order.models or self._clock() < serving.again_at:
            return
        self._runs[rotation.name] = None
        tasks.start_soon(self._follow_one, rotation, serving, name=f"rotation {rotation.name}")

    async def _follow_one(self, rotation: Rotation, serving: "_Serving") -> None:
        try:
            end = await follow(
                rotation,
                serving.model,
                self._handover,
                serve=lambda model: self._serve(rotation.name, model, before=serving.model),
                kept=self._kept,
            )
            if end.message:
                logger.info("rotation %s, here: %s", rotation.name, end.message)
        except Exception:
            logger.exception("rotation %s is not followed", rotation.name)
        finally:
            if (now := self._serving.get(rotation.name)) and now.model != rotation.current:
                now.again_at = self._clock() + AGAIN_S
            self._end_run(rotation.name)

    def _end_run(self, name: str) -> None:
        del self._runs[name]
        if name in self._serving:
            self._serve(name, self._serving[name].model)
        self._work.set()

    def _take(self, found: Mapping[str, Rotation], running: Collection[str]) -> None:
        """Know what was found; who was `running` when it was looked may know better."""
        for name in [*self._serving]:
            if name not in found:
                del self._serving[name]
                self._rules.pop(PREFIX + name, None)
        has_changed = found != self._known
        self._known = dict(found)
        for name, rotation in found.items():
            serving = self._serving.get(name)
            is_ours = name in self._runs or name in running
            if serving is None or (serving.model not in rotation.order.models and not is_ours):
                self._serve(name, rotation.current)
            elif has_changed:
                self._serve(name, serving.model, before=serving.before)
        if has_changed:
            self._tell()

    def _serve(self, name: str, model: str, before: str | None = None) -> None:
        """Let `model` answer here; `before` is in memory yet."""
        rotation = self._known.get(name)
        if rotation is None:
            return
        kept = self._serving.get(name)
        again_at = kept.again_at if kept is not None and kept.model == model else 0.0
        self._serving[name] = _Serving(model, before, again_at)
        self._rules[rotation.model] = describe_rule(rotation, model, before)

    def _kept(self) -> set[str]:
        """Return the models that answer for any rotation."""
        return {serving.model for serving in self._serving.values()}

    async def _flush(self) -> None:
        """Tell the database what was counted; what it does not take is told later."""
        counts, self._counts = self._counts, Counter()
        if counts:
            try:
                await self._store.count(counts)
            except BaseException:
                self._counts.update(counts)
                raise

    def _describe(self, name: str, listing: Listing) -> ModelInfo:
        ref = ModelRef(RESERVED, name)
        current = self._serving[name].model
        metadata = (("current", current),)
        try:
            found = resolve_route(
                current,
                providers=self._providers,
                catalogue=listing.catalogue,
                aliases=self._aliases,
            ).info
        except GatewayError:
            found = None
        if found is None:
            return ModelInfo(ref, ModelState.NOT_LOADED, metadata=metadata)
        return msgspec.structs.replace(found, ref=ref, metadata=metadata)

    def _require_free(self, name: str) -> None:
        if name in self._orders:
            raise RotationInConfig(f"Rotation '{name}' is in the config, which wins.")

    def _now(self) -> float:
        """Return the database's time, as of the last look."""
        return self._clock() + self._ahead_s

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()


class _Serving:
    """Who answers for a rotation at this gateway; `again_at` is when to try to follow again."""

    def __init__(self, model: str, before: str | None, again_at: float) -> None:
        self.model = model
        self.before = before
        self.again_at = again_at


def _require(rotation: Rotation | None, name: str) -> Rotation:
    if rotation is None:
        raise RotationNotFound(f"There is no rotation '{name[:64]}'.")
    return rotation


def _differences(
    told: dict[str, Rotation], known: Mapping[str, Rotation], names: Collection[str]
) -> list[RotationEvent]:
    """Return what is new, and take it as told."""
    events = [RotationEvent(name, None) for name in told if name not in known]
    for event in events:
        del told[event.name]
    for name in sorted(known):
        shown = _without_lease(known[name])
        if (not names or name in names) and told.get(name) != shown:
            told[name] = shown
            events.append(RotationEvent(name, shown))
    return events


def _without_lease(rotation: Rotation) -> Rotation:
    """Return the rotation as watchers see it: that a step goes on is no news."""
    step = rotation.step
    if step is None:
        return rotation
    return msgspec.structs.replace(rotation, step=msgspec.structs.replace(step, leased_until=None))
