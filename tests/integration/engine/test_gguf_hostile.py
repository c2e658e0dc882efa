"""Files that lie: whatever they say, they are refused or loaded, and the process lives."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.core.errors import ModelLoadFailed
from gateway.engine.decoding.loaded import LoadedModel
from gateway.engine.llama_cpp import trial
from gateway.engine.llama_cpp.loader import load_gguf
from gateway.engine.llama_cpp.trial import try_load
from gateway.engine.loading.loader import LoadConfig
from tests.integration.engine import gguf_support, hostile_loads
from tests.tiny_gguf import build_gguf

pytestmark = pytest.mark.gguf
__all__ = ["gguf_support"]

FLIPS = 24
# Each is well-formed and cannot be: some of them llama.cpp refuses, of some it aborts.
LIES = {
    "no heads": {"llama.attention.head_count": 0},
    "more heads than numbers": {"llama.attention.head_count": 64},
    "odd heads": {"llama.attention.head_count_kv": 3},
    "endless layers": {"llama.block_count": 2**31},
    "no numbers": {"llama.embedding_length": 0},
    "odd rope": {"llama.rope.dimension_count": 7},
    "experts": {"llama.expert_count": 2**30, "llama.expert_used_count": 2**30},
}


@pytest.fixture(scope="module")
def tiny(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", llama_folder)


def load(name: str, file: Path) -> LoadedModel:
    return load_gguf(name, file, LoadConfig(device="cpu"), context_length=256, sequences=1)


def load_in_a_child(files: list[Path]) -> dict[str, str]:
    """Return the outcome of each file by its name; fails when the child does not survive."""
    code = f"import sys; sys.path[:] = {sys.path!r}; from {hostile_loads.__name__} import main; "
    command = [sys.executable, "-c", code + "main(sys.argv[1:])", *map(str, files)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    outcomes: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return {Path(file).stem: outcome for file, outcome in outcomes.items()}


def test_lies_of_the_metadata_kill_nothing(llama_folder: Path, tmp_path: Path) -> None:
    files = [
        build_gguf(tmp_path / f"{name}.gguf", llama_folder, metadata=lie)
        for name, lie in LIES.items()
    ]
    outcomes = load_in_a_child(files)
    assert set(outcomes) == set(LIES)
    assert all("could not be loaded" in outcome for outcome in outcomes.values()), outcomes
    assert any("died of it" in outcome for outcome in outcomes.values()), outcomes


def test_a_vocabulary_that_cannot_spell_every_text_kills_nothing(
    llama_folder: Path, tmp_path: Path
) -> None:
    """SentencePiece falls back to bytes; without tokens for them llama.cpp throws, later."""
    file = build_gguf(tmp_path / "mute.gguf", llama_folder, tokenizer="llama")
    assert "died of it" in load_in_a_child([file])["mute"]


def test_flipped_bits_kill_nothing(tiny: Path, tmp_path: Path) -> None:
    data, rng = tiny.read_bytes(), random.Random(7)
    files = []
    for index in range(FLIPS):
        # The first kilobyte is metadata; the rest of the header is mostly vocabulary.
        at = rng.randrange(1024 if index % 2 else 6000)
        flipped = bytearray(data)
        flipped[at] ^= 1 << rng.randrange(8)
        files.append(tmp_path / f"{index}.gguf")
        files[-1].write_bytes(flipped)
    outcomes = load_in_a_child(files)
    assert len(outcomes) == FLIPS
    assert len(set(outcomes.values())) > 2


def test_truncated_files_are_refused_without_a_trial(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: object, **options: object) -> None:
        raise AssertionError("a child was started for a file that is not whole")

    monkeypatch.setattr(trial.subprocess, "run", run)
    data, cut = tiny.read_bytes(), tmp_path / "cut.gguf"
    for length in range(0, len(data), 997):
        cut.write_bytes(data[:length])
        with pytest.raises(ModelLoadFailed, match="could not be loaded: the file"):
            load("cut", cut)


def test_a_trial_that_takes_too_long_is_given_up(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "TIMEOUT_S", 0.001)
    with pytest.raises(ModelLoadFailed, match="too long"):
        try_load(tiny, 0)


def test_a_file_that_is_no_gguf_says_so(tmp_path: Path) -> None:
    file = tmp_path / "page.gguf"
    file.write_text("<html>")
    with pytest.raises(ModelLoadFailed, match="not a GGUF file"):
        load("page", file)
    with pytest.raises(ModelLoadFailed, match="cannot be read"):
        load("gone", tmp_path / "gone.gguf")
