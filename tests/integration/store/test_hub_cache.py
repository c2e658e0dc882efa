"""The contract of every HubCache."""

from gateway.core.hub import Remembered
from gateway.core.ports import HubCache


async def test_an_answer_comes_back_as_it_was_with_its_time(hub_cache: HubCache) -> None:
    kept = Remembered(b"\x00\xff {}", 1000.25)
    await hub_cache.put("https://h model a/b", kept)
    assert await hub_cache.get("https://h model a/b") == kept
    assert await hub_cache.get("https://h model a/c") is None


async def test_many_come_at_once_by_their_keys(hub_cache: HubCache) -> None:
    one, other = Remembered(b"1", 1.0), Remembered(b"2", 2.0)
    await hub_cache.put("one", one)
    await hub_cache.put("other", other)
    many = [f"none {number}" for number in range(2000)]
    assert await hub_cache.get_all([*many, "one", "other"]) == {"one": one, "other": other}
    assert await hub_cache.get_all([]) == {}


async def test_the_newest_answer_takes_the_place_of_the_old(hub_cache: HubCache) -> None:
    await hub_cache.put("k", Remembered(b"1", 1.0))
    await hub_cache.put("k", Remembered(b"2", 2.0))
    assert await hub_cache.get("k") == Remembered(b"2", 2.0)


async def test_beyond_its_bound_it_forgets_the_oldest(hub_cache: HubCache) -> None:
    for name, at in (("b", 2.0), ("a", 1.0), ("c", 3.0), ("d", 4.0)):
        await hub_cache.put(name, Remembered(name.encode(), at))
    kept = [name for name in "abcd" if await hub_cache.get(name) is not None]
    assert kept == ["b", "c", "d"]


async def test_it_can_forget_everything(hub_cache: HubCache) -> None:
    await hub_cache.put("k" * 5000, Remembered(b"1", 1.0))
    await hub_cache.clear()
    assert await hub_cache.get("k" * 5000) is None
