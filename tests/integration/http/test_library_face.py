"""The library over HTTP: what is there, what is wrong with it, and what may go."""

import json
import threading
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from gateway.core.collections import VERSION
from gateway.core.errors import GatewayError, HubUnavailable, ModelRefused
from gateway.core.library import FileRecord, Inventory
from gateway.core.models import ModelInfo
from gateway.core.names import ModelRef
from gateway.core.ports import HubRevisions
from gateway.providers.ollama import OllamaService
from gateway.services.file_records import FileRecords
from gateway.services.updates import Updates
from tests.hub_folders import model_files, put_cached, put_local, put_partial
from tests.integration.http.serving import Served, serving
from tests.integration.ollama_peer import OllamaPeer
from tests.scripted_provider import ScriptedProvider

URL = "/api/v1/models"


@asynccontextmanager
async def library(tmp_path: Path, *providers: Any, **values: Any) -> AsyncIterator[Served]:
    folders = {"hf_model_path": tmp_path / "models", "hf_hub_cache": tmp_path / "hub"}
    async with serving(*(providers or (ScriptedProvider(),)), **folders, **values) as served:
        yield served


async def post(served: Served, verb: str, **body: Any) -> tuple[int, dict[str, Any]]:
    reply = await served.client.post(f"{URL}/{verb}", json=body)
    return reply.status_code, reply.json()


async def available(served: Served) -> dict[str, Any]:
    reply = await served.client.get(f"{URL}/available")
    assert reply.status_code == 200
    found: dict[str, Any] = reply.json()
    return found


async def test_what_is_there_is_told_by_where_it_lies(
    tmp_path: Path, ollama_peer: OllamaPeer
) -> None:
    put_local(tmp_path / "models/m")
    put_local(tmp_path / "models/notes", {"a.txt": b"x"})
    put_cached(tmp_path / "hub", "o/n")
    ollama_peer.add_model("llama3.2:latest")
    ollama = OllamaService(ollama_peer.url)
    async with library(tmp_path, ollama) as served:
        found = await available(served)
    await ollama.aclose()
    [local], [cached] = found["local_models"], found["cached_hub_models"]
    assert (local["id"], local["source"]) == ("huggingface/m", "local")
    assert local["path"] == str(tmp_path / "models/m") and local["usable"]
    size = sum(map(len, model_files().values()))
    wanted = {"id": "huggingface/o/n", "repository": "o/n", "sha": "a" * 40, "refs": ["main"]}
    assert wanted.items() <= cached.items() and cached["size_bytes"] == size
    assert cached["update_available"] is None and cached["verification"] is None
    assert [model["id"] for model in found["ollama_models"]] == ["ollama/llama3.2:latest"]
    assert [Path(odd["path"]).name for odd in found["oddities"]] == ["notes"]
    assert [disk["models_bytes"] for disk in found["disks"]] == [size, size]


async def test_a_dead_provider_is_labelled_and_the_rest_is_there(tmp_path: Path) -> None:
    put_local(tmp_path / "models/m")
    ollama = OllamaService("http://127.0.0.1:9")
    async with library(tmp_path, ollama) as served:
        found = await available(served)
    await ollama.aclose()
    assert [fault["provider"] for fault in found["provider_errors"]] == ["ollama"]
    assert len(found["local_models"]) == 1


async def test_a_verdict_is_kept_until_the_files_change(tmp_path: Path) -> None:
    weights = put_cached(tmp_path / "hub", "o/n") / "model.safetensors"
    async with library(tmp_path) as served:
        status, first = await post(served, "verify", model="o/n")
        assert (status, first["fresh"], first["warnings"]) == (200, True, [])
        assert first["verification"]["verdict"] == "ok"
        assert first["verification"]["check"] == "checksums"
        again = (await post(served, "verify", model="huggingface/o/n"))[1]
        assert not again["fresh"] and again["verification"] == first["verification"]
        assert (await post(served, "verify", model="o/n", force=True))[1]["fresh"]
        weights.resolve().write_bytes(b"x" * weights.stat().st_size)
        [listed] = (await available(served))["cached_hub_models"]
        assert listed["verification"] is None
        damaged = (await post(served, "verify", model="o/n"))[1]
        assert damaged["fresh"] and not damaged["usable"]
        assert damaged["verification"]["verdict"] == "corrupt"
        assert "model.safetensors" in damaged["verification"]["reason"]


