"""Writes tiny GGUF files out of the tiny transformers models, so that both say the same.

Needs the `gguf` package, which only the tests of this format use.
"""

import json
from pathlib import Path
from typing import Any

from tests.tiny_models import CHAT_TEMPLATE, SPECIAL_TOKENS

NORMAL, CONTROL = 1, 3

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def build_gguf(
    file: Path,
    model_folder: Path,
    *,
    quantization: str = "F32",
    template: str | None = CHAT_TEMPLATE,
    tokenizer: str = "gpt2",
    split_tensors: int = 0,
    metadata: dict[str, Any] | None = None,
) -> Path:
    """Convert a tiny llama of tests.tiny_models, or one whose tokenizer is GPT-2's with merges;
    return the (first) file written.

    `split_tensors` > 0 spreads the tensors over files of that many; `metadata` adds entries.
    """
    import gguf

    config = json.loads((model_folder / "config.json").read_text())
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(file, "llama", split_max_tensors=split_tensors)
    _add_sizes(writer, config, quantization)
    _add_tokenizer(writer, model_folder, tokenizer, template)
    for key, value in (metadata or {}).items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(key, value)
    _add_tensors(writer, model_folder, config, quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(file.parent.glob(f"{file.stem}*.gguf"))[0]


def _add_sizes(writer: Any, config: dict[str, Any], quantization: str) -> None:
    import gguf

    heads = config["num_attention_heads"]
    writer.add_file_type({"F32": 0, "Q8_0": 7}[quantization])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_vocab_size(config["vocab_size"])


def _add_tokenizer(writer: Any, model_folder: Path, kind: str, template: str | None) -> None:
    model = json.loads((model_folder / "tokenizer.json").read_text())["model"]
    vocabulary, merges = model["vocab"], [" ".join(pair) for pair in model["merges"]]
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre("gpt-2" if merges else "default")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in SPECIAL_TOKENS else NORMAL for token in tokens])
    writer.add_token_scores([0.0] * len(tokens))
    # llama.cpp wants merges; this one makes a token that is not there, so it merges nothing.
    writer.add_token_merges(merges or ["Ā ā"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(vocabulary["<|im_end|>"])
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    if template is not None:
        writer.add_chat_template(template)


def _add_tensors(
    writer: Any, model_folder: Path, config: dict[str, Any], quantization: str
) -> None:
    import gguf
    from safetensors.numpy import load_file

    target = gguf.GGMLQuantizationType[quantization]
    for name, tensor in load_file(model_folder / "model.safetensors").items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            is_query = name.endswith("q_proj.weight")
            heads = config["num_attention_heads" if is_query else "num_key_value_heads"]
            tensor = _interleave(tensor, heads)
        if quantization != "F32" and tensor.ndim == 2:
            writer.add_tensor(
                _tensor_name(name), gguf.quants.quantize(tensor, target), raw_dtype=target
            )
        else:
            writer.add_tensor(_tensor_name(name), tensor)


def _tensor_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in _NAMES:
        return f"{_NAMES[stem]}.weight"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{_NAMES[part]}.weight"


def _interleave(weight: Any, heads: int) -> Any:
    """Reorder rows for llama.cpp, whose rope turns neighbours instead of halves."""
    rows, columns = weight.shape
    return (
        weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    )
