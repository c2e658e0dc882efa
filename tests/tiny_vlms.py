"""Builds tiny random vision-language models with real processors, for tests of the engine."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.tiny_models import SIZES, SPECIAL_TOKENS, build_byte_tokenizer

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}IMAGE{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = {**SIZES, "max_position_embeddings": 1024}
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
}
QWEN_TOKENS = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
QWEN_VISION = {"vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>"}


def draw(size: tuple[int, int] = (40, 24), seed: int = 0, mode: str = "RGB") -> Any:
    """Return an image of noise, the same for the same arguments."""
    import numpy
    from PIL import Image

    noise = numpy.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype="uint8")
    return Image.fromarray(noise).convert(mode)


def encode(image: Any, kind: str = "PNG", **options: Any) -> bytes:
    """Return the image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def build_vlm(folder: Path, family: str, *, seed: int = 0, dtype: Any = None) -> Path:
    """Write a random model of a vision-language family and its processor into `folder`."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    folder.mkdir(parents=True, exist_ok=True)
    save_processor, describe = FAMILIES[family]
    tokenizer = save_processor(folder)
    ids = {"bos_token_id": 0, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    options = describe(tokenizer)
    options["text_config"] = {**TEXT, "vocab_size": len(tokenizer), **ids, **options["text_config"]}
    config = AutoConfig.for_model(family, **ids, **options)
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config).eval()
    if family == "gemma3":
        # Born as zeros, which would make the model blind.
        torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.3)
    model.generation_config.pad_token_id = 0
    if dtype is not None:
        model = model.to(dtype)
    model.save_pretrained(folder)
    return folder


def _tokenizer(folder: Path, **named: str) -> Any:
    return build_byte_tokenizer(folder, [*SPECIAL_TOKENS, *named.values()], named)


def _save_qwen2_vl(folder: Path) -> Any:
    from transformers import Qwen2VLImageProcessorPil

    tokenizer = _tokenizer(folder, **QWEN_TOKENS, **QWEN_VISION)
    Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, min_pixels=8 * 8, max_pixels=64 * 64
    ).save_pretrained(folder)
    template = TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    (folder / "chat_template.jinja").write_text(template)
    _name_processor(folder, "Qwen2VLProcessor")
    return tokenizer


def _save_qwen3_vl(folder: Path) -> Any:
    tokenizer = _save_qwen2_vl(folder)
    _name_processor(folder, "Qwen3VLProcessor")
    return tokenizer


def _name_processor(folder: Path, name: str) -> None:
    """Write what a model on the Hub says of its processor."""
    import json

    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "processor_class": name}))


def _describe_qwen2_vl(tokenizer: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    tower = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2}
    return {
        "text_config": {"rope_parameters": rope},
        "vision_config": {**tower, "patch_size": 4, "initializer_range": 0.3},
        **_ids(tokenizer, {**QWEN_TOKENS, **QWEN_VISION}),
    }


def _describe_qwen3_vl(tokenizer: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    tower = {"depth": 2, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 4}
    layout = {"patch_size": 4, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    return {
        "text_config": {"rope_parameters": rope, "head_dim": 8},
        "vision_config": {**tower, **layout, "intermediate_size": 64, "initializer_range": 0.3},
        **_ids(tokenizer, {**QWEN_TOKENS, **QWEN_VISION}),
    }


def _save_llava(folder: Path) -> Any:
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    tokenizer = _tokenizer(folder, image_token="<image>")
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("IMAGE", "<image>\n"),
    ).save_pretrained(folder)
    return tokenizer


def _describe_llava(tokenizer: Any) -> dict[str, Any]:
    tower = {"model_type": "clip_vision_model", **TOWER, "image_size": 16, "patch_size": 8}
    return {
        "text_config": {"model_type": "llama"},
        "vision_config": tower,
        "vision_feature_layer": -1,
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
    }


def _save_idefics3(folder: Path) -> Any:
    from transformers import Idefics3ImageProcessorPil, Idefics3Processor

    rows = {f"row_{n}": f"<row_{n // 2 + 1}_col_{n % 2 + 1}>" for n in range(4)}
    marks = {"fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>"}
    tokenizer = _tokenizer(
        folder,
        image_token="<image>",
        end_of_utterance_token="<end_of_utterance>",
        **marks,
        **rows,
    )
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 16}, do_image_splitting=True
    )
    Idefics3Processor(
        images, tokenizer, image_seq_len=4, chat_template=TEMPLATE.replace("IMAGE", "<image>")
    ).save_pretrained(folder)
    return tokenizer


def _describe_idefics3(tokenizer: Any) -> dict[str, Any]:
    return {
        "text_config": {"model_type": "llama"},
        "vision_config": {**TOWER, "image_size": 16, "patch_size": 4},
        "scale_factor": 2,
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
    }


def _save_gemma3(folder: Path) -> Any:
    from transformers import Gemma3ImageProcessorPil, Gemma3Processor

    named = {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<soft>"}
    tokenizer = _tokenizer(folder, **named)
    images = Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    Gemma3Processor(
        images, tokenizer, image_seq_length=4, chat_template=TEMPLATE.replace("IMAGE", "<boi>")
    ).save_pretrained(folder)
    return tokenizer


def _describe_gemma3(tokenizer: Any) -> dict[str, Any]:
    return {
        "text_config": {
            "head_dim": 8,
            "sliding_window": 24,
            "layer_types": ["sliding_attention", "full_attention"],
            # Tied, a random model of this family repeats its last token for ever.
            "tie_word_embeddings": False,
        },
        "tie_word_embeddings": False,
        "initializer_range": 0.5,
        "vision_config": {**TOWER, "image_size": 16, "patch_size": 4},
        "mm_tokens_per_image": 4,
        "boi_token_index": tokenizer.convert_tokens_to_ids("<boi>"),
        "eoi_token_index": tokenizer.convert_tokens_to_ids("<eoi>"),
        "image_token_index": tokenizer.convert_tokens_to_ids("<soft>"),
    }


def _ids(tokenizer: Any, named: dict[str, str]) -> dict[str, int]:
    return {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in named.items()}


Save = Callable[[Path], Any]
Describe = Callable[[Any], dict[str, Any]]

FAMILIES: dict[str, tuple[Save, Describe]] = {
    "qwen2_vl": (_save_qwen2_vl, _describe_qwen2_vl),
    "qwen3_vl": (_save_qwen3_vl, _describe_qwen3_vl),
    "llava": (_save_llava, _describe_llava),
    "idefics3": (_save_idefics3, _describe_idefics3),
    "gemma3": (_save_gemma3, _describe_gemma3),
}