async def test_new_files_are_looked_into_by_themselves(tmp_path: Path) -> None:
    put_local(tmp_path / "models/good")
    torn = {**model_files(), "model.safetensors": model_files()["model.safetensors"][:-1]}
    put_local(tmp_path / "models/torn", torn)
    put_local(tmp_path / "models/pickled", {"config.json": b"{}", "a.bin": b"\x80"})
    async with library(tmp_path) as served:
        await served.gateway.library.look()
        found = {each["id"]: each for each in (await available(served))["local_models"]}
    verdicts = {name: each["verification"]["verdict"] for name, each in found.items()}
    assert verdicts == {
        "huggingface/good": "ok",
        "huggingface/torn": "corrupt",
        "huggingface/pickled": "refused",
    }
    assert [name for name, each in found.items() if each["usable"]] == ["huggingface/good"]


async def test_what_was_found_and_when_it_was_used_outlives_the_service(tmp_path: Path) -> None:
    put_local(tmp_path / "models/m")
    async with library(tmp_path) as served:
        service = served.gateway.library
        assert (await post(served, "verify", model="m"))[0] == 200
        [entry] = (await service.listing()).local
        service.note_used(entry.model.model)
        await service.write_last()
        kept = await service._records._store.all("test")
        service._records = FileRecords(service._records._store, node="test", now=time.time)
        await service.look()
        [again] = (await service.listing()).local
    assert again.verification == entry.verification
    assert again.last_used is not None and again.last_used == kept[0].last_used


async def test_a_model_goes_and_its_record_with_it(tmp_path: Path) -> None:
    put_cached(tmp_path / "hub", "o/n")
    async with library(tmp_path) as served:
        await served.gateway.library.look()
        status, gone = await post(served, "delete", model="o/n")
        assert status == 200 and gone["model"] == "huggingface/o/n" and gone["freed_bytes"] > 0
        assert (await available(served))["cached_hub_models"] == []
        assert list(await served.gateway.library._records._store.all("test")) == []
        assert (await post(served, "delete", model="huggingface/o/n"))[0] == 404


async def test_a_model_that_ollama_has_goes_there(tmp_path: Path, ollama_peer: OllamaPeer) -> None:
    ollama_peer.add_model("llama3.2:latest")
    ollama = OllamaService(ollama_peer.url)
    async with library(tmp_path, ollama) as served:
        reply = await post(served, "delete", model="llama3.2")
        assert reply == (200, {"model": "ollama/llama3.2:latest", "freed_bytes": None})
        assert (await available(served))["ollama_models"] == []
        status, gone = await post(served, "delete", model="ollama/llama3.2")
        assert (status, gone["error"]["code"]) == (404, "model_not_found")
        assert (await post(served, "verify", model="ollama/llama3.2"))[0] == 400
    await ollama.aclose()
    [first, _] = ollama_peer.seen("/api/delete")
    assert first.body == {"model": "llama3.2:latest"}


