"""Models of real shapes with random weights in bfloat16, as files, and a tokenizer for them.

    python -m bench.shapes 135m FOLDER [SEED]

Every token is a word with the space before it, and none ends an answer: so prompts have exactly
the length that is asked for, and each new token can be seen by whoever reads the stream.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.prompts import word

# Sources: the config.json of HuggingFaceTB/SmolLM2-135M and Qwen/Qwen2.5-0.5B.
SHAPES: dict[str, dict[str, Any]] = {
    "135m": {
        "family": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        "tie_word_embeddings": True,
    },
    "0.5b": {
        "family": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        "tie_word_embeddings": True,
    },
    # Of no use for figures: it shows in seconds whether every peer still runs.
    "tiny": {
        "family": "llama",
        "vocab_size": 2048,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": True,
    },
}
TITLES = {"135m": "SmolLM2-135M", "0.5b": "Qwen2.5-0.5B", "tiny": "a tiny llama"}
WRITTEN = "written"
_SPACE = "\u2581"  # how these tokenizers spell a space


def ensure_model(shape: str, folder: Path, seed: int = 0) -> Path:
    """Return the folder of a model, written first where it is not there, in a process that ends:
    who measures must not hold torch."""
    if not (folder / WRITTEN).exists():
        sys.stderr.write(f"writing {folder}\n")
        subprocess.run(
            [sys.executable, "-m", "bench.shapes", shape, str(folder), str(seed)], check=True
        )
    return folder


def write_model(shape: str, folder: Path, seed: int) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    folder.mkdir(parents=True, exist_ok=True)
    sizes = dict(SHAPES[shape])
    config = AutoConfig.for_model(
        sizes.pop("family"), bos_token_id=None, eos_token_id=None, pad_token_id=None, **sizes
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    model.generation_config = GenerationConfig(do_sample=False)
    model.save_pretrained(folder)
    _write_tokenizer(folder, sizes["vocab_size"])
    (folder / WRITTEN).touch()


def _write_tokenizer(folder: Path, size: int) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = {_SPACE + word(index): index for index in range(size)}
    backend = Tokenizer(models.WordLevel(tokens, unk_token=_SPACE + word(0)))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="never")
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folder)


def main() -> None:
    shape, folder, seed = sys.argv[1:4]
    write_model(shape, Path(folder), int(seed))


if __name__ == "__main__":
    main()
