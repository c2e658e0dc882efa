"""The contract of every RuleStore, and writers of two gateways at once."""

from collections.abc import Sequence

import anyio
import pytest

from gateway.core.errors import InvalidRequest, RouteChanged
from gateway.core.ports import RuleStore
from gateway.core.rules import RuleDraft, StoredRule
from gateway.core.virtual import Candidate
from gateway.store.database import Database
from gateway.store.rules import DatabaseRuleStore

ALIAS = RuleDraft("short' OR 1=1;--é", "ollama/llama3.2:3b")
VIRTUAL = RuleDraft(
    "team/any", None, (Candidate("a/m", 2.5), Candidate("short", 0.0)), "warm_first"
)


def allow(_stored: Sequence[StoredRule]) -> None:
    pass


async def put(
    store: RuleStore, draft: RuleDraft, expected: int | None = None, at: float = 5.25
) -> StoredRule:
    return await store.put(draft, allow, expected=expected, at=at, by="k1")


async def test_rules_come_back_as_they_were_by_name(rule_store: RuleStore) -> None:
    virtual = await put(rule_store, VIRTUAL)
    alias = await put(rule_store, ALIAS)
    assert (virtual.draft, virtual.updated_at, virtual.updated_by) == (VIRTUAL, 5.25, "k1")
    assert list(await rule_store.all()) == [alias, virtual]


async def test_a_version_is_never_used_twice_and_every_change_shows_in_the_stamp(
    rule_store: RuleStore,
) -> None:
    stamps = [await rule_store.stamp()]
    versions = []
    for draft in (ALIAS, VIRTUAL, ALIAS):
        versions.append((await put(rule_store, draft)).version)
        stamps.append(await rule_store.stamp())
    assert await rule_store.remove(ALIAS.name, expected=versions[-1])
    stamps.append(await rule_store.stamp())
    versions.append((await put(rule_store, ALIAS)).version)
    assert not await rule_store.remove("nobody", expected=None)
    assert len(set(versions)) == len(versions)
    assert len(set(stamps)) == len(stamps)


async def test_a_version_that_is_not_there_changes_nothing(rule_store: RuleStore) -> None:
    first = await put(rule_store, ALIAS, expected=0)
    stamp = await rule_store.stamp()
    changed = RuleDraft(ALIAS.name, "ollama/other")
    for expected in (0, first.version + 1):
        with pytest.raises(RouteChanged):
            await put(rule_store, changed, expected=expected)
        with pytest.raises(RouteChanged):
            await rule_store.remove(ALIAS.name, expected=expected)
    with pytest.raises(RouteChanged):
        await put(rule_store, VIRTUAL, expected=first.version)
    assert list(await rule_store.all()) == [first]
    assert await rule_store.stamp() == stamp
    second = await put(rule_store, changed, expected=first.version)
    assert list(await rule_store.all()) == [second]


async def test_a_check_sees_what_there_is_and_stops_the_change(rule_store: RuleStore) -> None:
    first = await put(rule_store, ALIAS)
    stamp = await rule_store.stamp()
    seen: list[StoredRule] = []

    def refuse(stored: Sequence[StoredRule]) -> None:
        seen.extend(stored)
        raise InvalidRequest("No.")

    with pytest.raises(InvalidRequest):
        await rule_store.put(VIRTUAL, refuse, expected=None, at=1.0, by="")
    assert seen == [first]
    assert list(await rule_store.all()) == [first]
    assert await rule_store.stamp() == stamp


async def test_writers_of_several_gateways_take_turns(database_url: str) -> None:
    """Each check sees all that was written before: no two agree with the same state."""
    seen: list[int] = []

    async with (
        Database(database_url) as first,
        Database(database_url) as second,
        anyio.create_task_group() as tasks,
    ):
        stores = [DatabaseRuleStore(first), DatabaseRuleStore(second)]

        async def write(number: int) -> None:
            await stores[number % 2].put(
                RuleDraft(f"r{number}", "a/m"),
                lambda stored: seen.append(len(stored)),
                expected=0,
                at=1.0,
                by="",
            )

        for number in range(8):
            tasks.start_soon(write, number)
    assert seen == list(range(8))
