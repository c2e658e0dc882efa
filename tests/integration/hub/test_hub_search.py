"""Search, details, fit and token against a Hub that the real huggingface_hub talks to as well."""

import asyncio
import shutil
import struct
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from huggingface_hub import HfApi

from gateway.core.errors import HubProtocolError, HubTokenRejected, RepositoryNotFound
from gateway.core.hub import HubAccount, HubQuery, Need
from gateway.core.loading import LoadConfig
from gateway.engine.files.needs import estimate_load
from gateway.hub.cache import FileLibrary
from gateway.hub.client import HubClient
from gateway.hub.search import HubSearch
from gateway.hub.token import ask_whoami
from tests.integration.hub_peer.files import HubFile, Plan
from tests.integration.hub_peer.server import HubPeer
from tests.tiny_models import build_model

TOKEN = "hf_canary0123456789"
ABOUT: dict[str, object] = {
    "pipeline_tag": "text-generation",
    "library_name": "transformers",
    "tags": ["transformers", "license:apache-2.0"],
    "downloads": 10,
    "likes": 3,
    "createdAt": "2024-09-16T12:02:06.000Z",
    "lastModified": "2024-09-25T08:00:00.000Z",
    "safetensors": {"parameters": {"F32": 1000}, "total": 1000},
}


@pytest.fixture
async def peer() -> AsyncIterator[HubPeer]:
    async with HubPeer() as peer:
        yield peer


@pytest.fixture
async def client(peer: HubPeer) -> AsyncIterator[HubClient]:
    async def token() -> str | None:
        return next(iter(peer.tokens), None)

    client = HubClient(peer.url, token)
    yield client
    await client.aclose()


