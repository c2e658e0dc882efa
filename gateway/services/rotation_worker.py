"""RotationWorker: has the steps of rotations taken, at this gateway and in its turn.

It looks at the database again and again, has a step queued when it is time, takes it on if nobody
did, and follows the steps of others with models of its own.
"""

import logging
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping

import anyio
import msgspec
from anyio.abc import TaskGroup

from gateway.core.errors import DatabaseUnavailable
from gateway.core.ports import RotationStore, Worker
from gateway.core.rotation import PREFIX, Rotation, RotationOrder, Step, find_trigger
from gateway.services.handover import Handover
from gateway.services.rotation_board import RotationBoard, Serving
from gateway.services.rotation_run import StepRun, follow

logger = logging.getLogger(__name__)

AGAIN_S = 30.0
"""Between two tries to follow a step that this gateway could not."""
STOP_S = 3.0


class RotationWorker:
    """On one event loop; `run` does the work. What asks the database raises DatabaseUnavailable."""

    def __init__(
        self,
        store: RotationStore,
        handover: Handover,
        board: RotationBoard,
        worker: Worker,
        *,
        orders: Mapping[str, RotationOrder],
        look_s: float,
        settle_s: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
        stepped: Callable[[Step], None],
    ) -> None:
        """`orders` are those of the config; `stepped` is told of each step that ended here."""
        self._store = store
        self._handover = handover
        self._board = board
        self._worker = worker
        self._orders = orders
        self._look_s = look_s
        self._settle_s = settle_s
        self._clock = clock
        self._sleep = sleep
        self._stepped = stepped
        self._runs: dict[str, StepRun | None] = {}
        self._counts: Counter[str] = Counter()
        self._ahead_s = 0.0
        self._looking = anyio.Lock()
        self._work = anyio.Event()
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
            self._board.take({rotation.name: rotation for rotation in found}, running=())

    def asked(self, model: str) -> None:
        """Take note that a request named `model`; for the router. Touches no database."""
        name = model.removeprefix(PREFIX)
        rotation = self._board.known.get(name) if model.startswith(PREFIX) else None
        if rotation is None or rotation.order.requests is None:
            return
        self._counts[name] += 1
        counted = rotation.counted + self._counts[name]
        if counted >= rotation.order.requests and not (rotation.paused or rotation.step):
            self._work.set()

    def wake(self) -> None:
        """There is something to do: do not wait for the next look."""
        self._work.set()

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
            found = {rotation.name: rotation for rotation in rotations}
            self._board.take(found, running={*before, *self._runs})

    async def _turn(self, tasks: TaskGroup) -> None:
        """Look, follow what others did, have queued what is due, and take on what nobody has."""
        await self._flush()
        await self._put_config()
        if self._draining:
            return
        for rotation in [*self._board.known.values()]:
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
            serve=lambda model: self._board.serve(rotation.name, model, before=step.origin),
            kept=self._board.kept,
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
            if not self._is_put or name not in self._board.known:
                await self._store.put(name, order, "config")
        await self.look()
        if not self._is_put:
            self._is_put = True
            for rotation in self._board.known.values():
                if rotation.source == "config" and rotation.name not in self._orders:
                    logger.warning(
                        "rotation %s came from a config and is in this one no more: "
                        "`gateway rotations rm %s` removes it",
                        rotation.name,
                        rotation.name,
                    )

    def _follow(self, rotation: Rotation, tasks: TaskGroup) -> None:
        """Bring this gateway to where the rotation is, if another one took the step."""
        serving = self._board.serving(rotation.name)
        if serving is None or rotation.name in self._runs or serving.model == rotation.current:
            return
        if serving.model not in rotation.order.models or self._clock() < serving.again_at:
            return
        self._runs[rotation.name] = None
        tasks.start_soon(self._follow_one, rotation, serving, name=f"rotation {rotation.name}")

    async def _follow_one(self, rotation: Rotation, serving: Serving) -> None:
        try:
            end = await follow(
                rotation,
                serving.model,
                self._handover,
                serve=lambda model: self._board.serve(rotation.name, model, before=serving.model),
                kept=self._board.kept,
            )
            if end.message:
                logger.info("rotation %s, here: %s", rotation.name, end.message)
        except Exception:
            logger.exception("rotation %s is not followed", rotation.name)
        finally:
            if (now := self._board.serving(rotation.name)) and now.model != rotation.current:
                now.again_at = self._clock() + AGAIN_S
            self._end_run(rotation.name)

    def _end_run(self, name: str) -> None:
        del self._runs[name]
        if (serving := self._board.serving(name)) is not None:
            self._board.serve(name, serving.model)
        self._work.set()

    async def _flush(self) -> None:
        """Tell the database what was counted; what it does not take is told later."""
        counts, self._counts = self._counts, Counter()
        if counts:
            try:
                await self._store.count(counts)
            except BaseException:
                self._counts.update(counts)
                raise

    def _now(self) -> float:
        """Return the database's time, as of the last look."""
        return self._clock() + self._ahead_s
