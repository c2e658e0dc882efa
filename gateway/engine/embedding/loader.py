"""Loads a model for embeddings with transformers, and what sentence-transformers says of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.core.cards import PICKLES, read_context_length
from gateway.core.errors import GatewayError, ModelLoadFailed, ModelUnloaded
from gateway.core.loading import LoadConfig
from gateway.core.pooling import (
    PLAIN,
    Modules,
    PoolingMode,
    Step,
    read_max_length,
    read_modules,
    read_pooling,
)
from gateway.core.trust import Trust
from gateway.engine.embedding.pooling import Pooler
from gateway.engine.files.batch_needs import EMBEDDER_TOKENS, BatchNeeds, read_batch_needs
from gateway.engine.files.progress import LoadProgress, watched
from gateway.engine.files.tokenizers import load_tokenizer
from gateway.engine.files.trusted import (
    UNTRUSTED,
    reading_options,
    refusal_of,
    require_readable,
    weight_options,
)
from gateway.engine.loading.loader import (
    UNKNOWN_CONTEXT,
    choose_device,
    first_line,
    tensor_bytes,
)
from gateway.engine.text.text_encoder import TextEncoder
from gateway.engine.weights.runtime import building, import_torch

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

_BATCH_TOKENS = {"cpu": EMBEDDER_TOKENS}
_MANY_BATCH_TOKENS = 16384
_ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")
_PROBE = ((1, 2, 3), (4, 3, 2, 1, 0, 1, 2, 3, 4))
# What is not used for embeddings, and so need not be among the files.
_UNUSED = ("pooler.", "lm_head.")


class LoadedEmbedder(msgspec.Struct, frozen=True):
    """A model in memory that makes vectors of `dimensions` numbers.

    `memory_bytes` is what its weights and its buffers take, and `usual_bytes` of it what a batch of
    inputs that are not too long does; `batch_tokens` is what it is given at once, padding counted;
    0: one input at a time.
    """

    model: Any
    pooler: Pooler
    encoder: TextEncoder
    pad_id: int
    dimensions: int
    memory_bytes: int
    usual_bytes: int
    needs: BatchNeeds
    batch_tokens: int

    def extra_bytes(self, rows: int, longest: int) -> int:
        """Return what so many inputs, padded to the longest, take beyond `usual_bytes`."""
        return max(0, self.needs.bytes(rows * longest, longest) - self.usual_bytes)

    def run(self, inputs: Sequence[Sequence[int]]) -> Tensor:
        """Return the vectors (inputs x dimensions, float32, on the processor) of one batch."""
        return _run(self.model, self.pooler, self.pad_id, inputs)


def load_embedder(
    name: str,
    path: Path,
    config: LoadConfig,
    progress: LoadProgress | None = None,
    trust: Trust = UNTRUSTED,
) -> LoadedEmbedder:
    """Load the embedding model in `path`. Blocking; takes seconds.

    Raises ModelLoadFailed with the reason for a person, ModelRefused for what `trust` does not
    allow, ModelUnloaded when it was cancelled.
    """
    progress = progress or LoadProgress()
    require_readable(name, path, trust)
    import_torch()
    device = choose_device(config.device)
    try:
        with watched(progress, path):
            loaded = _load(path, config.dtype, device, trust)
        progress.check()
        return loaded
    except ModelUnloaded:
        raise
    except GatewayError as error:
        raise ModelLoadFailed(f"{name} could not be loaded: {error.message}") from None
    except Exception as error:  # transformers raises anything; the edge of its world is here
        if refusal := refusal_of(name, error, trust):
            raise refusal from error
        logger.exception("loading %s failed", name)
        raise ModelLoadFailed(f"{name} could not be loaded: {first_line(error)}") from error


def _load(path: Path, dtype: str, device: str, trust: Trust) -> LoadedEmbedder:
    modules, modes = _read_plan(path)
    limits = _read_json(path / "sentence_bert_config.json", {})
    tokenizer = load_tokenizer(path, trust)
    model = _load_model(path, dtype, device, trust)
    steps = [_build_step(step, path, device, trust) for step in modules.steps]
    pooler = Pooler(modes, steps)
    pad_id = int(tokenizer.pad_token_id or 0)
    max_tokens = min(read_max_length(limits) or tokenizer.model_max_length, _positions(model))
    [[*numbers]] = _run(model, pooler, pad_id, _PROBE[:1]).tolist()
    weights = tensor_bytes(model) + sum(map(tensor_bytes, filter(_has_weights, steps)))
    most_tokens = _BATCH_TOKENS.get(device, _MANY_BATCH_TOKENS)
    needs = read_batch_needs(
        model.config.to_dict(),
        model.dtype.itemsize,
        is_eager=model.config._attn_implementation == "eager",
    )
    usual_bytes = needs.usual_bytes(most_tokens, max_tokens)
    return LoadedEmbedder(
        model=model,
        pooler=pooler,
        encoder=TextEncoder(
            tokenizer,
            max_tokens=max_tokens,
            vocabulary_size=model.get_input_embeddings().num_embeddings,
            lower_case=limits.get("do_lower_case") is True,
        ),
        pad_id=pad_id,
        dimensions=len(numbers),
        memory_bytes=weights + usual_bytes,
        usual_bytes=usual_bytes,
        needs=needs,
        batch_tokens=_batch_tokens(model, pooler, pad_id, device),
    )


def _read_plan(path: Path) -> tuple[Modules, tuple[PoolingMode, ...]]:
    found = _read_json(path / "modules.json", None)
    modules = PLAIN if found is None else read_modules(found)
    if modules.pooling_path is None:
        return modules, ("mean",)
    return modules, read_pooling(_read_json(path / modules.pooling_path / "config.json", {}))


def _load_model(path: Path, dtype: str, device: str, trust: Trust) -> Any:
    """Return the bare model; raises ModelLoadFailed if the files lack some of its weights.

    They do where the repository has an architecture of its own, in code that is not run here.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding

    config = AutoConfig.from_pretrained(path, **reading_options(trust))
    kind = AutoModelForTextEncoding if getattr(config, "is_encoder_decoder", False) else AutoModel
    with building:
        model, report = kind.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            **weight_options(path, trust),
        )
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(_UNUSED))
    if missing or report["mismatched_keys"]:
        what = f"they lack {missing[0]}" if missing else "their shapes are others"
        raise ModelLoadFailed(f"The weights do not fit {type(model).__name__}: {what}.")
    return model.to(device).eval()


