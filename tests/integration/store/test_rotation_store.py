"""The contract of every RotationStore: each step once, behind a fence, by the store's clock."""

import anyio
from msgspec.structs import replace
from sqlalchemy import text

from gateway.core.ports import RotationStore, Worker
from gateway.core.rotation import (
    Phase,
    Rotation,
    RotationOrder,
    Skipped,
    Step,
    StepState,
    Trigger,
)
from gateway.store.database import Database
from gateway.store.rotations import DatabaseRotationStore

S, T = StepState, Trigger
ORDER = RotationOrder(("a/1", "b/2", "c/3"), interval_s=60.0)
NEVER = replace(ORDER, interval_s=None)
ALWAYS = replace(ORDER, interval_s=1e-6)
"""Due as soon as it is written."""
ME = Worker("node", "boot", 30.0)
AGAIN = Worker("node", "next boot", 30.0)
OTHER = Worker("other", "boot", 30.0)
OVER = Worker("node", "boot", -1.0)
"""Whose leases are over at once."""


async def found(rotation_store: RotationStore, name: str = "r") -> Rotation:
    rotation = await rotation_store.find(name)
    assert rotation is not None
    return rotation


async def begun(
    rotation_store: RotationStore, worker: Worker = ME, order: RotationOrder = NEVER
) -> Step:
    """A rotation with a step that the worker takes."""
    await rotation_store.put("r", order, "database")
    assert await rotation_store.ask("s", "r", T.HAND)
    step = await rotation_store.claim(worker, "r")
    assert step is not None
    return step


async def test_a_rotation_comes_back_as_it_was(rotation_store: RotationStore) -> None:
    whole = RotationOrder(
        models=("a/1", "ü/2@v"),
        cron="0 8 * * MON",
        timezone="Europe/Berlin",
        requests=5,
        warm_up=False,
        unload=False,
        drain_s=1.5,
        busy_streams=0,
        yield_s=2.5,
    )
    put = await rotation_store.put("r", whole, "config")
    assert put == await found(rotation_store)
    assert (put.order, put.source, put.current) == (whole, "config", "a/1")
    now, [only] = await rotation_store.look()
    assert only == put
    assert abs(put.created_at - now) < 60 and put.due_at is not None and put.due_at > now
    for unknown in ("", "x", "\x00", "a' OR '1'='1"):
        assert await rotation_store.find(unknown) is None


async def test_a_new_order_keeps_who_answers_and_when_the_next_comes(
    rotation_store: RotationStore,
) -> None:
    first = await rotation_store.put("r", ORDER, "database")
    same = await rotation_store.put("r", replace(ORDER, drain_s=5.0), "database")
    assert (same.due_at, same.created_at) == (first.due_at, first.created_at)
    step = await begun(rotation_store)
    assert await rotation_store.record(replace(step, phase=Phase.RELEASING), ME, current="b/2")
    still_in = await rotation_store.put("r", replace(NEVER, models=("x", "b/2")), "database")
    assert still_in.current == "b/2"
    gone = await rotation_store.put("r", replace(NEVER, models=("x", "y")), "database")
    assert (gone.current, gone.due_at) == ("x", None)


async def test_what_did_not_change_is_not_touched(rotation_store: RotationStore) -> None:
    first = await rotation_store.put("r", ORDER, "config")
    assert await rotation_store.put("r", ORDER, "config") == first
    paused = await rotation_store.pause("r")
    assert await rotation_store.put("r", ORDER, "config") == paused


async def test_a_removed_rotation_takes_its_steps_along(rotation_store: RotationStore) -> None:
    await begun(rotation_store)
    assert await rotation_store.remove("r")
    assert not await rotation_store.remove("r")
    assert await rotation_store.history("r", 9) == []
    assert await rotation_store.claim(OTHER, "r") is None


async def test_two_who_see_that_it_is_time_queue_one_step(rotation_store: RotationStore) -> None:
    await rotation_store.put("r", ALWAYS, "database")
    steps: list[Step | None] = []

    async def ask(name: str) -> None:
        steps.append(await rotation_store.ask(name, "r", T.INTERVAL))

    async with anyio.create_task_group() as tasks:
        for name in "xyz":
            tasks.start_soon(ask, name)
    assert len([step for step in steps if step]) == 1
    assert len(await rotation_store.history("r", 9)) == 1


async def test_who_comes_too_late_queues_nothing(rotation_store: RotationStore) -> None:
    await rotation_store.put("r", ALWAYS, "database")
    assert await rotation_store.ask("s", "r", T.INTERVAL)
    step = await rotation_store.claim(ME, "r")
    assert step is not None
    assert await rotation_store.put("r", ORDER, "database")  # due in a minute from now on
    assert await rotation_store.record(replace(step, state=S.SUCCEEDED), ME)
    assert await rotation_store.ask("t", "r", T.INTERVAL) is None
    assert await rotation_store.ask("t", "r", T.REQUESTS) is None
    assert await rotation_store.ask("t", "nobody", T.HAND) is None
    assert await rotation_store.ask("t", "r", T.HAND, "c/3")


async def test_requests_are_counted_up_to_the_next_step(rotation_store: RotationStore) -> None:
    await rotation_store.put("r", replace(NEVER, requests=5), "database")
    await rotation_store.count({"r": 3, "nobody": 1})
    assert await rotation_store.ask("s", "r", T.REQUESTS) is None
    await rotation_store.count({"r": 2})
    assert (await found(rotation_store)).counted == 5
    assert await rotation_store.ask("s", "r", T.REQUESTS)
    assert (await found(rotation_store)).counted == 0