async def test_a_clean_up_tells_what_it_would_do_and_does_no_more(tmp_path: Path) -> None:
    for name in ("one", "two"):
        put_cached(tmp_path / "hub", f"o/{name}", files=model_files(**{name: bytes(1000)}))
    put_local(tmp_path / "models/mine")
    async with library(tmp_path) as served:
        [entry] = [e for e in (await served.gateway.library.listing()).hub if "two" in e.id]
        served.gateway.library.note_used(entry.model.model)
        status, plan = await post(served, "clean", max_bytes=1500, dry_run=True)
        assert status == 200 and plan["dry_run"]
        assert len((await available(served))["cached_hub_models"]) == 2
        done = (await post(served, "clean", max_bytes=1500))[1]
        assert done == {**plan, "dry_run": False}
        [gone] = done["removed"]
        assert (gone["model"], gone["reason"]) == ("huggingface/o/one", "size")
        assert done["before_bytes"] - gone["freed_bytes"] == done["after_bytes"] <= 1500
        left = await available(served)
        assert [each["id"] for each in left["cached_hub_models"]] == ["huggingface/o/two"]
        assert len(left["local_models"]) == 1
        assert (await post(served, "clean"))[1]["removed"] == []
        old = (await post(served, "clean", unused_days=0))[1]
        assert [each["reason"] for each in old["removed"]] == ["age"]


async def test_a_clean_up_takes_what_downloads_left(tmp_path: Path) -> None:
    put_cached(tmp_path / "hub", "o/n")
    left = put_partial(tmp_path / "hub", "o/failed", size=7)
    async with library(tmp_path) as served:
        assert (await post(served, "clean", unused_days=30))[1]["unfinished"] == []
        plan = (await post(served, "clean", unfinished_days=30, dry_run=True))[1]
        told = {"repository": "o/failed", "freed_bytes": 7, "last_updated": 1e9}
        assert (plan["unfinished"], plan["removed"], left.exists()) == ([told], [], True)
        done = (await post(served, "clean", unfinished_days=30))[1]
        assert done == {**plan, "dry_run": False}
        assert not left.parents[1].exists()
        assert [o["reason"] for o in (await available(served))["oddities"]] == []


@pytest.mark.parametrize(
    "body",
    [
        {"unused_days": -1},
        {"unfinished_days": -1},
        {"unused_days": 1e300},
        {"max_bytes": -1},
        {"max_bytes": 1.5},
        {"everything": True},
    ],
)
async def test_a_clean_up_that_makes_no_sense_is_refused(
    tmp_path: Path, body: dict[str, Any]
) -> None:
    put_cached(tmp_path / "hub", "o/n")
    async with library(tmp_path) as served:
        assert (await post(served, "clean", **body))[0] == 400
        assert len((await available(served))["cached_hub_models"]) == 1


@pytest.mark.parametrize("verb", ["delete", "verify"])
@pytest.mark.parametrize(
    "name",
    ["..", "huggingface/../secret", "huggingface//etc", "o/n@../../x", "", "\x00", "x" * 999],
)
async def test_no_name_leads_out(tmp_path: Path, verb: str, name: str) -> None:
    secret = put_local(tmp_path / "secret")
    put_cached(tmp_path / "hub", "o/n")
    async with library(tmp_path) as served:
        status, answer = await post(served, verb, model=name)
        assert status in (400, 404, 422), answer
    assert (secret / "config.json").exists()


class Newest(HubRevisions):
    """A Hub whose newest commits are told by hand."""

    def __init__(self, **commits: str) -> None:
        self.commits = commits

    async def latest_commits(self, repositories: Collection[str]) -> Mapping[str, str]:
        named = {name: self.commits.get(name.rpartition("/")[2]) for name in repositories}
        return {name: commit for name, commit in named.items() if commit is not None}

    async def look_up(self, repositories: Collection[str]) -> GatewayError | None:
        assert sorted(repositories) == ["o/old", "o/same", "o/unknown"]
        self.commits["unknown"] = "d" * 40
        return HubUnavailable("The Hub is away.")


