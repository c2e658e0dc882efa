"""The contract of every FileStore and every CollectionStore."""

from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from gateway.core.collections import Collection, CollectionChange, CollectionOrder, SavedConfig
from gateway.core.errors import CollectionExists, InvalidRequest
from gateway.core.library import Check, FileRecord, Verdict, Verification
from gateway.core.loading import LoadConfig, ModelConfig
from gateway.core.messages import Options
from gateway.core.ports import CollectionStore, FileStore
from gateway.core.rules import RuleDraft, StoredRule

VERDICT = Verification(Verdict.CORRUPT, Check.LOAD, "5-7", 1500.25, "It is cut off.")
WHOLE = FileRecord("/b", "o/n", "hub", 2**40, 1000.5, "o/n", "a" * 40, 1200.25, VERDICT)
BARE = FileRecord("/a", "m", "local", 0, 1000.5)
CONFIG = ModelConfig(
    LoadConfig("cpu", "float32", "int8", 128),
    Options(temperature=0.5, stop=("a", "b"), logit_bias=((1, -1.5),), seed=2**64 - 1),
    keep_alive_s=-1.0,
    pinned=True,
)
SMALL = Collection("1", "small", "chat", "fits", ("o/n", "ollama/b:latest"), 1.5, 1.5)
EMPTY = Collection("2", "empty", "", "", (), 2.5, 2.5)


async def test_records_come_back_as_they_were_by_path_and_node(file_store: FileStore) -> None:
    await file_store.put("n", [WHOLE, BARE])
    await file_store.put("other", [BARE])
    assert list(await file_store.all("n")) == [BARE, WHOLE]
    await file_store.forget("n", ["/a", "/nowhere"])
    assert list(await file_store.all("n")) == [WHOLE]
    assert list(await file_store.all("other")) == [BARE]


async def test_a_record_keeps_when_it_came_and_its_latest_use(file_store: FileStore) -> None:
    await file_store.put("n", [WHOLE])
    await file_store.put("n", [replace(WHOLE, first_seen=9000.0, last_used=1.0, verification=None)])
    [stored] = await file_store.all("n")
    assert (stored.first_seen, stored.last_used) == (1000.5, 1200.25)
    assert stored.verification is None
    await file_store.put("n", [replace(WHOLE, last_used=None)])
    await file_store.put("n", [replace(WHOLE, last_used=1300.0, size_bytes=5)])
    [stored] = await file_store.all("n")
    assert (stored.last_used, stored.size_bytes, stored.verification) == (1300.0, 5, VERDICT)


async def test_collections_come_back_as_they_were_by_name(
    collection_store: CollectionStore,
) -> None:
    await collection_store.add(SMALL)
    await collection_store.add(EMPTY)
    assert list(await collection_store.collections()) == [EMPTY, SMALL]
    assert await collection_store.remove("1")
    assert not await collection_store.remove("1")
    assert list(await collection_store.collections()) == [EMPTY]


async def test_a_name_is_there_once(collection_store: CollectionStore) -> None:
    await collection_store.add(SMALL)
    await collection_store.add(EMPTY)
    with pytest.raises(CollectionExists, match="small"):
        await collection_store.add(replace(EMPTY, id="3", name="small"))
    with pytest.raises(CollectionExists, match="small"):
        await collection_store.change("2", CollectionChange(name="small"), 9.0)
    assert list(await collection_store.collections()) == [EMPTY, SMALL]
    assert await collection_store.change("1", CollectionChange(name="small"), 9.5)


async def test_a_change_leaves_what_it_does_not_name(collection_store: CollectionStore) -> None:
    await collection_store.add(SMALL)
    assert await collection_store.change("1", CollectionChange(category="x", description=""), 9.5)
    [found] = await collection_store.collections()
    assert found == replace(SMALL, category="x", description="", updated_at=9.5)
    assert not await collection_store.change("9", CollectionChange(name="y"), 9.5)


