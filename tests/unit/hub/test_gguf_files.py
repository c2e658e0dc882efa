"""FileLibrary over GGUF files: their names, their parts, and what is said of broken ones."""

import os
from pathlib import Path
from typing import Any

import pytest

from gateway.core.models import LocalModel
from gateway.hub import gguf
from gateway.hub.cache import FileLibrary
from tests.gguf_bytes import LLAMA, write_gguf
from tests.unit.hub.test_cache import put_model

FILE = write_gguf()


@pytest.fixture
def library(tmp_path: Path) -> FileLibrary:
    return FileLibrary(tmp_path / "models", tmp_path / "hub")


def put(file: Path, data: bytes = FILE) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def put_in_hub(hub: Path, repository: str, *names: str, commit: str = "c0ffee") -> Path:
    """Put files as the Hub's cache holds them: links into its blobs."""
    root = hub / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs/main").write_text(commit)
    for name in names:
        blob = put(root / "blobs" / name.replace("/", "-"))
        link = root / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return root / "snapshots" / commit


def names(library: FileLibrary) -> list[str]:
    return sorted(model.name for model in library.scan())


def require(library: FileLibrary, name: str, revision: str | None = None) -> LocalModel:
    found = library.find(name, revision)
    assert found is not None
    return found


def test_a_file_in_the_models_folder_is_named_by_its_stem(
    library: FileLibrary, tmp_path: Path
) -> None:
    file = put(tmp_path / "models/tiny-Q4_K_M.gguf")
    put(tmp_path / "models/own/deep/x.gguf")
    assert names(library) == ["own/deep/x", "tiny-Q4_K_M"]
    found = require(library, "tiny-Q4_K_M")
    assert (found.path, found.size_bytes, found.source) == (str(file), len(FILE), "local")
    assert (found.card.format, found.card.quantization) == ("gguf", "Q4_K_M")
    assert (found.card.architecture, found.card.context_length) == ("llama", 8192)
    assert found.card.has_chat_template and found.problem is None
    assert require(library, "own/deep/x").path == str(tmp_path / "models/own/deep/x.gguf")
    assert [model for model in library.scan() if model.name == found.name] == [found]


def test_files_in_the_hub_go_by_their_quantization(library: FileLibrary, tmp_path: Path) -> None:
    put_in_hub(
        tmp_path / "hub", "o/m-GGUF", "m-Q8_0.gguf", "m.q4_k_m.gguf", "m-UD-IQ2_XXS.gguf", "m.gguf"
    )
    tags = ["Q4_K_M", "Q8_0", "UD-IQ2_XXS", "m"]
    assert names(library) == [f"o/m-GGUF:{tag}" for tag in tags]
    for tag in tags:
        assert require(library, f"o/m-GGUF:{tag.lower()}").name == f"o/m-GGUF:{tag}"
        assert require(library, f"o/m-GGUF:{tag}", "c0ffee").revision == "c0ffee"
    assert library.find("o/m-GGUF:Q2_K") is None
    assert library.find("o/m-GGUF:Q8_0", "0ther") is None


def test_a_repository_without_a_tag_is_its_usual_file(library: FileLibrary, tmp_path: Path) -> None:
    put_in_hub(tmp_path / "hub", "o/m", "m-F16.gguf", "m-Q4_K_M.gguf")
    put_in_hub(tmp_path / "hub", "o/n", "n-Q8_0.gguf", "mmproj-F16.gguf")
    mmproj = tmp_path / "hub/models--o--n/blobs/mmproj-F16.gguf"
    mmproj.write_bytes(write_gguf({**LLAMA, "general.type": "mmproj"}))
    assert require(library, "o/m").name == "o/m:Q4_K_M"
    assert require(library, "o/n").name == "o/n:Q8_0"
    assert "o/n:F16" not in names(library)


