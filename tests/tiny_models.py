"""Builds tiny random models with a real byte-level tokenizer, for tests of the engine."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.5,
}


def build_tokenizer(folder: Path, *, chat: bool = True) -> Any:
    """Write a tokenizer whose tokens are the 256 bytes and the chat's control tokens."""
    tokenizer = build_byte_tokenizer(folder, SPECIAL_TOKENS)
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
        tokenizer.save_pretrained(folder)
    return tokenizer


def build_byte_tokenizer(
    folder: Path, specials: Sequence[str], named: Mapping[str, str] | None = None
) -> Any:
    """Write a tokenizer of the 256 bytes and control tokens; some may have a `named` attribute."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*specials, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={"chat_token": "<|im_start|>", **(named or {})},
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def build_model(
    folder: Path,
    *,
    family: str = "llama",
    seed: int = 0,
    chat: bool = True,
    dtype: Any = None,
    tokenizer: Any = None,
    **overrides: Any,
) -> Path:
    """Write a random model of a transformers family and its tokenizer into `folder`.

    The tokenizer is the one given, or that of `build_tokenizer`.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer is None:
        tokenizer = build_tokenizer(folder, chat=chat)
    else:
        tokenizer.save_pretrained(folder)
    options = {**SIZES, "vocab_size": len(tokenizer), **overrides}
    config = AutoConfig.for_model(
        family, bos_token_id=0, eos_token_id=tokenizer.eos_token_id, pad_token_id=0, **options
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    if dtype is not None:
        model = model.to(dtype)
    model.save_pretrained(folder)
    return folder


WORDS = [
    "the",
    "a",
    "model",
    "gateway",
    "embeds",
    "texts",
    "of",
    "any",
    "length",
    "into",
    "vectors",
    "and",
    "nothing",
    "else",
]
BERT_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def build_encoder(
    folder: Path,
    *,
    family: str = "bert",
    seed: int = 0,
    modules: list[dict[str, Any]] | None = None,
    pooling: dict[str, Any] | None = None,
    max_seq_length: int | None = None,
    **overrides: Any,
) -> Path:
    """Write a random encoder with a word tokenizer, and the files of sentence-transformers.

    `pooling` alone is that after the transformer; neither it nor `modules` leaves them out.
    """
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate([*BERT_SPECIALS, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)
    sizes = {
        "vocab_size": len(vocabulary),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.5,
        "pad_token_id": 0,
    }
    config = AutoConfig.for_model(family, **{**sizes, **overrides})
    torch.manual_seed(seed)
    AutoModel.from_config(config).save_pretrained(folder)
    write_modules(folder, modules=modules, pooling=pooling, max_seq_length=max_seq_length)
    return folder


def write_modules(
    folder: Path,
    *,
    modules: list[dict[str, Any]] | None = None,
    pooling: dict[str, Any] | None = None,
    max_seq_length: int | None = None,
) -> None:
    """Write modules.json and the files that it leads to, as sentence-transformers names them."""
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
        modules = modules or [module(0, "Transformer", ""), module(1, "Pooling", "1_Pooling")]
    if modules is not None:
        (folder / "modules.json").write_text(json.dumps(modules))
    if max_seq_length is not None:
        limits = {"max_seq_length": max_seq_length, "do_lower_case": False}
        (folder / "sentence_bert_config.json").write_text(json.dumps(limits))


def module(index: int, kind: str, path: str) -> dict[str, Any]:
    """Return an entry of modules.json."""
    kind = f"sentence_transformers.models.{kind}"
    return {"idx": index, "name": str(index), "path": path, "type": kind}
