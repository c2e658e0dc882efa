"""DecisionService and its log: what is in memory, who may see it, what is written behind."""

from collections.abc import Sequence

import anyio
import anyio.lowlevel
import pytest

from gateway import telemetry
from gateway.core.decision_records import DecisionFilter, DecisionRecord
from gateway.core.errors import DatabaseUnavailable, DecisionNotFound
from gateway.core.events import Timings, Usage
from gateway.core.keys import Caller, KeyScope
from gateway.core.ledger import Movement
from gateway.core.messages import GenerateRequest, Message
from gateway.core.names import ModelRef
from gateway.core.plan import Considered, Plan
from gateway.core.routing import Route
from gateway.core.sessions import SessionClosed, SessionOpened
from gateway.core.states import StreamEnd
from gateway.core.virtual import Candidate, VirtualModel
from gateway.services.catalog import Catalog
from gateway.services.decision_log import DecisionLog
from gateway.services.decisions import DecisionService
from gateway.services.images import ImagePolicy
from gateway.services.router import ModelRouterService
from gateway.testing import MemoryDecisionStore, MemorySessionStore
from tests.scripted_provider import ScriptedProvider

REF = ModelRef("scripted", "echo")
PLAIN = Plan("scripted/echo", "name", (Route(REF, None),), (Considered("s", "chosen", "", "name"),))
CHAIN = Plan("any", "listed", (Route(REF, None),), (Considered("s", "chosen", "", "first"),), 3)
INFER = frozenset({KeyScope.INFER})
MANAGER = Caller("boss", frozenset({KeyScope.MANAGE}))
ALICE, BOB = Caller("alice", INFER), Caller("bob", INFER)


class FlakyStore(MemoryDecisionStore):
    """A store whose database can be away, and that never takes one of the records."""

    def __init__(self, sessions: MemorySessionStore) -> None:
        super().__init__(sessions)
        self.is_away = False
        self.poison = ""
        self.batches: list[int] = []

    async def write(self, records: Sequence[DecisionRecord]) -> None:
        await anyio.lowlevel.checkpoint()
        if self.is_away:
            raise DatabaseUnavailable("away")
        if any(record.id == self.poison for record in records):
            raise ValueError("This is no row.")
        self.batches.append(len(records))
        await super().write(records)


class House:
    def __init__(self, **bounds: int) -> None:
        providers = {"scripted": ScriptedProvider()}
        self.provider = providers["scripted"]
        self.sessions = MemorySessionStore()
        self.store = FlakyStore(self.sessions)
        self.log = DecisionLog(**bounds)
        router = ModelRouterService(
            providers,
            Catalog(providers, timeout_s=1, ttl_s=60),
            aliases={},
            images=ImagePolicy(1, 1),
            rules={"any": VirtualModel("any", (Candidate("scripted/echo"),), version=3)},
        )
        self.slept = anyio.Event()
        self.service = DecisionService(
            self.log, self.store, router, node="n", now=lambda: 5.0, sleep=self.sleep
        )

    async def sleep(self, _seconds: float) -> None:
        self.slept.set()
        self.store.is_away = False

    def decide(self, name: str, plan: Plan = CHAIN, *, caller: str = "alice") -> None:
        at = float(name.removeprefix("s"))
        trail = self.log.begin(
            SessionOpened(name, "r", "n", plan.asked, at, caller=caller), "stream"
        )
        trail.plan = plan
        trail.ask(0)
        end = SessionClosed(name, "scripted", "echo", StreamEnd.STOP, at + 1, Usage(), Timings())
        self.log.end(end)

    async def written(self) -> list[str | None]:
        found = await self.store.recent(DecisionFilter(limit=10**6))
        return [record.id for record in found]


async def test_who_has_no_right_to_records_sees_his_own() -> None:
    house = House()
    house.decide("s1", caller="alice")
    house.decide("s2", caller="bob")
    assert (await house.service.find("s1", caller=ALICE)).caller == "alice"
    assert (await house.service.find("s1", caller=MANAGER)).caller == "alice"
    for absent in ("s1", "s9"):
        with pytest.raises(DecisionNotFound, match="You have no such decision"):
            await house.service.find(absent, caller=BOB)
    assert [r.id for r in await house.service.recent(DecisionFilter(), caller=BOB)] == ["s2"]
    spying = DecisionFilter(caller="alice")
    assert [r.id for r in await house.service.recent(spying, caller=BOB)] == ["s2"]
    everything = await house.service.recent(DecisionFilter(), caller=MANAGER)
    assert [r.id for r in everything] == ["s2", "s1"]