def test_files_that_share_a_quantization_go_by_their_stems(
    library: FileLibrary, tmp_path: Path
) -> None:
    put_in_hub(tmp_path / "hub", "o/m", "big-Q8_0.gguf", "small-Q8_0.gguf")
    assert names(library) == ["o/m:big-Q8_0", "o/m:small-Q8_0"]


def test_safetensors_and_files_of_one_repository_are_models_of_their_own(
    library: FileLibrary, tmp_path: Path
) -> None:
    snapshot = put_in_hub(tmp_path / "hub", "o/m", "m-Q8_0.gguf")
    (snapshot / "model.safetensors").write_bytes(b"x")
    put_model(tmp_path / "other", weights=0).joinpath("config.json").rename(
        snapshot / "config.json"
    )
    assert names(library) == ["o/m", "o/m:Q8_0"]
    assert require(library, "o/m").card.format == "safetensors"
    (snapshot / "model.safetensors").unlink()
    assert names(library) == ["o/m:Q8_0"]
    assert require(library, "o/m").name == "o/m:Q8_0"


def test_the_files_of_a_split_model_are_one(library: FileLibrary, tmp_path: Path) -> None:
    parts = [tmp_path / f"models/big-0000{part}-of-00003.gguf" for part in (1, 2, 3)]
    for part in parts:
        put(part)
    [found] = library.scan()
    assert (found.name, found.path) == ("big", str(parts[0]))
    assert found.size_bytes == 3 * len(FILE)
    assert found.problem is None
    parts[1].unlink()
    assert require(library, "big").problem == "1 of the 3 files of big are missing."


def test_a_split_model_in_a_folder_of_its_own_is_found(
    library: FileLibrary, tmp_path: Path
) -> None:
    files = [f"Q8_0/m-Q8_0-0000{part}-of-00002.gguf" for part in (1, 2)]
    put_in_hub(tmp_path / "hub", "o/m", *files)
    assert names(library) == ["o/m:Q8_0"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"<html>not found</html>", "is not a GGUF file"),
        (FILE[:100], "is cut off"),
        (FILE[:-1], "is cut off: 1 bytes"),
    ],
)
def test_a_broken_file_is_listed_with_what_is_wrong(
    library: FileLibrary, tmp_path: Path, data: bytes, said: str
) -> None:
    put(tmp_path / "models/torn.gguf", data)
    [found] = library.scan()
    assert found.problem is not None and said in found.problem


@pytest.mark.parametrize("name", ["../secret", "/secret", "link", "a/../../secret", "pipe", ""])
def test_no_name_and_no_link_leads_out_of_the_folder(
    library: FileLibrary, tmp_path: Path, name: str
) -> None:
    put(tmp_path / "secret.gguf")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/link.gguf").symlink_to(tmp_path / "secret.gguf")
    os.mkfifo(tmp_path / "models/pipe.gguf")
    (tmp_path / "models/folder.gguf").mkdir()
    assert library.find(name) is None
    assert names(library) == []


def test_a_link_out_of_the_hub_is_not_followed(library: FileLibrary, tmp_path: Path) -> None:
    put(tmp_path / "secret-Q8_0.gguf")
    snapshot = put_in_hub(tmp_path / "hub", "o/m", "m-F16.gguf")
    (snapshot / "s-Q8_0.gguf").symlink_to(tmp_path / "secret-Q8_0.gguf")
    assert names(library) == ["o/m:F16"]


def test_a_header_is_read_once_until_the_file_changes(
    library: FileLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    read_facts = gguf._read_facts

    def watch(file: Path, size_bytes: int) -> Any:
        read.append(file.name)
        return read_facts(file, size_bytes)

    monkeypatch.setattr(gguf, "_read_facts", watch)
    file = put(tmp_path / "models/x.gguf")
    for _ in range(3):
        library.scan()
        require(library, "x")
    assert read == ["x.gguf"]
    put(file, write_gguf({**LLAMA, "llama.context_length": 77}))
    assert require(library, "x").card.context_length == 77