async def test_an_update_is_told_where_the_latest_commit_is_known(tmp_path: Path) -> None:
    for name in ("same", "old", "unknown"):
        put_cached(tmp_path / "hub", f"o/{name}")
    put_cached(tmp_path / "hub", "o/old", "c" * 40, branch="v1")
    async with library(tmp_path) as served:
        served.gateway.library._updates = Updates(Newest(same="a" * 40, old="b" * 40))
        found = (await available(served))["cached_hub_models"]
    told = {each["id"]: each["update_available"] for each in found}
    assert told == {
        "huggingface/o/same": False,
        "huggingface/o/old": True,
        f"huggingface/o/old@{'c' * 40}": None,
        "huggingface/o/unknown": None,
    }


async def test_the_hub_is_asked_for_updates_when_one_wants_to_know(tmp_path: Path) -> None:
    for name in ("same", "old", "unknown"):
        put_cached(tmp_path / "hub", f"o/{name}")
    async with library(tmp_path) as served:
        served.gateway.library._updates = Updates(Newest(same="a" * 40, old="b" * 40))
        reply = await served.client.get(f"{URL}/available", params={"updates": "true"})
        assert (await served.client.get(f"{URL}/available?updates=perhaps")).status_code == 400
    answer = reply.json()
    told = {each["id"]: each["update_available"] for each in answer["cached_hub_models"]}
    assert told["huggingface/o/unknown"] is True
    [fault] = answer["provider_errors"]
    assert (fault["provider"], fault["code"]) == ("hub", "hub_unavailable")


async def test_a_leaving_client_ends_a_verification(tmp_path: Path) -> None:
    put_cached(tmp_path / "hub", "o/n")
    begun, ended = anyio.Event(), anyio.Event()

    async def hang(_model: object) -> None:
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    async with library(tmp_path) as served:
        served.gateway.library._test_load = hang
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(
                lambda: served.client.post(
                    f"{URL}/verify", json={"model": "o/n", "check": "load"}, timeout=30
                )
            )
            await begun.wait()
            tasks.cancel_scope.cancel()
        with anyio.fail_after(10):
            await ended.wait()
        assert (await post(served, "verify", model="o/n"))[0] == 200


async def test_collections_are_made_changed_and_removed(tmp_path: Path) -> None:
    url = "/api/v1/collections"
    async with library(tmp_path) as served:
        client = served.client
        made = await client.post(url, json={"name": "small", "category": "chat", "models": ["o/n"]})
        assert made.status_code == 201
        collection = made.json()
        assert (collection["models"], collection["description"]) == (["o/n"], "")
        assert (await client.post(url, json={"name": "small"})).status_code == 409
        await client.post(url, json={"name": "other"})
        listed = (await client.get(url)).json()["collections"]
        assert [each["name"] for each in listed] == ["other", "small"]
        chat = (await client.get(url, params={"category": "chat"})).json()["collections"]
        assert chat == [collection]
        one = f"{url}/{collection['id']}"
        renamed = await client.patch(one, json={"name": "tiny"})
        assert renamed.json()["name"] == "tiny" and renamed.json()["category"] == "chat"
        assert (await client.patch(one, json={"name": "other"})).status_code == 409
        assert (await client.patch(one, json={"name": " "})).status_code == 400
        more = await client.post(f"{url}/tiny/models", json={"model": "ollama/b:latest"})
        assert more.json()["models"] == ["o/n", "ollama/b:latest"]
        less = await client.delete(f"{one}/models", params={"model": "o/n"})
        assert less.json()["models"] == ["ollama/b:latest"]
        assert (await client.delete(f"{one}/models", params={"model": "o/n"})).status_code == 404
        assert (await client.delete(f"{one}/models")).status_code == 400
        assert (await client.delete(one)).status_code == 200
        gone = await client.get(one)
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "collection_not_found")


