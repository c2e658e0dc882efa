"""Rotations in the database, and whose step is whose. When it is time is decided in
`core.rotation`; here it is asked again in the transaction that queues the step."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Row, Select, and_, delete, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.core.ports import RotationLook, Worker
from gateway.core.rotation import (
    ACTIVE,
    Phase,
    Rotation,
    RotationOrder,
    Skipped,
    Source,
    Step,
    StepState,
    Trigger,
    find_trigger,
    schedule,
)
from gateway.store.clock import read_clock
from gateway.store.database import Database
from gateway.store.tables import rotation_steps, rotations

logger = logging.getLogger(__name__)

KEPT_STEPS = 1000
"""Of each rotation; older ones are forgotten."""

_IS_ACTIVE = rotation_steps.c.state.in_(sorted(ACTIVE))
_ALL = select(
    rotations, *(column.label(f"step_{column.name}") for column in rotation_steps.c)
).outerjoin(rotation_steps, and_(rotation_steps.c.rotation == rotations.c.name, _IS_ACTIVE))


class DatabaseRotationStore:
    """The RotationStore of a real gateway."""

    def __init__(self, database: Database, *, kept_steps: int = KEPT_STEPS) -> None:
        self._database = database
        self._kept_steps = kept_steps

    async def look(self) -> RotationLook:
        async with self._database.reading() as connection:
            now = await read_clock(connection)
            rows = await connection.execute(_ALL.order_by(rotations.c.name))
            found = [rotation for row in rows if (rotation := _rotation(row)) is not None]
        return RotationLook(now, found)

    async def find(self, name: str) -> Rotation | None:
        async with self._database.reading() as connection:
            return await _find(connection, name)

    async def put(self, name: str, order: RotationOrder, source: Source) -> Rotation:
        async with self._database.writing() as connection:
            now = await read_clock(connection)
            known = await _find(connection, name, lock=True)
            put = self._database.insert(rotations).values(
                name=name,
                definition=msgspec.to_builtins(order),
                source=source,
                current_model=order.models[0],
                paused=False,
                due_at=schedule(order, now),
                counted=0,
                created_at=now,
                updated_at=now,
            )
            new = put.excluded
            changed: dict[str, Any] = {"definition": new.definition, "source": new.source}
            if known is None or known.current not in order.models:
                changed["current_model"] = new.current_model
            if known is None or known.order.clock != order.clock:
                changed["due_at"] = new.due_at
            if known is None or (known.order, known.source) != (order, source):
                changed["updated_at"] = new.updated_at
            await connection.execute(
                put.on_conflict_do_update(index_elements=[rotations.c.name], set_=changed)
            )
            found = await _find(connection, name)
        assert found is not None, "it was just written"
        return found

    async def remove(self, name: str) -> bool:
        async with self._database.writing() as connection:
            gone = await connection.execute(delete(rotations).where(rotations.c.name == name))
        return bool(gone.rowcount)

    async def pause(self, name: str) -> Rotation | None:
        waiting = and_(
            rotation_steps.c.rotation == name,
            rotation_steps.c.state == StepState.QUEUED,
            rotation_steps.c.cause != Trigger.HAND,
        )
        async with self._database.writing() as connection:
            now = await read_clock(connection)
            known = await _find(connection, name, lock=True)
            await connection.execute(
                update(rotation_steps)
                .where(waiting)
                .values(state=StepState.CANCELLED, ended_at=now, message="It was paused.")
            )
            if known is not None and not known.paused:
                values = {"paused": True, "due_at": None, "updated_at": now}
                await _change(connection, name, values)
            return await _find(connection, name)

    async def resume(self, name: str) -> Rotation | None:
        async with self._database.writing() as connection:
            now = await read_clock(connection)
            known = await _find(connection, name, lock=True)
            if known is not None and known.paused:
                due_at = schedule(known.order, now)
                values = {"paused": False, "due_at": due_at, "updated_at": now}
                await _change(connection, name, values)
            return await _find(connection, name)

    async def count(self, requests: Mapping[str, int]) -> None:
        async with self._database.writing() as connection:
            for name, number in sorted(requests.items()):
                values = {"counted": rotations.c.counted + number}
                await _change(connection, name, values)

    async def ask(
        self, step_id: str, name: str, trigger: Trigger, wish: str | None = None
    ) -> Step | None:
        async with self._database.writing() as connection:
            now = await read_clock(connection)
            rotation = await _find(connection, name, lock=True)
            if rotation is None or rotation.step is not None:
                return None
            if trigger is not Trigger.HAND and find_trigger(rotation, now) is not trigger:
                return None  # another gateway was faster
            step = Step(step_id, name, trigger, rotation.current, asked_at=now, wish=wish)
            await connection.execute(insert(rotation_steps).values(_step_values(step)))
            await _change(connection, name, {"counted": 0})
            return step

    async def claim(self, worker: Worker, name: str) -> Step | None:
        async with self._database.writing() as connection:
            now = await read_clock(connection)
            row = (await connection.execute(_free(worker, name, now))).first()
            if row is None:
                return None
            taken = {
                "state": StepState.RUNNING,
                "fence": rotation_steps.c.fence + 1,
                "node": worker.node,
                "boot": worker.boot,
                "leased_until": now + worker.lease_s,
                "begun_at": now if row.begun_at is None else row.begun_at,
            }
            this = rotation_steps.c.id == row.id
            await connection.execute(update(rotation_steps).where(this).values(taken))
            claimed = (await connection.execute(select(rotation_steps).where(this))).one()
        return _step(claimed._mapping)

    async def keep(self, step: Step, worker: Worker) -> bool:
        async with self._database.writing() as connection:
            until = await read_clock(connection) + worker.lease_s
            mine = update(rotation_steps).where(_is_taken_by(step, worker))
            return bool((await connection.execute(mine.values(leased_until=until))).rowcount)

    async def record(self, step: Step, worker: Worker, current: str | None = None) -> bool:
        async with self._database.writing() as connection:
            now = await read_clock(connection)
            values = {
                "state": step.state,
                "phase": step.phase,
                "target": step.target,
                "skipped": msgspec.to_builtins(step.skipped),
                "message": step.message,
                "leased_until": now + worker.lease_s if step.state is StepState.RUNNING else None,
                "ended_at": None if step.is_active else now,
            }
            mine = update(rotation_steps).where(_is_taken_by(step, worker))
            if not (await connection.execute(mine.values(values))).rowcount:
                return False
            if current is not None:
                await _change(connection, step.rotation, {"current_model": current})
            if not step.is_active:
                await self._set_next(connection, step.rotation, now)
        return True

    async def history(self, name: str, limit: int) -> Sequence[Step]:
        newest = _newest(name).limit(limit)
        async with self._database.reading() as connection:
            return [_step(row._mapping) for row in await connection.execute(newest)]

    async def _set_next(self, connection: AsyncConnection, name: str, now: float) -> None:
        """Set when the next step comes after one that ended, and forget the oldest steps."""
        rotation = await _find(connection, name)
        if rotation is not None and not rotation.paused:
            await _change(connection, name, {"due_at": schedule(rotation.order, now)})
        oldest = _newest(name).with_only_columns(rotation_steps.c.id).offset(self._kept_steps)
        ids = list((await connection.execute(oldest.limit(100))).scalars())
        if ids:
            await connection.execute(delete(rotation_steps).where(rotation_steps.c.id.in_(ids)))


def _free(worker: Worker, name: str, now: float) -> Select[Any]:
    """Choose the step that is queued, that nobody keeps any more, or that an earlier run of this
    gateway left: `Step.is_free` in SQL."""
    steps = rotation_steps.c
    is_left = and_(steps.node == worker.node, steps.boot != worker.boot)
    is_over = or_(steps.leased_until.is_(None), steps.leased_until < now)
    is_free = or_(
        steps.state == StepState.QUEUED,
        and_(steps.state == StepState.RUNNING, or_(is_left, is_over)),
    )
    # Two gateways that look at once must not both find it; SQLite has one writer anyway.
    return (
        select(rotation_steps)
        .where(steps.rotation == name, is_free)
        .with_for_update(skip_locked=True)
    )


def _is_taken_by(step: Step, worker: Worker) -> Any:
    return and_(
        rotation_steps.c.id == step.id,
        rotation_steps.c.state == StepState.RUNNING,
        rotation_steps.c.fence == step.fence,
        rotation_steps.c.node == worker.node,
        rotation_steps.c.boot == worker.boot,
    )


def _newest(name: str) -> Select[Any]:
    steps = rotation_steps.c
    return (
        select(rotation_steps)
        .where(steps.rotation == name)
        .order_by(steps.asked_at.desc(), steps.id.desc())
    )


async def _find(connection: AsyncConnection, name: str, *, lock: bool = False) -> Rotation | None:
    statement = _ALL.where(rotations.c.name == name)
    if lock:
        # Alone: PostgreSQL locks no row that an outer join may leave out.
        alone = select(rotations.c.name).where(rotations.c.name == name).with_for_update()
        await connection.execute(alone)
    row = (await connection.execute(statement)).first()
    return None if row is None else _rotation(row)


async def _change(connection: AsyncConnection, name: str, values: Mapping[str, Any]) -> None:
    await connection.execute(update(rotations).where(rotations.c.name == name).values(values))


def _rotation(row: Row[Any]) -> Rotation | None:
    try:
        order = msgspec.convert(row.definition, RotationOrder)
    except msgspec.ValidationError as error:
        # A newer gateway may have written it.
        logger.warning("rotation %s cannot be read: %s", row.name, error)
        return None
    values = row._mapping
    step = {column.name: values[f"step_{column.name}"] for column in rotation_steps.c}
    return Rotation(
        name=row.name,
        order=order,
        source=row.source,
        current=row.current_model,
        created_at=row.created_at,
        updated_at=row.updated_at,
        paused=row.paused,
        due_at=row.due_at,
        counted=row.counted,
        step=None if row.step_id is None else _step(step),
    )


def _step(values: Mapping[Any, Any]) -> Step:
    named = {name: values[name] for name in Step.__struct_fields__ if name in values}
    return Step(
        **named
        | {
            "trigger": Trigger(values["cause"]),
            "state": StepState(values["state"]),
            "phase": Phase(values["phase"]),
            "skipped": msgspec.convert(values["skipped"], tuple[Skipped, ...]),
        }
    )


def _step_values(step: Step) -> dict[str, Any]:
    values = msgspec.structs.asdict(step)
    cause = values.pop("trigger")
    return {**values, "cause": cause, "skipped": msgspec.to_builtins(step.skipped)}
