"""What the files of a model say of it. Pure: is given a parsed config.json or GGUF header."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from gateway.core.dialects import Dialect, read_dialect
from gateway.core.gguf import GgufHeader

# The last part of an architecture's name that says it continues text.
_GENERATIVE = ("ForCausalLM", "LMHeadModel")
# The families whose models read a whole text at once: without a head that says otherwise, what
# they are used for is embeddings.
# fmt: off
_ENCODERS = frozenset({
    "albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie",
    "eurobert", "gte", "jina_embeddings_v3", "modernbert", "mpnet", "nomic_bert", "roberta",
    "roformer", "xlm-roberta", "xlm-roberta-xl",
})
# fmt: on
_BARE = ("Model", "ForMaskedLM")
_CONDITIONED = (*_GENERATIVE, "ForConditionalGeneration")
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
"""Where a model's folder says how images are made into its inputs."""

PICKLES = "pytorch_model"
"""How the names of weights in pickles begin; they end in .bin."""

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")

# GGUF architectures that do not continue text: encoders, denoisers, projectors and voices.
_NOT_GENERATIVE = frozenset(
    {
        "bert",
        "clip",
        "dflash",
        "dream",
        "eagle3",
        "eurobert",
        "gemma-embedding",
        "jina-bert-v2",
        "jina-bert-v3",
        "llada",
        "llada-moe",
        "llama-embed",
        "modern-bert",
        "neo-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "pockettts",
        "qwen3tts",
        "rnd1",
        "t5",
        "t5encoder",
        "wavtokenizer-dec",
    }
)


class ModelCard(msgspec.Struct, frozen=True):
    """`context_length` is tokens; None where the files do not say.

    `can_constrain`: the tokenizer's files are those that a grammar can be followed with;
    `brings_code`: its files name classes of their own.
    """

    architecture: str | None = None
    family: str | None = None
    dtype: str | None = None
    context_length: int | None = None
    has_chat_template: bool = False
    has_pooling: bool = False
    sees_images: bool = False

    @property
    def embeds(self) -> bool:
        """Whether the model's files make it one for embeddings, and so for nothing else."""
        is_bare = bool(self.architecture and self.architecture.endswith(_BARE))
        is_encoder = is_bare and not self._is_generative and self.family in _ENCODERS
        return self.has_pooling or is_encoder

    format: Literal["safetensors", "gguf", "pickle"] = "safetensors"
    quantization: str | None = None
    dialect: Dialect = Dialect()
    can_constrain: bool = False
    brings_code: bool = False

    @property
    def generates_text(self) -> bool:
        return self._is_generative and not self.embeds

    @property
    def _is_generative(self) -> bool:
        if self.sees_images:
            return True
        if self.format == "gguf":
            return self.architecture is not None and self.architecture not in _NOT_GENERATIVE
        return bool(self.architecture and self.architecture.endswith(_GENERATIVE))


def read_card(
    config: Mapping[str, Any],
    *,
    templates: Sequence[str] = (),
    can_constrain: bool = False,
    has_pooling: bool = False,
    has_processor: bool = False,
    max_length: int | None = None,
    is_pickled: bool = False,
) -> ModelCard:
    """Return what config.json and the chat templates say; what is missing or wrong is None.

    `is_pickled`: its weights are pickles. `has_pooling` and `max_length` are what the files of
    sentence-transformers add to it. A model sees images if it continues text, has an image tower
    and comes with a processor.
    """
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    dtype = config.get("dtype", config.get("torch_dtype"))
    return ModelCard(
        architecture=first if isinstance(first, str) else None,
        family=_text(config.get("model_type")),
        dtype=_text(dtype),
        context_length=_shortest(max_length, read_context_length(config)),
        has_chat_template=bool(templates),
        dialect=read_dialect(templates),
        can_constrain=can_constrain,
        has_pooling=has_pooling,
        sees_images=has_processor and _has_eyes(config, first),
        format="pickle" if is_pickled else "safetensors",
        brings_code="auto_map" in config,
    )


def read_gguf_card(header: GgufHeader) -> ModelCard:
    """Return what the header of a GGUF file says; adapters, projectors and vocabularies are no
    model."""
    is_model = header.has_weights and header.text("general.type") in (None, "model")
    architecture = header.architecture if is_model else None
    template = header.text("tokenizer.chat_template")
    return ModelCard(
        architecture=architecture,
        family=architecture,
        context_length=header.number("context_length"),
        has_chat_template=template is not None,
        dialect=read_dialect(() if template is None else (template,)),
        can_constrain=True,
        format="gguf",
        quantization=header.quantization,
    )


def _has_eyes(config: Mapping[str, Any], architecture: Any) -> bool:
    return (
        isinstance(architecture, str)
        and architecture.endswith(_CONDITIONED)
        and isinstance(config.get("vision_config"), dict)
        and config.get("is_encoder_decoder") is not True
    )


def read_context_length(config: Mapping[str, Any]) -> int | None:
    """Return the tokens that the model can see at once, its answer included."""
    nested = config.get("text_config")
    for part in (config, nested if isinstance(nested, dict) else {}):
        for key in _CONTEXT_KEYS:
            value = part.get(key)
            if isinstance(value, int) and value > 0:
                return value
    return None


def _shortest(*lengths: int | None) -> int | None:
    return min((length for length in lengths if length is not None), default=None)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
