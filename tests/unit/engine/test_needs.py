"""What a load will take, told before: of GGUF contexts, embedders and processes."""

from pathlib import Path

import pytest

from gateway.core.cards import ModelCard
from gateway.core.loading import LoadConfig
from gateway.core.models import LocalModel
from gateway.engine.files.batch_needs import read_batch_needs
from gateway.engine.files.needs import Setup, estimate_load
from tests.gguf_bytes import write_gguf

MIB = 2**20
# SmolLM2-135M's shape.
SMOL = {
    "general.architecture": "llama",
    "llama.context_length": 8192,
    "llama.embedding_length": 576,
    "llama.block_count": 30,
    "llama.feed_forward_length": 1536,
    "llama.attention.head_count": 9,
    "llama.attention.head_count_kv": 3,
    "llama.vocab_size": 49152,
}
F32, BF16 = 0, 32


def gguf(folder: Path, file_type: int, **changes: int) -> LocalModel:
    file = folder / "m.gguf"
    named = {f"llama.{name}": value for name, value in changes.items()}
    file.write_bytes(write_gguf(SMOL | {"general.file_type": file_type} | named))
    return LocalModel("m", str(file), 1000, card=ModelCard(format="gguf"))


def need_mib(files: LocalModel, length: int, sequences: int, **options: int) -> float:
    setup = Setup(gguf_sequences=sequences, gguf_context_length=length)
    return (estimate_load(files, LoadConfig(**options), setup) - 1000) / MIB


@pytest.mark.parametrize(
    ("file_type", "length", "sequences", "told_mib"),
    [
        (BF16, 512, 1, 25.45),
        (BF16, 4096, 4, 378.26),
        (BF16, 4096, 1, 107.70),
        (BF16, 8192, 8, 1463.01),
        (F32, 4096, 1, 266.57),
        (F32, 8192, 8, 3047.88),
    ],
)
def test_a_context_needs_no_less_than_llama_cpp_said_it_takes(
    tmp_path: Path, file_type: int, length: int, sequences: int, told_mib: float
) -> None:
    found = need_mib(gguf(tmp_path, file_type), length, sequences)
    assert told_mib <= found <= told_mib + 10


def test_a_context_is_no_longer_than_the_model_was_trained_for_or_the_config_wants(
    tmp_path: Path,
) -> None:
    files = gguf(tmp_path, BF16, context_length=1024)
    assert need_mib(files, 4096, 2) == need_mib(files, 1024, 2)
    assert need_mib(files, 4096, 2, context_length=512) == need_mib(files, 512, 2)


def test_a_file_that_does_not_tell_needs_what_it_weighs(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    for content in (b"", write_gguf({"general.architecture": "rwkv"})):
        file.write_bytes(content)
        files = LocalModel("m", str(file), 1000, card=ModelCard(format="gguf"))
        assert estimate_load(files, LoadConfig(), Setup(4, 4096)) == 1000


def test_an_embedder_needs_a_batch_beside_its_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 384, "intermediate_size": 1536}')
    card = ModelCard(architecture="BertModel", family="bert", dtype="float32")
    files = LocalModel("m", str(tmp_path), 90_000_000, card=card)
    assert card.embeds
    batch_bytes = 512 * (4 * (16 * 384 + 4 * 1536) + 512 * 4)
    assert estimate_load(files, LoadConfig()) == 90_000_000 + batch_bytes


def test_a_config_that_names_no_sizes_is_no_reason_to_fail() -> None:
    assert read_batch_needs({}, 4).token_bytes == 0
    assert read_batch_needs({"hidden_size": "8", "num_heads": {}}, 4).token_bytes == 0
    layers = {"hidden_size": 8, "intermediate_size": [16, 32]}
    assert read_batch_needs(layers, 1) == read_batch_needs(layers | {"intermediate_size": 32}, 1)
    assert read_batch_needs({"dim": 8, "hidden_dim": 32}, 2).token_bytes == 2 * (128 + 128)


def test_attention_with_scores_takes_bytes_for_each_head_and_pair_of_tokens() -> None:
    config = {"hidden_size": 8, "num_attention_heads": 2}
    without = read_batch_needs(config, 4)
    eager = read_batch_needs(config, 4, is_eager=True)
    assert eager.pair_bytes - without.pair_bytes == 2 * 4 * 5
    assert read_batch_needs(config | {"relative_attention_num_buckets": 32}, 4) == eager
    assert read_batch_needs(config | {"pos_att_type": ["c2p"]}, 4).pair_bytes > eager.pair_bytes
    # Rows of a batch do not look at each other.
    assert eager.bytes(40, 10) == 4 * eager.bytes(10, 10) < eager.bytes(40, 40)


def test_a_process_of_its_own_is_counted(tmp_path: Path) -> None:
    files = gguf(tmp_path, BF16)
    alone = estimate_load(files, LoadConfig())
    assert estimate_load(files, LoadConfig(), Setup(process_bytes=7)) == alone + 7
