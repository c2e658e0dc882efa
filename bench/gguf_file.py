"""Writes a model of bench.shapes as GGUF: the same bits, bfloat16 stays bfloat16.

Runs in the environment of llama.cpp, by the `gguf` package:

    python -m bench.gguf_file FOLDER FILE
"""

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = {
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


def write_gguf(folder: Path, file: Path) -> None:
    import gguf

    config = json.loads((folder / "config.json").read_text())
    heads = config["num_attention_heads"]
    unfinished = file.with_suffix(".part")
    writer = gguf.GGUFWriter(unfinished, config["model_type"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
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
    # Prompts come as ids and answers stay ids: llama.cpp needs no vocabulary.
    writer.add_tokenizer_model("none")
    for name, bits in read_tensors(folder / "model.safetensors"):
        add_tensor(writer, name, bits, config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(file)


def read_tensors(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield names and bfloat16 tensors as arrays of uint16, which is all that numpy has for them.

    The format: 8 bytes with the length of a JSON header, the header, the data.
    """
    import numpy

    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    data = numpy.memmap(file, mode="r", offset=8 + length)
    for name, entry in header.items():
        if name != "__metadata__":
            assert entry["dtype"] == "BF16", name
            start, end = entry["data_offsets"]
            yield name, data[start:end].view(numpy.uint16).reshape(entry["shape"])


def add_tensor(writer: Any, name: str, bits: Any, config: dict[str, Any]) -> None:
    import gguf
    import numpy

    stem, _, kind = name.rpartition(".")
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        target = f"blk.{layer}.{NAMES[part]}.{kind}"
    else:
        target = f"{NAMES[stem]}.{kind}"
    if bits.ndim == 1:
        # Norms and biases: llama.cpp wants these in float32, which holds every bfloat16.
        writer.add_tensor(target, (bits.astype(numpy.uint32) << 16).view(numpy.float32))
        return
    if config["model_type"] == "llama" and stem.endswith(("q_proj", "k_proj")):
        is_query = stem.endswith("q_proj")
        heads = config["num_attention_heads" if is_query else "num_key_value_heads"]
        bits = interleave(bits, heads)
    raw = numpy.ascontiguousarray(bits).view(numpy.uint8)
    writer.add_tensor(target, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)


def interleave(weight: Any, heads: int) -> Any:
    """Reorder rows for llama.cpp, whose rope for llamas turns neighbours instead of halves."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def main() -> None:
    write_gguf(Path(sys.argv[1]), Path(sys.argv[2]))


if __name__ == "__main__":
    main()
