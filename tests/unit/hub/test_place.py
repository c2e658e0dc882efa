"""The name of a cache: written in it once, the same for everybody who has it."""

from pathlib import Path

import pytest
from huggingface_hub import scan_cache_dir

from gateway.hub import place
from gateway.hub.place import FILE, name_place


def test_a_cache_keeps_its_name_whoever_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "not" / "there"
    name = name_place(cache)
    monkeypatch.setattr(place.socket, "gethostname", lambda: "a-container-made-anew")
    moved = tmp_path / "elsewhere"
    cache.rename(moved)
    assert name_place(moved) == name
    assert [path for path in moved.rglob("*") if path.is_file()] == [moved / FILE]
    assert not scan_cache_dir(moved).warnings
    assert name_place(tmp_path / "another") != name


def test_where_nothing_can_be_read_or_written_it_is_the_host_and_the_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    assert name_place(tmp_path / "file").endswith(f":{tmp_path / 'file'}")
    (tmp_path / FILE).parent.mkdir()
    (tmp_path / FILE).write_text("something else")
    assert name_place(tmp_path).endswith(f":{tmp_path}")
