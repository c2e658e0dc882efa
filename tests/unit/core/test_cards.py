from typing import Any

import pytest

from gateway.core.cards import ModelCard, read_card


def card(architecture: str, family: str, *, has_pooling: bool = False) -> ModelCard:
    config = {"architectures": [architecture], "model_type": family}
    return read_card(config, has_pooling=has_pooling)


@pytest.mark.parametrize(
    ("architecture", "family"),
    [
        ("BertModel", "bert"),
        ("BertForMaskedLM", "bert"),
        ("XLMRobertaModel", "xlm-roberta"),
        ("MPNetForMaskedLM", "mpnet"),
        ("ModernBertModel", "modernbert"),
        ("NomicBertModel", "nomic_bert"),
    ],
)
def test_a_bare_encoder_embeds(architecture: str, family: str) -> None:
    found = card(architecture, family)
    assert found.embeds and not found.generates_text


@pytest.mark.parametrize(
    ("architecture", "family"),
    [
        ("BertForSequenceClassification", "bert"),
        ("BertLMHeadModel", "bert"),
        ("LlamaForCausalLM", "llama"),
        ("ViTModel", "vit"),
        ("WhisperModel", "whisper"),
    ],
)
def test_others_do_not_embed_by_themselves(architecture: str, family: str) -> None:
    assert not card(architecture, family).embeds


def test_a_decoder_with_a_pooling_embeds_and_does_not_generate() -> None:
    found = card("Qwen3ForCausalLM", "qwen3", has_pooling=True)
    assert found.embeds and not found.generates_text
    assert card("Qwen3ForCausalLM", "qwen3").generates_text


def test_the_shorter_of_two_lengths_is_the_context() -> None:
    config = {"max_position_embeddings": 512}
    lengths = [read_card(config, max_length=n) for n in (256, 1024, None)]
    assert [found.context_length for found in lengths] == [256, 512, 512]


VLM: dict[str, Any] = {
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "vision_config": {"depth": 2},
    "text_config": {"max_position_embeddings": 4096},
}


def test_a_model_with_an_image_tower_and_a_processor_sees_images() -> None:
    card = read_card(VLM, templates=["x"], has_processor=True)
    assert card.sees_images and card.generates_text
    assert card.context_length == 4096


@pytest.mark.parametrize(
    "change",
    [
        {"architectures": ["CLIPModel"]},
        {"architectures": ["Qwen2VLModel"]},
        {"architectures": [7]},
        {"architectures": None},
        {"vision_config": None},
        {"vision_config": "yes"},
        {"is_encoder_decoder": True},
    ],
)
def test_without_one_of_its_parts_it_does_not(change: dict[str, Any]) -> None:
    card = read_card({**VLM, **change}, templates=["x"], has_processor=True)
    assert not card.sees_images and not card.generates_text


def test_without_a_processor_nobody_can_make_images_into_its_inputs() -> None:
    card = read_card(VLM, templates=["x"], has_processor=False)
    assert not card.sees_images and not card.generates_text


def test_a_causal_model_of_text_generates_text_and_sees_nothing() -> None:
    config = {"architectures": ["LlamaForCausalLM"]}
    card = read_card(config, templates=["x"], has_processor=True)
    assert card.generates_text and not card.sees_images
