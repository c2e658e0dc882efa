"""Models of real shapes with random weights in bfloat16, as files, and a tokenizer for them.

    python -m bench.shapes 135m FOLDER [SEED]

A token is a word with the space before it (a few are parts of one), and none ends an answer: so
prompts have exactly the length that is asked for, and each new token can be seen in the stream.
"""

import string
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
_SPACE = "\u0120"  # how byte-level tokenizers spell a space


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
    """Write a byte-level BPE, which is what transformers takes for every family: letter after
    letter is merged to the space and what is there of the word, so each word becomes one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [_SPACE + word(index) for index in range(size)]
    starts = sorted({text[:end] for text in words for end in range(2, len(text))}, key=len)
    letters = [_SPACE, *string.ascii_lowercase]
    # Those that come after the words leave fewer words.
    words = words[: size - len(starts) - len(letters)]
    tokens = {token: index for index, token in enumerate([*words, *starts, *letters])}
    merges = [(token[:-1], token[-1]) for token in [*starts, *words]]
    backend = Tokenizer(models.BPE(tokens, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folder)


def main() -> None:
    shape, folder, seed = sys.argv[1:4]
    write_model(shape, Path(folder), int(seed))


if __name__ == "__main__":
    main()