def _build_step(step: Step, path: Path, device: str, trust: Trust) -> Callable[[Tensor], Tensor]:
    import torch

    if step.kind == "Normalize":
        return torch.nn.functional.normalize
    config = _read_json(path / step.path / "config.json", {})
    activation = str(config.get("activation_function") or "Identity").rpartition(".")[2]
    source = config.get("module_input_name", "sentence_embedding")
    if (
        activation not in _ACTIVATIONS
        or config.get("use_residual")
        or ({source, config.get("module_output_name", source) or source} != {"sentence_embedding"})
    ):
        raise ModelLoadFailed(f"The dense layer in {step.path} is of a kind not known here.")
    weights = _read_weights(path / step.path, trust)
    size_out, size_in = weights["linear.weight"].shape
    linear = torch.nn.Linear(size_in, size_out, bias="linear.bias" in weights)
    linear.load_state_dict({key.removeprefix("linear."): value for key, value in weights.items()})
    return torch.nn.Sequential(linear, getattr(torch.nn, activation)()).to(device).eval()


def _read_weights(folder: Path, trust: Trust) -> dict[str, Tensor]:
    import torch
    from safetensors.torch import load_file

    file, pickled = folder / "model.safetensors", folder / f"{PICKLES}.bin"
    if trust.pickle and pickled.exists() and not file.exists():
        found: dict[str, Tensor] = torch.load(pickled, map_location="cpu", weights_only=True)
        return found
    return load_file(file)


def _run(model: Any, pooler: Pooler, pad_id: int, inputs: Sequence[Sequence[int]]) -> Tensor:
    import torch

    device = model.device
    lengths = torch.tensor([len(ids) for ids in inputs])
    width = int(lengths.max())
    # Padded at the right: positions count from the left, and no causal model looks ahead.
    rows = torch.tensor([[*ids, *[pad_id] * (width - len(ids))] for ids in inputs])
    mask = (torch.arange(width) < lengths[:, None]).long()
    with torch.inference_mode():
        hidden = model(input_ids=rows.to(device), attention_mask=mask.to(device)).last_hidden_state
        vectors: Tensor = pooler.pool(hidden, lengths.to(device)).cpu()
    if not torch.isfinite(vectors).all():
        raise FloatingPointError("a vector has numbers that are not finite")
    return vectors


def _batch_tokens(model: Any, pooler: Pooler, pad_id: int, device: str) -> int:
    """Return how much the model may be given at once: nothing beside another input, if inputs
    that stand side by side change each other's vectors."""
    import torch

    alone = torch.cat([_run(model, pooler, pad_id, [ids]) for ids in _PROBE])
    tolerance = 1e-4 if model.dtype == torch.float32 else 5e-2
    together = _run(model, pooler, pad_id, _PROBE)
    if torch.allclose(together, alone, rtol=tolerance, atol=tolerance * float(alone.abs().max())):
        return _BATCH_TOKENS.get(device, _MANY_BATCH_TOKENS)
    logger.info("%s is given one input at a time", type(model).__name__)
    return 0


def _positions(model: Any) -> int:
    """Return how many tokens the model can see; a table that starts behind its padding's place
    (RoBERTa, MPNet) has that many fewer."""
    from torch.nn import Embedding

    most = read_context_length(model.config.to_dict()) or UNKNOWN_CONTEXT
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, Embedding):
            padding = module.padding_idx
            return min(most, module.num_embeddings - (0 if padding is None else padding + 1))
    return most


def _has_weights(step: Any) -> bool:
    return hasattr(step, "parameters")


def _read_json(file: Path, default: Any) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return default
    except (OSError, ValueError, RecursionError):
        raise ModelLoadFailed(f"{file.name} cannot be read.") from None
