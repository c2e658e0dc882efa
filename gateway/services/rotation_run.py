"""One step of a rotation under way at this gateway: its moves, its record, and its lease."""

import logging
from collections.abc import Awaitable, Callable, Collection

import anyio
from msgspec.structs import replace

from gateway.core.errors import DatabaseUnavailable
from gateway.core.ports import RotationStore, Worker
from gateway.core.rotation import Phase, Rotation, Skipped, Step, StepState, Trigger
from gateway.core.rotation_step import End, Load, Move, Play, Skip, Switch, play
from gateway.services.handover import Handover

logger = logging.getLogger(__name__)

BEATS = 4
"""How often a lease is prolonged in its time: some may fail."""
AGAIN_S = 1.0
"""Between two tries to reach a database that is away."""
RETURN_S = 2.0
"""How long a stopping gateway may take to give a step back."""

Serve = Callable[[str], None]
"""Is told which model answers from now on at this gateway."""


class _Fenced(Exception):
    """Somebody else has the step."""


class StepRun:
    """A step that this gateway has claimed; whoever made it calls `run` once."""

    def __init__(
        self,
        rotation: Rotation,
        step: Step,
        store: RotationStore,
        worker: Worker,
        handover: Handover,
        *,
        serve: Serve,
        kept: Callable[[], Collection[str]],
        now: Callable[[], float],
        settle_s: float,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        """`kept` are the models that answer for any rotation, `now` the database's time.
        `settle_s` is how long other gateways may take to see who answers."""
        self.step = step
        self._rotation = rotation
        self._store = store
        self._worker = worker
        self._handover = handover
        self._serve = serve
        self._kept = kept
        self._now = now
        self._settle_s = settle_s
        self._sleep = sleep
        self._scope = anyio.CancelScope()
        self.stopped = anyio.Event()

    def stop(self) -> None:
        """Let it end soon and give the step back; wait for `stopped`."""
        self._scope.cancel()

    async def run(self) -> None:
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._beat)
                    await self._play()
                    tasks.cancel_scope.cancel()
        finally:
            with anyio.move_on_after(RETURN_S, shield=True):
                if self.step.state is StepState.RUNNING:
                    await self._give_back()
            self.stopped.set()

    async def _play(self) -> None:
        try:
            try:
                end = await drive(play(self._rotation.order, self.step), self._perform)
            except (_Fenced, DatabaseUnavailable):
                raise
            except Exception:
                logger.exception("step %s of rotation %s failed", self.step.id, self.step.rotation)
                end = End(StepState.FAILED, "Something went wrong inside the gateway.")
            await self._record(state=end.state, message=end.message)
        except _Fenced:
            logger.warning("step %s is somebody else's by now", self.step.id)
            self.step = replace(self.step, state=StepState.CANCELLED)
            return
        logger.info(
            "rotation %s: %s after %s, %s",
            self.step.rotation,
            self.step.target,
            self.step.origin,
            self.step.state,
        )

    async def _perform(self, move: Move) -> object:
        match move:
            case Skip(model, reason):
                logger.info("rotation %s passes over %s: %s", self.step.rotation, model, reason)
                skipped = (*self.step.skipped, Skipped(model, reason))
                await self._record(skipped=skipped)
                return None
            case Switch(model, phase):
                # The record first: what is not the database's word is not done.
                await self._record(current=model, phase=phase, target=model)
                self._serve(model)
                if phase is Phase.RELEASING:
                    await self._sleep(self._settle_s)
                return None
            case Load(model, phase):
                await self._record(phase=phase, target=model)
            case _:
                # Who was stopped for long must not touch what is another's by now.
                await self._record()
        return await self._handover.perform(move, now=self._now(), kept=self._kept())

    async def _record(self, *, current: str | None = None, **changes: object) -> None:
        """Write the step as it is with these changes; waits for a database that is away."""
        step = replace(self.step, **changes)
        while True:
            try:
                is_ours = await self._store.record(step, self._worker, current)
            except DatabaseUnavailable as error:
                logger.warning("rotation %s waits: %s", step.rotation, error.message)
                await self._sleep(AGAIN_S)
                continue
            if not is_ours:
                raise _Fenced
            self.step = step
            return

    async def _beat(self) -> None:
        while True:
            await self._sleep(self._worker.lease_s / BEATS)
            try:
                is_ours = await self._store.keep(self.step, self._worker)
            except DatabaseUnavailable:
                continue
            if not is_ours and self.step.is_active:
                logger.warning("step %s is somebody else's by now", self.step.id)
                self.step = replace(self.step, state=StepState.CANCELLED)
                self.stop()

    async def _give_back(self) -> None:
        """Queue it again: the next gateway need not wait for the lease to end."""
        step = replace(self.step, state=StepState.QUEUED)
        try:
            await self._store.record(step, self._worker)
        except DatabaseUnavailable as error:
            logger.warning("step %s is not given back: %s", step.id, error.message)


async def follow(
    rotation: Rotation,
    origin: str,
    handover: Handover,
    *,
    serve: Serve,
    kept: Callable[[], Collection[str]],
) -> End:
    """Do at this gateway what another one's step has done: from `origin` to the present model."""

    async def perform(move: Move) -> object:
        match move:
            case Switch(model):
                serve(model)
                return None
            case Skip(model, reason):
                logger.warning("%s is not loaded here: %s", model, reason)
                return None
        return await handover.perform(move, now=0.0, kept=kept())

    # WARMING: it was waited for a quiet time where the step was taken.
    step = Step(
        "follow",
        rotation.name,
        Trigger.HAND,
        origin,
        0.0,
        phase=Phase.WARMING,
        wish=rotation.current,
    )
    return await drive(play(rotation.order, step), perform)


async def drive(steps: Play, perform: Callable[[Move], Awaitable[object]]) -> End:
    """Perform the moves of a play, one after the other, up to its end."""
    outcome: object = None
    while True:
        try:
            move = steps.send(outcome)
        except StopIteration as ended:
            end = ended.value
            assert isinstance(end, End)
            return end
        outcome = await perform(move)