async def test_a_decision_can_be_read_from_its_first_moment_on() -> None:
    house = House()
    house.log.begin(SessionOpened("s1", "r", "n", "any", 1.0, caller="alice"), "stream")
    record = await house.service.find("s1", caller=ALICE)
    assert (record.outcome, record.source, record.candidates) == ("running", "memory", ())


async def test_memory_is_bounded_and_the_oldest_go_first() -> None:
    house = House(max_kept=2, max_pending=2)
    for name in ("s1", "s2", "s3"):
        house.decide(name)
    assert [r.id for r in house.log.recent(DecisionFilter())] == ["s3", "s2"]
    assert (house.log.pending_count, house.log.lost) == (2, 1)


async def test_what_its_session_tells_as_well_is_not_written() -> None:
    house = House()
    house.decide("s1", PLAIN)
    assert house.log.pending_count == 0
    house.decide("s2", CHAIN)
    assert house.log.pending_count == 1


async def test_a_move_in_memory_belongs_to_the_request_in_whose_context_it_comes() -> None:
    house = House()
    opened = SessionOpened("s1", "r", "n", "any", 1.0, caller="alice")
    house.log.begin(opened, "stream")
    house.log.begin(SessionOpened("s2", "r", "n", "any", 2.0, caller="alice"), "stream")
    house.log.moved(Movement(REF))  # of nobody's request
    token = telemetry.decision_id.set("s1")
    house.log.moved(Movement(REF, "neighbour"))
    house.log.end(SessionClosed("s1", "scripted", "echo", StreamEnd.STOP, 2.0, Usage(), Timings()))
    house.log.moved(Movement(REF))  # it has ended
    telemetry.decision_id.reset(token)
    [change] = (await house.service.find("s1", caller=ALICE)).memory
    assert (change.change, change.model, change.reason) == ("eviction", str(REF), "neighbour")
    assert (await house.service.find("s2", caller=ALICE)).memory == ()


async def test_decisions_are_written_in_batches_behind_the_requests() -> None:
    house = House()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(house.service.run)
        for number in range(150):
            house.decide(f"s{number}")
        assert await house.service.flush(5)
        tasks.cancel_scope.cancel()
    assert house.store.batches == [100, 50]
    assert len(await house.written()) == 150


async def test_what_a_database_that_is_away_does_not_take_waits_for_it() -> None:
    house = House()
    house.store.is_away = True
    house.decide("s1")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(house.service.run)
        await house.slept.wait()
        assert await house.service.flush(5)
        tasks.cancel_scope.cancel()
    assert await house.written() == ["s1"]
    assert house.log.lost == 0


async def test_one_that_no_database_takes_does_not_hold_up_the_others() -> None:
    house = House()
    house.store.poison = "s2"
    for name in ("s1", "s2", "s3"):
        house.decide(name)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(house.service.run)
        assert await house.service.flush(5)
        tasks.cancel_scope.cancel()
    assert await house.written() == ["s3", "s1"]
    assert (house.log.written, house.log.lost) == (2, 1)


async def test_what_memory_knows_better_is_not_told_by_the_database() -> None:
    house = House()
    running = SessionOpened("s1", "r", "n", "any", 1.0, provider="scripted", model="echo")
    await house.sessions.write([running], [])
    assert [r.id for r in await house.service.recent(DecisionFilter(), caller=MANAGER)] == ["s1"]
    house.decide("s1")
    [record] = await house.service.recent(DecisionFilter(), caller=MANAGER)
    assert record.outcome == "answered"
    wanted = DecisionFilter(outcome="running")
    assert await house.service.recent(wanted, caller=MANAGER) == []


async def test_an_explanation_runs_nothing_and_is_not_kept() -> None:
    house = House()
    request = GenerateRequest(id="r", model="any", messages=(Message.user("hi"),))
    record = await house.service.explain(request, face="native", caller=ALICE)
    assert (record.outcome, record.rule_version, record.opened_at) == ("planned", 3, 5.0)
    assert [each.model for each in record.candidates] == ["scripted/echo"]
    assert house.provider.requests == []
    assert house.log.recent(DecisionFilter()) == []
