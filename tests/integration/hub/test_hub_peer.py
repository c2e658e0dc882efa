"""The peer is a Hub to the real huggingface_hub; what it cannot do is not tested with it."""

from pathlib import Path

import anyio.to_thread
import pytest
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.integration.hub_peer.files import HubFile, Plan
from tests.integration.hub_peer.server import HubPeer

WEIGHTS = bytes(range(256)) * 1000


@pytest.fixture(autouse=True)
def _model(hub: HubPeer) -> None:
    hub.files.add(
        "org/model",
        HubFile("config.json", b'{"a": 1}', lfs=False),
        HubFile("sub/model.safetensors", WEIGHTS),
    )


async def test_a_snapshot_comes_through_redirects_whole(hub: HubPeer, tmp_path: Path) -> None:
    hub.tokens["hf_secret"] = "user"

    def download() -> str:
        return snapshot_download(
            "org/model", cache_dir=tmp_path, endpoint=hub.url, token="hf_secret"
        )

    folder = Path(await anyio.to_thread.run_sync(download))
    assert (folder / "config.json").read_bytes() == b'{"a": 1}'
    assert (folder / "sub/model.safetensors").read_bytes() == WEIGHTS
    assert folder.name == hub.files.repos["org/model"].refs["main"]
    assert {seen.token for seen in hub.seen("hub")} == {"hf_secret"}
    assert {seen.token for seen in hub.seen("cdn")} == {None}


async def test_a_cut_body_is_noticed_and_asked_for_again(hub: HubPeer, tmp_path: Path) -> None:
    hub.files.plan("sub/model.safetensors", Plan(cut_after=1000))

    def download() -> str:
        return snapshot_download("org/model", cache_dir=tmp_path, endpoint=hub.url, token=False)

    folder = Path(await anyio.to_thread.run_sync(download))
    assert (folder / "sub/model.safetensors").read_bytes() == WEIGHTS
    first, second = hub.seen("cdn")
    assert (first.sent_bytes, second.sent_bytes) == (1000, len(WEIGHTS))


async def test_refusals_are_those_that_the_client_knows(hub: HubPeer, tmp_path: Path) -> None:
    gated = hub.files.add("org/gated", HubFile("config.json", b"{}", lfs=False))
    gated.gated = True
    api = HfApi(endpoint=hub.url, token=False)

    def ask(repo: str, path: str, revision: str | None = None) -> None:
        api.hf_hub_download(repo, path, revision=revision, cache_dir=tmp_path)

    for error, arguments in [
        (RepositoryNotFoundError, ("org/none", "config.json")),
        (RevisionNotFoundError, ("org/model", "config.json", "v9")),
        (RemoteEntryNotFoundError, ("org/model", "none.json")),
        (GatedRepoError, ("org/gated", "config.json")),
    ]:
        with pytest.raises(error):
            await anyio.to_thread.run_sync(ask, *arguments)