async def test_a_step_is_taken_once(rotation_store: RotationStore) -> None:
    await rotation_store.put("r", NEVER, "database")
    asked = await rotation_store.ask("s", "r", T.HAND, "c/3")
    assert asked is not None and (asked.origin, asked.wish, asked.state) == ("a/1", "c/3", S.QUEUED)
    taken = await rotation_store.claim(ME, "r")
    assert taken is not None
    assert (taken.id, taken.state, taken.fence, taken.node) == ("s", S.RUNNING, 1, "node")
    assert await rotation_store.claim(OTHER, "r") is None
    assert await rotation_store.claim(ME, "r") is None
    assert (await found(rotation_store)).step == taken


async def test_what_an_earlier_run_left_is_taken_on_at_once(rotation_store: RotationStore) -> None:
    step = await begun(rotation_store)
    later = await rotation_store.claim(AGAIN, "r")
    assert later is not None and later.fence == step.fence + 1
    assert later.begun_at == step.begun_at
    assert not await rotation_store.keep(step, ME)
    assert not await rotation_store.record(replace(step, state=S.SUCCEEDED), ME, current="b/2")
    assert (await found(rotation_store)).current == "a/1"
    assert await rotation_store.record(replace(later, state=S.SUCCEEDED), AGAIN, current="b/2")
    assert (await found(rotation_store)).current == "b/2"


async def test_who_was_stopped_for_longer_than_his_lease_is_fenced_off(
    rotation_store: RotationStore,
) -> None:
    step = await begun(rotation_store, OVER)
    taken = await rotation_store.claim(OTHER, "r")
    assert taken is not None and taken.fence == 2
    assert not await rotation_store.keep(step, ME)
    assert not await rotation_store.record(step, ME, current="b/2")
    # Also when it is his again: the fence tells his two turns apart.
    assert await rotation_store.record(replace(taken, state=S.QUEUED), OTHER)
    mine = await rotation_store.claim(ME, "r")
    assert mine is not None and mine.fence == 3
    assert not await rotation_store.record(step, ME, current="b/2")
    assert await rotation_store.keep(mine, ME)
    assert (await found(rotation_store)).current == "a/1"


async def test_a_lease_that_is_kept_is_not_taken(rotation_store: RotationStore) -> None:
    step = await begun(rotation_store, OVER)
    assert await rotation_store.keep(step, ME)
    assert await rotation_store.claim(OTHER, "r") is None


async def test_what_is_recorded_comes_back(rotation_store: RotationStore) -> None:
    step = await begun(rotation_store, order=ORDER)
    told = replace(
        step,
        phase=Phase.DRAINING,
        target="c/3",
        skipped=(Skipped("b/2", "It is away."),),
        message="so \x00 so",
    )
    assert await rotation_store.record(told, ME, current="c/3")
    rotation = await found(rotation_store)
    assert rotation.current == "c/3" and rotation.step is not None
    assert rotation.step.skipped == told.skipped
    assert (rotation.step.phase, rotation.step.target) == (Phase.DRAINING, "c/3")
    assert rotation.step.message == "so \ufffd so"
    assert await rotation_store.record(replace(told, state=S.SUCCEEDED), ME)
    now, [rotation] = await rotation_store.look()
    assert rotation.step is None
    assert rotation.due_at is not None and now < rotation.due_at <= now + 60
    [ended] = await rotation_store.history("r", 9)
    assert ended.state is S.SUCCEEDED and ended.leased_until is None
    assert ended.ended_at is not None and ended.begun_at is not None
    assert ended.asked_at <= ended.begun_at <= ended.ended_at


async def test_a_pause_cancels_what_waits_but_not_what_was_asked_for(
    rotation_store: RotationStore,
) -> None:
    await rotation_store.put("r", ALWAYS, "database")
    assert await rotation_store.ask("s", "r", T.INTERVAL)
    paused = await rotation_store.pause("r")
    assert paused is not None and paused.paused and paused.step is None and paused.due_at is None
    assert [step.state for step in await rotation_store.history("r", 9)] == [S.CANCELLED]
    assert await rotation_store.ask("t", "r", T.INTERVAL) is None
    assert await rotation_store.ask("t", "r", T.HAND)
    rotation = await rotation_store.pause("r")
    assert rotation is not None and rotation.step is not None
    resumed = await rotation_store.resume("r")
    assert resumed is not None and not resumed.paused and resumed.due_at is not None
    assert (
        await rotation_store.pause("nobody") is None
        and await rotation_store.resume("nobody") is None
    )


async def test_only_the_newest_steps_are_kept(rotation_store: RotationStore) -> None:
    await rotation_store.put("r", NEVER, "database")
    for name in "uvwxyz":
        assert await rotation_store.ask(name, "r", T.HAND)
        step = await rotation_store.claim(ME, "r")
        assert step is not None
        assert await rotation_store.record(replace(step, state=S.SUCCEEDED), ME)
    assert [step.id for step in await rotation_store.history("r", 9)] == ["z", "y", "x"]
    assert [step.id for step in await rotation_store.history("r", 2)] == ["z", "y"]


async def test_what_a_newer_gateway_wrote_is_left_out(
    database: Database,
) -> None:
    rotation_store = DatabaseRotationStore(database)
    await rotation_store.put("r", ORDER, "database")
    await rotation_store.put("s", ORDER, "database")
    strange = "UPDATE rotations SET definition = '{\"of\": \"tomorrow\"}' WHERE name = 'r'"
    async with database.writing() as connection:
        await connection.execute(text(strange))
    assert [rotation.name for rotation in (await rotation_store.look()).rotations] == ["s"]
