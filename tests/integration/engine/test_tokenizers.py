from pathlib import Path

import pytest

from gateway.core.trust import Trust
from gateway.engine.files import tokenizers
from gateway.engine.files.tokenizers import LIMIT, TokenizerCache
from tests.tiny_models import build_model


def copies(folder: Path, count: int) -> list[Path]:
    return [build_model(folder / str(number)) for number in range(count)]


def test_a_tokenizer_is_read_once_until_a_file_of_its_folder_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [folder] = copies(tmp_path, 1)
    read: list[Path] = []
    really = tokenizers.load_tokenizer

    def count(path: Path, trust: Trust) -> object:
        read.append(path)
        return really(path, trust)

    monkeypatch.setattr(tokenizers, "load_tokenizer", count)
    cache = TokenizerCache()
    first = cache.load(folder)
    assert cache.load(folder) is first and len(read) == 1
    (folder / "model.safetensors").touch()
    assert cache.load(folder) is first
    (folder / "tokenizer_config.json").write_text(
        (folder / "tokenizer_config.json").read_text() + "\n"
    )
    assert cache.load(folder) is not first and len(read) == 2


def test_the_one_used_longest_ago_goes_first(tmp_path: Path) -> None:
    cache = TokenizerCache()
    folders = copies(tmp_path, LIMIT + 1)
    kept = [cache.load(folder) for folder in folders[:LIMIT]]
    assert cache.load(folders[0]) is kept[0]
    cache.load(folders[LIMIT])
    assert cache.load(folders[0]) is kept[0]
    assert cache.load(folders[1]) is not kept[1]
    assert len(cache._kept) == LIMIT


def test_what_cannot_be_read_is_not_kept(tmp_path: Path) -> None:
    [folder] = copies(tmp_path, 1)
    whole = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(whole[:100])
    cache = TokenizerCache()
    with pytest.raises(Exception, match=r".+"):
        cache.load(folder)
    (folder / "tokenizer.json").write_bytes(whole)
    assert cache.load(folder)("hello")["input_ids"]