async def test_what_is_exported_can_be_imported_elsewhere(tmp_path: Path) -> None:
    async with library(tmp_path) as served:
        client = served.client
        for name in ("a", "b"):
            await client.post("/api/v1/collections", json={"name": name, "models": ["x", "y"]})
        await client.put("/api/v1/routes/short", json={"model": "scripted/echo"})
        exported = await client.get("/api/v1/export")
    assert "attachment" in exported.headers["content-disposition"]
    data = exported.json()
    assert (data["version"], [each["name"] for each in data["collections"]]) == (
        VERSION,
        ["a", "b"],
    )
    assert [(each["name"], each["model"]) for each in data["routes"]] == [
        ("short", "scripted/echo")
    ]
    async with library(tmp_path) as served:
        client = served.client
        await client.post("/api/v1/collections", json={"name": "b"})
        plan = (await client.post("/api/v1/import?dry_run=true", content=exported.content)).json()
        assert (plan["creates"], plan["replaces"], plan["dry_run"]) == (["a"], ["b"], True)
        assert plan["routes"] == ["short"]
        assert (await client.get("/api/v1/routes/short")).status_code == 404
        assert len((await client.get("/api/v1/collections")).json()["collections"]) == 1
        done = (await client.post("/api/v1/import", content=exported.content)).json()
        assert done == {**plan, "dry_run": False}
        assert (await client.get("/api/v1/export")).json() == data
        again = (await client.post("/api/v1/import", content=exported.content)).json()
        assert (again["creates"], again["replaces"], again["unchanged"]) == ([], [], ["a", "b"])
        assert again["routes"] == []
        # The route holds at once.
        body = {"model": "short", "prompt": "x"}
        explained = (await client.post("/api/v1/routes/explain", json=body)).json()
        assert explained["rule"] == "alias"


async def test_a_file_of_an_older_gateway_is_read(tmp_path: Path) -> None:
    body = {"version": 1, "collections": [{"name": "a"}], "configs": []}
    async with library(tmp_path) as served:
        reply = await served.client.post("/api/v1/import", json=body)
        assert (reply.json()["creates"], reply.json()["routes"]) == (["a"], [])


@pytest.mark.parametrize(
    ("routes", "code"),
    [
        ([{"name": "x", "model": "y"}, {"name": "y", "model": "x"}], "invalid_request"),
        ([{"name": "scripted/x", "model": "y"}], "invalid_request"),
        ([{"name": "fixed", "model": "y"}], "route_read_only"),
    ],
)
async def test_routes_that_cannot_hold_keep_the_whole_file_out(
    tmp_path: Path, routes: list[dict[str, Any]], code: str
) -> None:
    good = {"name": "good", "model": "scripted/echo"}
    body = {"version": 2, "collections": [{"name": "a"}], "routes": [good, *routes]}
    async with library(tmp_path, aliases={"fixed": "scripted/echo"}) as served:
        for query in ("", "?dry_run=true"):
            reply = await served.client.post(f"/api/v1/import{query}", json=body)
            assert reply.json()["error"]["code"] == code
        assert (await served.client.get("/api/v1/collections")).json() == {"collections": []}
        assert (await served.client.get("/api/v1/routes/good")).status_code == 404


@pytest.mark.parametrize(
    "config", [{"model": "m", "config": {}}, {"model": "huggingface/../x", "config": {}}]
)
async def test_an_import_is_all_or_nothing(tmp_path: Path, config: dict[str, Any]) -> None:
    body = {"version": 1, "collections": [{"name": "a"}], "configs": [config]}
    async with library(tmp_path) as served:
        for content in (json.dumps(body), json.dumps({**body, "version": 9, "configs": []}), "["):
            reply = await served.client.post("/api/v1/import", content=content)
            assert reply.status_code == 400, reply.text
        assert (await served.client.get("/api/v1/collections")).json() == {"collections": []}


async def test_a_model_in_the_listing_of_others_can_be_named_bare(tmp_path: Path) -> None:
    provider = ScriptedProvider()
    provider.listed = [ModelInfo(ModelRef("scripted", "echo"))]
    async with library(tmp_path, provider) as served:
        assert (await post(served, "verify", model="echo"))[0] in (400, 404)


