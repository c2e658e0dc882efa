"""Damage of every kind is told before anything is loaded, and nothing planted is opened."""

import json
import os
from pathlib import Path

import pytest

from gateway.core.library import ShelvedModel
from gateway.core.trust import TrustRules
from gateway.hub.cache import FileLibrary
from gateway.hub.verify import find_damage, find_fault, find_refusal, find_warnings
from tests.hub_folders import CONFIG, model_files, put_cached, put_local, tensor_file


@pytest.fixture
def library(tmp_path: Path) -> FileLibrary:
    return FileLibrary(tmp_path / "models", tmp_path / "hub")


def shelved(library: FileLibrary, name: str = "m") -> ShelvedModel:
    found = library.find_shelved(name)
    assert found is not None
    return found


def go_on() -> None: ...


def test_a_sound_model_has_no_fault(library: FileLibrary, tmp_path: Path) -> None:
    put_local(tmp_path / "models/m")
    put_cached(tmp_path / "hub", "o/n")
    for name in ("m", "o/n"):
        found = shelved(library, name)
        assert find_fault(found) is None and find_refusal(found) is None
        assert find_damage(found, go_on) is None and find_warnings(found) == []


def test_every_flipped_byte_of_a_cached_header_is_told(
    library: FileLibrary, tmp_path: Path
) -> None:
    snapshot = put_cached(tmp_path / "hub", "o/n")
    blob = (snapshot / "model.safetensors").resolve()
    sound = blob.read_bytes()
    for position in range(8 + int.from_bytes(sound[:8], "little")):
        flipped = bytearray(sound)
        flipped[position] ^= 0x41
        blob.write_bytes(flipped)
        found = shelved(library, "o/n")
        assert find_fault(found) or find_damage(found, go_on), position


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_damaged_weight_or_small_file_is_told_by_its_checksum(
    library: FileLibrary, tmp_path: Path, file: str
) -> None:
    blob = (put_cached(tmp_path / "hub", "o/n") / file).resolve()
    data = bytearray(blob.read_bytes())
    data[-2] ^= 1
    blob.write_bytes(data)
    found = shelved(library, "o/n")
    said = find_damage(found, go_on)
    assert said is not None and file in said


@pytest.mark.parametrize(
    ("weight_map", "says"),
    [
        ({"embed": "../../secret.safetensors"}, "which is not there"),
        ({"embed": "/etc/passwd"}, "which is not there"),
        ({"embed": "model-2.safetensors"}, "which is not there"),
        ({"lost": "model.safetensors"}, "lacks the tensor 'lost'"),
        ({"embed": ["model.safetensors"]}, "which is not there"),
        ({}, "names no weights"),
        ([], "names no weights"),
    ],
)
def test_an_index_leads_to_what_is_there_and_nowhere_else(
    library: FileLibrary, tmp_path: Path, weight_map: object, says: str
) -> None:
    put_local(tmp_path, {"secret.safetensors": tensor_file()})
    index = json.dumps({"weight_map": weight_map}).encode()
    put_local(tmp_path / "models/m", model_files(**{"model.safetensors.index.json": index}))
    said = find_fault(shelved(library))
    assert said is not None and says in said


def test_pipes_and_links_that_lead_out_are_told_and_never_opened(
    library: FileLibrary, tmp_path: Path
) -> None:
    secret = put_local(tmp_path / "secret")
    for name, plant in {
        "pipe": lambda at: os.mkfifo(at / "tokenizer_config.json"),
        "out": lambda at: (at / "tokenizer.json").symlink_to(secret / "config.json"),
        "nowhere": lambda at: (at / "tokenizer.json").symlink_to(at / "gone"),
    }.items():
        plant(put_local(tmp_path / "models" / name))
        said = find_fault(shelved(library, name))
        assert said is not None and "no regular file" in said, name
    weights = put_local(tmp_path / "models/weights", {"config.json": b"{}"})
    (weights / "model.safetensors").symlink_to(secret / "model.safetensors")
    assert shelved(library, "weights").model.size_bytes == 0


