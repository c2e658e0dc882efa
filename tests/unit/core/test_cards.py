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