@pytest.fixture
def search(client: HubClient) -> HubSearch:
    return HubSearch(client, LoadConfig("cpu"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real model of transformers in a folder of its own."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    build_model(folder)
    return folder


def files_of(folder: Path) -> list[HubFile]:
    return [
        HubFile(path.name, path.read_bytes(), lfs=path.suffix == ".safetensors")
        for path in folder.iterdir()
    ]


def counted(folder: Path) -> int:
    """Return what the engine says of the whole files."""
    model = FileLibrary(folder.parent, folder / "none").find(folder.name)
    assert model is not None
    return estimate_load(model, LoadConfig("cpu"))


async def ids(hub: HubSearch, /, **query: Any) -> list[str]:
    return [model.id for model in await hub.search(HubQuery(**query))]


async def test_filters_and_sort_are_those_of_the_hub(peer: HubPeer, search: HubSearch) -> None:
    peer.files.add("a/llama", HubFile("x", b""), downloads=1, likes=9, tags=["gguf"])
    peer.files.add("a/qwen", HubFile("x", b""), downloads=2, likes=1, pipeline_tag="fill-mask")
    peer.files.add("b/llama", HubFile("x", b""), downloads=3, likes=2)
    assert await ids(search) == ["b/llama", "a/qwen", "a/llama"]
    assert await ids(search, sort="likes") == ["a/llama", "b/llama", "a/qwen"]
    assert await ids(search, search="LLAMA") == ["b/llama", "a/llama"]
    assert await ids(search, author="a") == ["a/qwen", "a/llama"]
    assert await ids(search, task="fill-mask") == ["a/qwen"]
    assert await ids(search, library="gguf") == ["a/llama"]
    assert await ids(search, limit=2) == ["b/llama", "a/qwen"]
    assert await ids(search, search="none") == []


async def test_pages_are_followed_up_to_the_limit(peer: HubPeer, search: HubSearch) -> None:
    for number in range(7):
        peer.files.add(f"o/m{number}", HubFile("x", b""), downloads=number)
    peer.api.page_size = 3
    assert len(await ids(search, limit=7)) == 7
    assert await ids(search, limit=4) == ["o/m6", "o/m5", "o/m4", "o/m3"]
    assert len(peer.seen(path="/api/models")) == 3 + 2


async def test_a_listing_says_what_huggingface_hub_reads(peer: HubPeer, search: HubSearch) -> None:
    peer.files.add("org/model", HubFile("config.json", b"{}", lfs=False), **ABOUT)
    peer.files.add("org/gated", HubFile("x", b"")).gated = True
    api = HfApi(endpoint=peer.url, token=False)
    theirs = await anyio.to_thread.run_sync(
        lambda: list(api.list_models(sort="downloads", full=True))
    )
    ours = await search.search(HubQuery())
    assert [model.id for model in theirs] == [model.id for model in ours]
    for their, our in zip(theirs, ours, strict=True):
        assert (their.pipeline_tag, their.library_name) == (our.task, our.library)
        assert (their.downloads, their.likes, their.sha) == (our.downloads, our.likes, our.sha)
        assert (their.gated or None, bool(their.private)) == (our.gated, our.private)
        assert tuple(their.tags or ()) == our.tags
        assert their.last_modified == (
            None if our.updated_at is None else datetime.fromtimestamp(our.updated_at, UTC)
        )
    assert (ours[0].license, ours[0].parameters) == ("apache-2.0", 1000)


async def test_details_say_what_huggingface_hub_reads(
    peer: HubPeer, search: HubSearch, tiny: Path
) -> None:
    peer.files.add("org/model", *files_of(tiny), **ABOUT)
    api = HfApi(endpoint=peer.url, token=False)
    theirs = await anyio.to_thread.run_sync(
        lambda: api.model_info("org/model", files_metadata=True)
    )
    ours = await search.details("org/model")
    assert [(file.path, file.size_bytes, file.sha256) for file in ours.files] == [
        (sibling.rfilename, sibling.size, sibling.lfs and sibling.lfs.sha256)
        for sibling in theirs.siblings or ()
    ]
    assert ours.size_bytes == sum(len(file.data) for file in files_of(tiny))
    assert ours.dtypes == (("F32", 1000),)
    assert ours.model.sha == theirs.sha


async def test_the_need_is_what_the_engine_counts_of_the_whole_files(
    peer: HubPeer, search: HubSearch, tiny: Path
) -> None:
    peer.files.add("org/model", *files_of(tiny))
    details = await search.details("org/model")
    assert details.need is not None
    assert (details.need.need_bytes, details.need.basis) == (counted(tiny), "headers")
    assert details.architecture == "LlamaForCausalLM"
    assert details.context_length is not None


async def test_headers_are_read_and_weights_are_not(peer: HubPeer, search: HubSearch) -> None:
    header = b'{"w":{"dtype":"F32","shape":[5000000],"data_offsets":[0,20000000]}}'
    weights = struct.pack("<Q", len(header)) + header + bytes(20_000_000)
    config = b'{"architectures":["LlamaForCausalLM"],"torch_dtype":"float32"}'
    peer.files.add(
        "org/model", HubFile("config.json", config, lfs=False), HubFile("m.safetensors", weights)
    )
    details = await search.details("org/model")
    assert details.need is not None and details.need.basis == "headers"
    [asked] = peer.seen("cdn")
    assert asked.headers["range"] == "bytes=0-99999"
    # The peer ignores such a range: what it sends beyond the header is not waited for.
    assert asked.sent_bytes < len(weights)


@pytest.mark.parametrize("kind", ["not there", "cut", "not safetensors", "too long", "refused"])
async def test_where_headers_cannot_be_read_sizes_count(
    peer: HubPeer, search: HubSearch, kind: str
) -> None:
    data = struct.pack("<Q", 40) + b" " * 92
    if kind == "not safetensors":
        data = b"PK" * 50
    if kind == "too long":
        data = struct.pack("<Q", 10**9) + b" " * 92
    if kind == "cut":
        data = struct.pack("<Q", 4000) + b" " * 92
    repo = peer.files.add(
        "org/model",
        HubFile("config.json", b"{}", lfs=False),
        HubFile("model.safetensors", data),
        safetensors={"parameters": {"BF16": 50}, "total": 50},
    )
    repo.gated = kind == "refused"
    if kind == "not there":
        peer.files.always("model.safetensors", Plan(status=404))
    details = await search.details("org/model")
    assert details.need is not None
    assert (details.need.need_bytes, details.need.basis) == (100, "sizes")


async def test_a_gguf_repository_needs_what_its_usual_file_weighs(
    peer: HubPeer, search: HubSearch
) -> None:
    peer.files.add(
        "org/model-GGUF",
        HubFile("m-F16.gguf", bytes(900)),
        HubFile("m-Q4_K_M-00001-of-00002.gguf", bytes(100)),
        HubFile("m-Q4_K_M-00002-of-00002.gguf", bytes(50)),
    )
    details = await search.details("org/model-GGUF")
    assert details.need is not None
    assert (details.need.need_bytes, details.need.basis) == (150, "sizes")


async def test_pickles_are_weights_where_there_are_no_others(
    peer: HubPeer, search: HubSearch, tiny: Path, tmp_path: Path
) -> None:
    pickled = tmp_path / "pickled"
    shutil.copytree(tiny, pickled, ignore=shutil.ignore_patterns("*.safetensors"))
    (pickled / "pytorch_model.bin").write_bytes(bytes(5000))
    peer.files.add("org/model", *files_of(pickled))
    peer.files.add("org/both", *files_of(pickled), *files_of(tiny))
    peer.files.add("org/gguf", *files_of(pickled), HubFile("m-Q4_K_M.gguf", bytes(70)))
    peer.files.add("org/bare", HubFile("pytorch_model.bin", bytes(5000)))
    found = await search.details("org/model")
    assert found.need == Need(counted(pickled), "sizes", is_pickled=True)
    assert found.architecture == "LlamaForCausalLM"
    assert peer.seen("cdn") == []  # not one byte of a pickle is fetched
    both, gguf = await search.details("org/both"), await search.details("org/gguf")
    assert both.need is not None and not both.need.is_pickled
    assert gguf.need == Need(70, "sizes")
    assert (await search.details("org/bare")).need is None
    peer.files.repos["org/model"].gated = True
    gated = (await search.details("org/model")).need
    assert gated == Need(2 * 5000, "sizes", is_pickled=True)


async def test_names_of_files_lead_nowhere_else(
    peer: HubPeer, search: HubSearch, tmp_path: Path
) -> None:
    peer.files.add(
        "org/model",
        HubFile("config.json", b"{}", lfs=False),
        HubFile("../../evil.safetensors", bytes(100)),
        HubFile("a\x00.safetensors", bytes(100)),
        HubFile("sub/b.safetensors", bytes(100)),
    )
    details = await search.details("org/model")
    assert len(details.files) == 4
    assert details.need is None
    assert peer.seen("cdn") == []


async def test_the_newest_commit_is_that_of_main(peer: HubPeer, search: HubSearch) -> None:
    repo = peer.files.add("org/model", HubFile("a", b"1"))
    repo.commit(HubFile("a", b"2"), branch="next")
    assert await search.latest_commit("org/model") == repo.refs["main"] != repo.refs["next"]


async def test_a_missing_repository_is_told_by_name(search: HubSearch) -> None:
    with pytest.raises(RepositoryNotFound, match="'org/none'"):
        await search.details("org/none")


async def test_an_odd_entry_costs_only_itself_and_rubbish_is_told(
    peer: HubPeer, search: HubSearch
) -> None:
    peer.files.add("org/odd", HubFile("x", b""), downloads=2, likes="many")
    peer.files.add("org/good", HubFile("x", b""), downloads=1)
    assert await ids(search) == ["org/good"]
    with pytest.raises(HubProtocolError):
        await search.details("org/odd")
    peer.fail_api("/api/models", 200)
    with pytest.raises(HubProtocolError):
        await search.search(HubQuery())


async def test_a_search_that_is_given_up_is_given_up(peer: HubPeer, search: HubSearch) -> None:
    peer.api.hold = asyncio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(search.search, HubQuery())
        asked = await peer.request("/api/models")
        tasks.cancel_scope.cancel()
    with anyio.fail_after(5):
        await asked.closed.wait()


async def test_whose_a_token_is(peer: HubPeer, client: HubClient) -> None:
    peer.tokens[TOKEN] = "alice"
    peer.tokens["hf_fine"] = "bob"
    peer.api.accounts["hf_fine"] = {
        "orgs": [{"name": "acme"}],
        "auth": {
            "type": "access_token",
            "accessToken": {
                "role": "fineGrained",
                "fineGrained": {
                    "canReadGatedRepos": True,
                    "scoped": [
                        {"entity": {"name": "bob", "type": "user"}, "permissions": ["repo.read"]}
                    ],
                },
            },
        },
    }
    assert await ask_whoami(client, TOKEN) == HubAccount("alice", "read")
    assert await ask_whoami(client, "hf_fine") == HubAccount(
        "bob", "fineGrained", ("gated-repos.read", "repo.read on bob"), ("acme",)
    )
    with pytest.raises(HubTokenRejected):
        await ask_whoami(client, "hf_unknown")
    api = HfApi(endpoint=peer.url, token=TOKEN)
    theirs = await anyio.to_thread.run_sync(api.whoami)
    assert theirs["name"] == "alice"


async def test_a_token_opens_what_is_gated_and_never_leaves_the_hub(
    peer: HubPeer, search: HubSearch, tiny: Path
) -> None:
    repo = peer.files.add("org/gated", *files_of(tiny))
    repo.gated = True
    repo.granted.add(TOKEN)
    peer.tokens[TOKEN] = "alice"
    details = await search.details("org/gated")
    assert details.need is not None and details.need.basis == "headers"
    assert {seen.token for seen in peer.seen("hub")} == {TOKEN}
    assert {seen.token for seen in peer.seen("cdn")} == {None}
    assert peer.seen("cdn")