def test_a_cached_file_may_lie_among_the_blobs_only(library: FileLibrary, tmp_path: Path) -> None:
    snapshot = put_cached(tmp_path / "hub", "o/n")
    secret = put_local(tmp_path / "secret") / "config.json"
    config = snapshot / "config.json"
    config.unlink()
    config.symlink_to(secret)
    assert library.find("o/n") is None  # without a config it is no model
    blobs = snapshot.parents[1] / "blobs"
    blobs.rename(tmp_path / "elsewhere")
    blobs.symlink_to(tmp_path / "elsewhere")
    assert library.find("o/n") is None and library.scan() == []


def test_a_pickle_is_refused_and_one_beside_sound_weights_is_not_read(
    library: FileLibrary, tmp_path: Path
) -> None:
    config = json.dumps({**CONFIG, "auto_map": {"AutoModel": "evil.Model"}}).encode()
    put_local(tmp_path / "models/m", {"config.json": config, "pytorch_model.bin": b"\x80"})
    said = find_refusal(shelved(library))
    assert said is not None and "GATEWAY_HF_ALLOW_PICKLE" in said
    put_local(tmp_path / "models/both", {**model_files(), "a.pkl": b"\x80", "config.json": config})
    both = shelved(library, "both")
    assert find_refusal(both) is None
    code, pickles = find_warnings(both)
    assert "GATEWAY_HF_TRUSTED_REPOSITORIES does not allow it" in code
    assert "are not read" in pickles


def test_what_is_allowed_is_said_and_makes_another_verdict(
    library: FileLibrary, tmp_path: Path
) -> None:
    config = json.dumps({**CONFIG, "auto_map": {"AutoModel": "own.Model"}}).encode()
    put_local(tmp_path / "models/m", {"config.json": config, "pytorch_model.bin": b"\x80"})
    trust = TrustRules(pickles=("m",), repositories=("m",))
    trusting = FileLibrary(tmp_path / "models", tmp_path / "hub", trust=trust)
    found, before = shelved(trusting), shelved(library)
    assert found.model.card.format == before.model.card.format == "pickle"
    assert (found.is_served, before.is_served) == (True, False)
    assert found.stamp != before.stamp and find_refusal(found) is None
    code, pickles = find_warnings(found)
    assert "which is run" in code and "are read" in pickles


@pytest.mark.parametrize("named", ["../elsewhere.bin", "/etc/passwd", "pytorch_model-2.bin"])
def test_an_index_of_pickles_names_only_files_of_the_model(
    library: FileLibrary, tmp_path: Path, named: str
) -> None:
    files = {"config.json": json.dumps(CONFIG).encode(), "pytorch_model-1.bin": b"\x80"}
    for name, fault in (("pytorch_model-1.bin", False), (named, True)):
        index = json.dumps({"weight_map": {"embed": name}}).encode()
        put_local(tmp_path / "models/m", {**files, "pytorch_model.bin.index.json": index})
        assert (find_fault(shelved(library)) is not None) is fault


def test_a_fault_is_looked_for_once_and_anew_when_a_file_changes(
    library: FileLibrary, tmp_path: Path
) -> None:
    weights = put_local(tmp_path / "models/m") / "model.safetensors"
    found = library.find("m")
    assert found is not None and found.problem is None
    weights.write_bytes(weights.read_bytes()[:-1])
    assert library.scan()[0].problem is None  # a listing reads no headers
    found = library.find("m")
    assert found is not None and found.problem is not None and "is cut off" in found.problem
    assert library.scan()[0].problem == found.problem
    weights.write_bytes(tensor_file())
    os.utime(weights, (1, 1))
    found = library.find("m")
    assert found is not None and found.problem is None


def test_cancelling_ends_a_checksum(library: FileLibrary, tmp_path: Path) -> None:
    put_cached(tmp_path / "hub", "o/n")

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_damage(shelved(library, "o/n"), stop)