async def test_models_come_and_go_in_order(collection_store: CollectionStore) -> None:
    await collection_store.add(SMALL)
    for at, model in enumerate(("c", "a", "c")):
        assert await collection_store.add_model("1", model, 100.0 + at)
    [found] = await collection_store.collections()
    assert found.models == (*SMALL.models, "c", "a")
    assert await collection_store.remove_model("1", "o/n", 200.0)
    assert not await collection_store.remove_model("1", "o/n", 201.0)
    assert not await collection_store.add_model("9", "a", 1.0)
    [found] = await collection_store.collections()
    assert (found.models, found.updated_at) == (("ollama/b:latest", "c", "a"), 200.0)


async def test_configs_come_back_as_they_were(collection_store: CollectionStore) -> None:
    await collection_store.put_config(SavedConfig("huggingface/o/n@main", ModelConfig()), 1.0)
    await collection_store.put_config(SavedConfig("huggingface/o/n@main", CONFIG), 2.0)
    await collection_store.put_config(SavedConfig("ollama/b:latest", ModelConfig()), 1.0)
    configs = await collection_store.configs()
    assert dict(configs) == {"huggingface/o/n@main": CONFIG, "ollama/b:latest": ModelConfig()}


async def test_all_is_written_and_what_has_a_name_is_replaced(
    collection_store: CollectionStore,
) -> None:
    await collection_store.add(SMALL)
    orders = [("8", CollectionOrder("small", "c", "", ("z", "y"))), ("9", CollectionOrder("new"))]
    configs = [SavedConfig("huggingface/m", CONFIG)]
    await collection_store.put_all(orders, configs, [], refuse, at=50.5, by="")
    new, small = await collection_store.collections()
    assert new == Collection("9", "new", "", "", (), 50.5, 50.5)
    assert small == Collection("1", "small", "c", "", ("z", "y"), 1.5, 50.5)
    assert await collection_store.configs() == {"huggingface/m": CONFIG}


async def test_nothing_is_written_when_a_part_cannot_be(database_url: str) -> None:
    from gateway.core.errors import GatewayError
    from gateway.store.collections import DatabaseCollectionStore
    from gateway.store.database import Database
    from gateway.store.rules import DatabaseRuleStore

    async with Database(database_url) as database:
        store, rules = DatabaseCollectionStore(database), DatabaseRuleStore(database)
        orders, routes = [("8", CollectionOrder("new"))], [RuleDraft("r", "o/n")]
        wrong, right = SavedConfig("huggingface/../m", CONFIG), SavedConfig("huggingface/m", CONFIG)
        for config, check in ((wrong, allow), (right, refuse)):
            with pytest.raises(GatewayError):
                await store.put_all(orders, [config], routes, check, at=1.0, by="")
        assert list(await store.collections()) == list(await rules.all()) == []
        assert dict(await store.configs()) == {} and await rules.stamp() == 0


async def test_routes_of_an_import_are_written_beside_those_there_are(database_url: str) -> None:
    from gateway.store.collections import DatabaseCollectionStore
    from gateway.store.database import Database
    from gateway.store.rules import DatabaseRuleStore

    async with Database(database_url) as database:
        store, rules = DatabaseCollectionStore(database), DatabaseRuleStore(database)
        kept, old = (RuleDraft(name, "o/n") for name in ("kept", "old"))
        for draft in (kept, old):
            await rules.put(draft, allow, expected=None, at=1.0, by="k1")
        seen: list[StoredRule] = []
        new, changed = RuleDraft("new", "o/m"), RuleDraft("old", "o/m")
        await store.put_all([], [], [new, changed], seen.extend, at=2.0, by="k2")
        assert [each.draft for each in seen] == [kept, old]
        stored = {each.draft.name: each for each in await rules.all()}
        assert [each.draft for each in stored.values()] == [kept, new, changed]
        assert (stored["old"].updated_at, stored["old"].updated_by) == (2.0, "k2")
        assert len({each.version for each in stored.values()}) == 3
        assert await rules.stamp() == max(each.version for each in stored.values())


def allow(_stored: Sequence[StoredRule]) -> None: ...


def refuse(_stored: Sequence[StoredRule]) -> None:
    raise InvalidRequest("no")
