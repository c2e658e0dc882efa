"""The gatekeeper over a store in memory, with a clock that the test turns."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.abc import TaskGroup

from gateway.core.errors import (
    DatabaseUnavailable,
    GatewayError,
    KeyRevoked,
    RateLimited,
    Unauthenticated,
)
from gateway.core.keys import Caller, KeyOrder, KeyScope, Peppers
from gateway.services.gatekeeper import LEAVE_S, Gatekeeper
from gateway.services.keys import KeyService
from gateway.services.stamped import LOOK_EVERY_S
from gateway.services.wrong_keys import WrongKeys
from gateway.testing import MemoryKeyStore
from tests.hand_clock import HandClock

PEPPERS = Peppers([b"p" * 32])
INFER = (KeyScope.INFER,)
ADDRESS = "192.0.2.7"
WRONG_KEYS = 5


class FlakyStore(MemoryKeyStore):
    """A store whose database can be away."""

    is_away = False

    async def stamp(self) -> tuple[int, int]:
        if self.is_away:
            raise DatabaseUnavailable("away")
        return await super().stamp()


class House:
    def __init__(self, tasks: TaskGroup) -> None:
        self.store = FlakyStore()
        self.service = KeyService(self.store, PEPPERS)
        self.ended: list[tuple[str, GatewayError]] = []
        self.clock = HandClock()
        self.gatekeeper = Gatekeeper(
            self.store,
            PEPPERS,
            tasks,
            end_streams=lambda key_id, error: self.ended.append((key_id, error)),
            wrong_keys=WrongKeys(WRONG_KEYS, clock=self.clock),
            clock=self.clock,
            sleep=self.clock.sleep,
        )

    async def key(self, **limits: int) -> tuple[str, str]:
        key, text = await self.service.create(KeyOrder("a", INFER, **limits))
        await self.gatekeeper.look()
        return key.id, text


def with_another_secret(text: str) -> str:
    return text[:-1] + ("0" if text[-1] != "0" else "1")


@asynccontextmanager
async def house() -> AsyncIterator[House]:
    async with anyio.create_task_group() as tasks:
        opened = House(tasks)
        await opened.gatekeeper.load()
        yield opened
        tasks.cancel_scope.cancel()


async def test_a_key_is_known_after_the_next_look() -> None:
    async with house() as at:
        assert not at.gatekeeper.needs_keys
        key, text = await at.service.create(KeyOrder("a", INFER, 2, 60))
        with pytest.raises(Unauthenticated):
            at.gatekeeper.authenticate(text, ADDRESS)
        await at.gatekeeper.look()
        expected = Caller(key.id, frozenset(INFER), 2, 60)
        assert at.gatekeeper.authenticate(text, ADDRESS) == expected


async def test_until_the_keys_were_read_once_there_may_be_some() -> None:
    async with anyio.create_task_group() as tasks:
        at = House(tasks)
        at.store.is_away = True
        await at.gatekeeper.look()
        assert at.gatekeeper.needs_keys
        with pytest.raises(DatabaseUnavailable):
            at.gatekeeper.authenticate("any", ADDRESS)
        at.store.is_away = False
        await at.gatekeeper.look()
        assert not at.gatekeeper.needs_keys


async def test_a_wrong_secret_and_an_unknown_id_are_told_the_same() -> None:
    async with house() as at:
        _, text = await at.key()
        told = set()
        for wrong in (with_another_secret(text), f"gw-{'0' * 12}-{'0' * 64}"):
            with pytest.raises(Unauthenticated) as refused:
                at.gatekeeper.authenticate(wrong, ADDRESS)
            told.add((refused.value.code, refused.value.message))
        assert len(told) == 1


async def test_revoking_ends_streams_at_once_and_cuts_who_is_left_after_the_grace() -> None:
    async with house() as at:
        key_id, text = await at.key()
        other_id, other = await at.key()
        cut: list[str] = []
        with (
            at.gatekeeper.admitted(
                at.gatekeeper.authenticate(text, ADDRESS), lambda: cut.append("mine")
            ),
            at.gatekeeper.admitted(
                at.gatekeeper.authenticate(other, ADDRESS), lambda: cut.append("other")
            ),
        ):
            with at.gatekeeper.admitted(Caller(key_id), lambda: cut.append("left in time")):
                await at.service.revoke(key_id)
                await at.gatekeeper.look()
            [(ended, error)] = at.ended
            assert (ended, type(error)) == (key_id, KeyRevoked)
            assert cut == []
            await anyio.wait_all_tasks_blocked()
            await at.clock.turn(LEAVE_S)
        assert cut == ["mine"]
        assert {ended for ended, _ in at.ended} == {key_id}
        with pytest.raises(KeyRevoked):
            at.gatekeeper.authenticate(text, ADDRESS)
        assert at.gatekeeper.authenticate(other, ADDRESS).id == other_id


async def test_revoking_the_last_key_does_not_open_the_gateway() -> None:
    async with house() as at:
        key_id, _ = await at.key()
        await at.service.revoke(key_id)
        await at.gatekeeper.look()
        assert at.gatekeeper.needs_keys


async def test_with_the_database_away_known_keys_go_on_and_unknown_ones_are_not_judged() -> None:
    async with house() as at:
        key_id, text = await at.key()
        at.store.is_away = True
        await at.gatekeeper.look()
        assert at.gatekeeper.authenticate(text, ADDRESS).id == key_id
        with pytest.raises(DatabaseUnavailable):
            at.gatekeeper.authenticate(f"gw-{'0' * 12}-{'0' * 64}", ADDRESS)
        with pytest.raises(Unauthenticated):
            at.gatekeeper.authenticate(with_another_secret(text), ADDRESS)
        await at.service.revoke(key_id)
        at.store.is_away = False
        await at.gatekeeper.look()
        assert [ended for ended, _ in at.ended] == [key_id]


async def test_the_loop_looks_again_after_each_sleep() -> None:
    async with house() as at, anyio.create_task_group() as tasks:
        tasks.start_soon(at.gatekeeper.run)
        await at.service.create(KeyOrder("a", INFER))
        assert not at.gatekeeper.needs_keys
        for _ in range(2):
            await anyio.wait_all_tasks_blocked()
            await at.clock.turn(LOOK_EVERY_S)
        assert at.gatekeeper.needs_keys
        tasks.cancel_scope.cancel()


async def test_each_key_has_a_bucket_of_its_own_and_none_without_a_limit() -> None:
    async with house() as at:
        texts = [(await at.key(requests_per_minute=1))[1] for _ in range(2)]
        one, two = [at.gatekeeper.authenticate(text, ADDRESS) for text in texts]
        free = at.gatekeeper.authenticate((await at.key())[1], ADDRESS)
        waits = [at.gatekeeper.count_request(caller) for caller in (one, one, two, free)]
        assert [a and a.wait_s is None for a in waits] == [True, False, True, None]
        await at.clock.turn(60)
        allowance = at.gatekeeper.count_request(one)
        assert allowance is not None and allowance.wait_s is None


async def test_too_many_wrong_keys_are_told_when_to_come_back_and_a_right_one_still_passes() -> (
    None
):
    async with house() as at:
        key_id, text = await at.key()
        wrong = with_another_secret(text)
        for _ in range(WRONG_KEYS):
            with pytest.raises(Unauthenticated):
                at.gatekeeper.authenticate(wrong, ADDRESS)
        with pytest.raises(RateLimited) as refused:
            at.gatekeeper.authenticate(wrong, ADDRESS)
        assert refused.value.retry_after_s == pytest.approx(60 / WRONG_KEYS)
        assert at.gatekeeper.authenticate(text, ADDRESS).id == key_id
        with pytest.raises(Unauthenticated):
            at.gatekeeper.authenticate(wrong, "192.0.2.8")
