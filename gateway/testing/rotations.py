"""Rotations and their steps, kept in memory."""

import time
from collections.abc import Callable, Mapping, Sequence

from msgspec.structs import replace

from gateway.core.ports import RotationLook, Worker
from gateway.core.rotation import (
    Rotation,
    RotationOrder,
    Source,
    Step,
    StepState,
    Trigger,
    find_trigger,
    schedule,
)
from gateway.testing.columns import clean_message


class MemoryRotationStore:
    """A RotationStore that forgets everything with the process."""

    def __init__(self, now: Callable[[], float] = time.time, *, kept_steps: int = 1000) -> None:
        self._now = now
        self._kept_steps = kept_steps
        self._rotations: dict[str, Rotation] = {}
        self._steps: list[Step] = []

    async def look(self) -> RotationLook:
        return RotationLook(self._now(), [self._joined(name) for name in sorted(self._rotations)])

    async def find(self, name: str) -> Rotation | None:
        return self._joined(name) if name in self._rotations else None

    async def put(self, name: str, order: RotationOrder, source: Source) -> Rotation:
        now, known = self._now(), self._rotations.get(name)
        fresh = Rotation(name, order, source, order.models[0], now, now)
        fresh = replace(fresh, due_at=schedule(order, now))
        if known is not None:
            is_same = (known.order, known.source) == (order, source)
            has_clock = known.order.clock == order.clock
            fresh = replace(
                known,
                order=order,
                source=source,
                current=known.current if known.current in order.models else fresh.current,
                due_at=known.due_at if has_clock else fresh.due_at,
                updated_at=known.updated_at if is_same else now,
            )
        self._rotations[name] = fresh
        return self._joined(name)

    async def remove(self, name: str) -> bool:
        self._steps = [step for step in self._steps if step.rotation != name]
        return self._rotations.pop(name, None) is not None

    async def pause(self, name: str) -> Rotation | None:
        now = self._now()
        for step in self._steps:
            if (step.rotation, step.state) == (name, StepState.QUEUED) and (
                step.trigger is not Trigger.HAND
            ):
                self._put_step(
                    replace(step, state=StepState.CANCELLED, ended_at=now, message="It was paused.")
                )
        return self._set(name, paused=True, due_at=None)

    async def resume(self, name: str) -> Rotation | None:
        known = self._rotations.get(name)
        if known is None or not known.paused:
            return await self.find(name)
        return self._set(name, paused=False, due_at=schedule(known.order, self._now()))

    async def count(self, requests: Mapping[str, int]) -> None:
        for name, number in requests.items():
            if name in self._rotations:
                self._set(name, counted=self._rotations[name].counted + number)

    async def ask(
        self, step_id: str, name: str, trigger: Trigger, wish: str | None = None
    ) -> Step | None:
        rotation, now = await self.find(name), self._now()
        if rotation is None or rotation.step is not None:
            return None
        if trigger is not Trigger.HAND and find_trigger(rotation, now) is not trigger:
            return None
        step = Step(step_id, name, trigger, rotation.current, asked_at=now, wish=wish)
        self._steps.append(step)
        self._set(name, counted=0)
        return step

    async def claim(self, worker: Worker, name: str) -> Step | None:
        rotation, now = await self.find(name), self._now()
        step = rotation.step if rotation is not None else None
        if step is None or not step.is_free(worker.node, worker.boot, now):
            return None
        return self._put_step(
            replace(
                step,
                state=StepState.RUNNING,
                fence=step.fence + 1,
                node=worker.node,
                boot=worker.boot,
                leased_until=now + worker.lease_s,
                begun_at=now if step.begun_at is None else step.begun_at,
            )
        )

    async def keep(self, step: Step, worker: Worker) -> bool:
        known = self._taken(step, worker)
        if known is not None:
            self._put_step(replace(known, leased_until=self._now() + worker.lease_s))
        return known is not None

    async def record(self, step: Step, worker: Worker, current: str | None = None) -> bool:
        now, known = self._now(), self._taken(step, worker)
        if known is None:
            return False
        is_running = step.state is StepState.RUNNING
        self._put_step(
            replace(
                known,
                state=step.state,
                phase=step.phase,
                target=step.target,
                skipped=step.skipped,
                message=clean_message(step.message),
                leased_until=now + worker.lease_s if is_running else None,
                ended_at=None if step.is_active else now,
            )
        )
        rotation = self._rotations[step.rotation]
        if current is not None:
            self._set(step.rotation, current=current)
        if not step.is_active:
            if not rotation.paused:
                self._set(step.rotation, due_at=schedule(rotation.order, now))
            kept = await self.history(step.rotation, self._kept_steps)
            self._steps = [s for s in self._steps if s.rotation != step.rotation or s in kept]
        return True

    async def history(self, name: str, limit: int) -> Sequence[Step]:
        newest = [step for step in reversed(self._steps) if step.rotation == name]
        return newest[:limit]

    def _joined(self, name: str) -> Rotation:
        active = (s for s in self._steps if s.rotation == name and s.is_active)
        return replace(self._rotations[name], step=next(active, None))

    def _set(self, name: str, **values: object) -> Rotation | None:
        if name not in self._rotations:
            return None
        self._rotations[name] = replace(self._rotations[name], **values)
        return self._joined(name)

    def _put_step(self, step: Step) -> Step:
        self._steps = [step if step.id == known.id else known for known in self._steps]
        return step

    def _taken(self, step: Step, worker: Worker) -> Step | None:
        for known in self._steps:
            mine = (step.id, StepState.RUNNING, step.fence, worker.node, worker.boot)
            if (known.id, known.state, known.fence, known.node, known.boot) == mine:
                return known
        return None
