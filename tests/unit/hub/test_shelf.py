"""The library as folders: what is odd is told, and removals take what nothing else needs."""

import os
from pathlib import Path

import pytest

from gateway.core.errors import Forbidden, ModelNotFound
from gateway.hub.cache import FileLibrary
from gateway.hub.health import Health
from gateway.hub.library import DiskShelf
from tests.hub_folders import model_files, put_cached, put_local, tensor_file

MAIN, NEXT = "a" * 40, "b" * 40


@pytest.fixture
def shelf(tmp_path: Path) -> DiskShelf:
    health = Health()
    models, hub = tmp_path / "models", tmp_path / "hub"
    demo = put_local(tmp_path / "builtin")
    return DiskShelf(FileLibrary(models, hub, {"demo": demo}, health=health), health, models, hub)


def names(shelf: DiskShelf) -> set[str]:
    return {model.name for model in shelf.inventory().models} - {"demo"}


def everything(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


def test_every_snapshot_is_listed_with_its_refs_and_by_a_name_that_can_be_asked_for(
    shelf: DiskShelf, tmp_path: Path
) -> None:
    put_cached(tmp_path / "hub", "o/n", MAIN)
    put_cached(tmp_path / "hub", "o/n", NEXT, model_files(more=b"1"), branch="v2/x")
    put_cached(tmp_path / "hub", "gpt2", MAIN, branch=None)
    found = {model.name: model for model in shelf.inventory().models}
    assert set(found) == {"o/n", f"o/n@{NEXT}", "gpt2", "demo"}
    assert (found["o/n"].refs, found[f"o/n@{NEXT}"].refs) == (("main",), ("v2/x",))
    for name, model in found.items():
        asked = shelf.find(name)
        assert asked is not None and asked.model.path == model.model.path


def test_disk_use_counts_a_shared_file_once(shelf: DiskShelf, tmp_path: Path) -> None:
    put_cached(tmp_path / "hub", "o/n", MAIN)
    put_cached(tmp_path / "hub", "o/n", NEXT, model_files(more=b"12345"), branch="next")
    one = sum(map(len, model_files().values()))
    _, hub = shelf.inventory().disks
    assert hub.models_bytes == one + 5
    assert hub.total_bytes is not None and hub.free_bytes is not None
    missing, _ = (
        DiskShelf(
            FileLibrary(tmp_path / "x", tmp_path / "y"), Health(), tmp_path / "x", tmp_path / "y"
        )
        .inventory()
        .disks
    )
    assert (missing.models_bytes, missing.free_bytes) == (0, None)


def test_what_is_no_model_is_told_and_hinders_nothing(shelf: DiskShelf, tmp_path: Path) -> None:
    hub, models = tmp_path / "hub", tmp_path / "models"
    put_cached(hub, "o/n")
    put_cached(hub, "o/empty", files={"README.md": b"x"})
    (hub / "models--o--nothing/blobs").mkdir(parents=True)
    (hub / "models--").mkdir()
    (hub / "datasets--o--data").mkdir()
    (hub / "foreign").mkdir()
    (hub / "models--file").write_text("x")
    (hub / "version.txt").write_text("1")
    (hub / ".locks").mkdir()
    outside = put_local(tmp_path / "outside/models--o--out/snapshots/abc").parents[1]
    (hub / "models--o--out").symlink_to(outside)
    put_local(models / "m")
    put_local(models / "notes", {"a.txt": b"x"})
    (models / "out").symlink_to(put_local(tmp_path / "secret"))
    os.mkfifo(models / "pipe")
    told = {Path(odd.path).name: odd.reason for odd in shelf.inventory().oddities}
    assert {name: reason[:24] for name, reason in told.items()} == {
        "models--o--empty": "Its snapshots hold no co",
        "models--o--nothing": "It has no snapshot: its ",
        "models--": "It has no snapshot: its ",
        "datasets--o--data": "It is a data set, which ",
        "foreign": "It is no folder of the H",
        "models--file": "It is no folder of a rep",
        "models--o--out": "It is a link that leads ",
        "notes": "It holds no config.json ",
        "out": "It is a link that leads ",
    }
    assert names(shelf) == {"o/n", "m"}


def test_a_repository_goes_whole(shelf: DiskShelf, tmp_path: Path) -> None:
    put_cached(tmp_path / "hub", "o/n", MAIN)
    put_cached(tmp_path / "hub", "o/n", NEXT, branch="next")
    put_cached(tmp_path / "hub", "o/other")
    before = sum(map(len, model_files().values())) + 2 * 40
    assert shelf.remove("o/n") == before
    assert names(shelf) == {"o/other"}
    assert not (tmp_path / "hub/models--o--n").exists()


def test_a_broken_repository_can_be_removed(shelf: DiskShelf, tmp_path: Path) -> None:
    (tmp_path / "hub/models--o--nothing/blobs").mkdir(parents=True)
    assert shelf.remove("o/nothing") == 0
    assert list((tmp_path / "hub").iterdir()) == []


def test_a_snapshot_goes_with_the_files_that_only_it_has(shelf: DiskShelf, tmp_path: Path) -> None:
    main = put_cached(tmp_path / "hub", "o/n", MAIN)
    put_cached(tmp_path / "hub", "o/n", NEXT, model_files(more=b"12345"), branch="next")
    root = main.parents[1]
    assert shelf.remove(f"o/n@{NEXT}") == 5
    assert names(shelf) == {"o/n"}
    assert not (root / "refs/next").exists() and (root / "refs/main").exists()
    assert len(list((root / "blobs").iterdir())) == len(model_files())
    assert all(file.is_file() for file in main.iterdir())  # no link leads nowhere
    shelf.remove("o/n@main")
    assert not root.exists()


def test_one_quantization_of_a_repository_goes_alone(shelf: DiskShelf, tmp_path: Path) -> None:
    files = {"a-Q4_0.gguf": b"4" * 9, "sub/a-Q8_0.gguf": b"8" * 17, "README.md": b"x"}
    root = put_cached(tmp_path / "hub", "o/g", files=files).parents[1]
    assert names(shelf) == {"o/g:Q4_0", "o/g:Q8_0"}
    assert shelf.remove("o/g:Q8_0") == 17
    assert names(shelf) == {"o/g:Q4_0"}
    assert len(list((root / "blobs").iterdir())) == 2
    shelf.remove("o/g:Q4_0")
    assert not root.exists()


def test_local_models_go_and_leave_no_empty_folder(shelf: DiskShelf, tmp_path: Path) -> None:
    models = tmp_path / "models"
    put_local(models / "org/deep")
    put_local(models, {"a.gguf": b"x" * 5, "b-00001-of-00002.gguf": b"x", "m/x.json": b"y"})
    put_local(models, {"b-00002-of-00002.gguf": b"xx"})
    assert shelf.remove("a") == 5
    assert shelf.remove("b") == 3
    assert shelf.remove("org/deep") == sum(map(len, model_files().values()))
    assert everything(models) == {"m/x.json"} and not (models / "org").exists()


def test_nothing_outside_goes_with_a_model(shelf: DiskShelf, tmp_path: Path) -> None:
    secret = put_local(tmp_path / "secret", {"a.safetensors": tensor_file(), "deep/b": b"x"})
    folder = put_local(tmp_path / "models/m")
    (folder / "link").symlink_to(secret)
    (folder / "a.safetensors").symlink_to(secret / "a.safetensors")
    root = put_cached(tmp_path / "hub", "o/n").parents[1]
    (root / "blobs/out").symlink_to(secret)
    shelf.remove("m")
    shelf.remove("o/n")
    assert everything(secret) == {"a.safetensors", "deep/b"}
    (tmp_path / "models/out").symlink_to(secret)
    for name in ("out", "../secret", "", ".", "..", "o/../../secret", "/etc", "models--o--n"):
        with pytest.raises(ModelNotFound):
            shelf.remove(name)
    assert everything(secret) == {"a.safetensors", "deep/b"}


def test_what_is_built_in_stays(shelf: DiskShelf) -> None:
    with pytest.raises(Forbidden, match="built in"):
        shelf.remove("demo")


def test_a_removal_that_was_cut_off_is_finished(shelf: DiskShelf, tmp_path: Path) -> None:
    put_cached(tmp_path / "hub", "o/n")
    cut = tmp_path / "hub/models--o--n/snapshots/.deleting-1"
    put_local(cut, {"a": b"12345"})
    put_local(tmp_path / "models", {".deleting-2/b": b"1"})
    assert names(shelf) == {"o/n"}
    shelf.empty_trash()
    assert not cut.exists() and list((tmp_path / "models").iterdir()) == []