async def test_what_is_being_downloaded_is_not_removed(tmp_path: Path) -> None:
    put_cached(tmp_path / "hub", "o/n")
    put_cached(tmp_path / "hub", "o/other")
    busy = {"o/n"}

    async def under_way() -> frozenset[str]:
        return frozenset(busy)

    async with library(tmp_path) as served:
        served.gateway.library._removals._under_way = under_way
        for name in ("o/n", f"o/n@{'a' * 40}"):
            status, reply = await post(served, "delete", model=name)
            assert (status, reply["error"]["code"]) == (409, "model_in_use")
        cleaned = (await post(served, "clean", max_bytes=0))[1]
        assert cleaned["kept_in_use"] == ["huggingface/o/n"]
        assert [each["model"] for each in cleaned["removed"]] == ["huggingface/o/other"]
        assert len((await available(served))["cached_hub_models"]) == 1
        busy.clear()
        assert (await post(served, "delete", model="o/n"))[0] == 200


async def test_a_clean_up_tells_what_went_also_when_one_cannot_go(tmp_path: Path) -> None:
    for name in ("o/a", "o/b", "o/c"):
        put_cached(tmp_path / "hub", name)
    answers = iter([(), ("o/a", "o/b", "o/c"), (), ()])

    async def under_way() -> frozenset[str]:
        """Downloads are ordered while it is cleaned up."""
        return frozenset(next(answers))

    async with library(tmp_path) as served:
        served.gateway.library._removals._under_way = under_way
        cleaned = (await post(served, "clean", max_bytes=0))[1]
    size = sum(map(len, model_files().values()))
    assert [each["model"] for each in cleaned["removed"]] == ["huggingface/o/b", "huggingface/o/c"]
    assert (cleaned["kept_in_use"], cleaned["after_bytes"]) == (["huggingface/o/a"], size)


async def test_verifying_early_keeps_when_a_model_was_first_seen(tmp_path: Path) -> None:
    snapshot = put_cached(tmp_path / "hub", "o/n")
    async with library(tmp_path) as served:
        record = FileRecord(str(snapshot), "o/n", "hub", 1, first_seen=12.0)
        await served.gateway.library._records._store.put("test", [record])
        assert (await post(served, "verify", model="o/n"))[1]["first_seen"] == 12.0


async def test_a_look_does_not_forget_what_came_meanwhile(tmp_path: Path) -> None:
    put_local(tmp_path / "models/early")
    async with library(tmp_path) as served:
        service = served.gateway.library
        records = service._records
        taken, go_on = threading.Event(), threading.Event()
        inventory = service._shelf.inventory

        def hold() -> Inventory:
            found = inventory()
            taken.set()
            go_on.wait(20)
            return found

        service._shelf.inventory = hold  # type: ignore[method-assign]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(service.look)
            await anyio.to_thread.run_sync(taken.wait)
            put_local(tmp_path / "models/late")
            tasks.start_soon(service.verify, "late")
            while not (records._records or records.lock.statistics().tasks_waiting):
                await anyio.lowlevel.checkpoint()
            go_on.set()
        kept = {record.name for record in await service._records._store.all("test")}
    assert kept == {"early", "late"}


async def test_what_is_not_allowed_is_refused_and_not_damaged(tmp_path: Path) -> None:
    put_cached(tmp_path / "hub", "o/n")

    async def refuse(_model: object) -> None:
        raise ModelRefused("It needs code of its own.")

    async with library(tmp_path) as served:
        served.gateway.library._test_load = refuse
        found = (await post(served, "verify", model="o/n", check="load"))[1]
        told = found["verification"]
        assert (told["verdict"], told["reason"]) == ("refused", "It needs code of its own.")
        shelved = served.gateway.library._shelf.find("o/n")
        assert shelved is not None and shelved.model.problem is None
