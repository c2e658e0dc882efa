"""Files that the real huggingface_hub shares between repositories: read, checked and removed."""

from pathlib import Path

import pytest
from huggingface_hub.utils import _shared_blobs

from gateway.hub.cache import FileLibrary
from gateway.hub.health import Health
from gateway.hub.leftovers import HubLeftovers
from gateway.hub.library import DiskShelf
from gateway.hub.verify import find_damage
from tests.hub_folders import model_files, put_cached

XET = "ab" + "0" * 62
NEXT = "b" * 40
SIZE = len(model_files()["model.safetensors"])


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A cache where o/a and o/b have the same weights, which lie there once."""
    hub = tmp_path / "hub"
    for name in ("o/a", "o/b"):
        share(hub, put_cached(hub, name))
    return hub


def share(hub: Path, snapshot: Path) -> Path:
    """Have huggingface_hub share the weights of a snapshot; return where they lie then."""
    blob = snapshot.parents[1] / "blobs" / (snapshot / "model.safetensors").readlink().name
    place = {"blob_path": str(blob), "xet_hash": XET, "cache_dir": hub, "expected_size": SIZE}
    assert _shared_blobs.publish_blob_to_shared_store(**place)
    assert blob.is_symlink()
    return hub / "blobs" / XET[:2] / XET


def shelf_of(hub: Path) -> DiskShelf:
    health, models = Health(), hub.parent / "models"
    return DiskShelf(FileLibrary(models, hub, health=health), health, models, hub)


def test_they_are_models_as_others_and_count_once(hub: Path) -> None:
    found = shelf_of(hub).inventory()
    assert {model.name for model in found.models} == {"o/a", "o/b"}
    assert found.oddities == ()
    one = sum(map(len, model_files().values()))
    assert found.disks[1].models_bytes == 2 * one - SIZE


def test_their_checksum_is_that_of_the_repository_s_own_blob(hub: Path) -> None:
    model = shelf_of(hub).find("o/a")
    assert model is not None and find_damage(model, lambda: None) is None
    store = hub / "blobs" / XET[:2] / XET
    data = bytearray(store.read_bytes())
    data[-1] ^= 1
    store.write_bytes(data)
    said = find_damage(model, lambda: None)
    assert said is not None and "model.safetensors" in said


def test_they_go_with_the_last_repository_that_has_them(hub: Path) -> None:
    shelf, store = shelf_of(hub), hub / "blobs" / XET[:2] / XET
    rest = sum(map(len, model_files().values())) - SIZE
    assert rest <= shelf.remove("o/a") < rest + SIZE
    assert store.exists() and shelf.find("o/b") is not None
    assert shelf.remove("o/b") >= rest + SIZE
    assert not store.exists()


def test_they_go_with_the_last_revision_that_has_them(hub: Path) -> None:
    shelf, store = shelf_of(hub), hub / "blobs" / XET[:2] / XET
    shelf.remove("o/a")
    put_cached(hub, "o/b", NEXT, {"config.json": b"{}"}, branch="next")
    assert shelf.remove(f"o/b@{'a' * 40}") >= SIZE
    assert not store.exists()
    assert len(list((hub / "models--o--b/blobs").iterdir())) == 1


def test_they_go_with_what_a_download_left(hub: Path) -> None:
    shelf_of(hub).remove("o/a")
    for link in (hub / "models--o--b").glob("snapshots/*/model.safetensors"):
        link.unlink()
    [found] = HubLeftovers(hub).find()
    assert (found.repository, found.size_bytes) == ("o/b", 0)
    assert HubLeftovers(hub).discard("o/b") == SIZE
    assert not (hub / "blobs" / XET[:2] / XET).exists()
