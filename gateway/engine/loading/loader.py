"""Loads a model folder with transformers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from gateway.core.cards import PROCESSOR_FILES, read_context_length
from gateway.core.errors import GatewayError, ModelLoadFailed
from gateway.core.loading import LoadConfig
from gateway.core.trust import Trust
from gateway.engine.decoding.decoder import sees_images
from gateway.engine.decoding.loaded import LoadedModel, Recipe
from gateway.engine.decoding.runner import Runner
from gateway.engine.files.mapped import MappedWeights
from gateway.engine.files.progress import LoadProgress, watched
from gateway.engine.files.trusted import (
    UNTRUSTED,
    reading_options,
    refusal_of,
    require_readable,
    weight_options,
)
from gateway.engine.loading.probe import (
    UNPROVEN,
    Logits,
    are_alike,
    build_runner,
    choose_runner,
    probe_logits,
)
from gateway.engine.loading.room import EngineRoom
from gateway.engine.text.processor import load_processor, takes_images
from gateway.engine.text.prompt import PromptEncoder
from gateway.engine.text.vision import VisionEncoder
from gateway.engine.text.vocabulary import Vocabulary
from gateway.engine.weights.runtime import (
    building,
    give_back_memory,
    import_torch,
    trim_memory,
)

if TYPE_CHECKING:
    from gateway.engine.weights.gemv import Gemv
    from gateway.engine.weights.packing import Packing

logger = logging.getLogger(__name__)


UNKNOWN_CONTEXT = 2**20
"""Tokens allowed to a model whose config names no limit (state-space models have none)."""


def load_model(
    name: str,
    path: Path,
    config: LoadConfig,
    progress: LoadProgress | None = None,
    recipe: Recipe | None = None,
    room: EngineRoom | None = None,
    trust: Trust = UNTRUSTED,
) -> LoadedModel:
    """Load the model in `path`: a causal language model, of text or of images and text. Blocking;
    takes seconds, or less with a `recipe`: what a load of the very same files found out.

    It can answer; what is left to pack of it is in `packing`. `room` is where weights are
    quantized (None: here). Raises ModelLoadFailed with the reason for a person, ModelRefused for
    what `trust` does not allow, ModelUnloaded when it was cancelled.
    """
    progress = progress or LoadProgress()
    room = room or EngineRoom()
    mapped = MappedWeights(path)
    require_readable(name, path, trust)
    import_torch()
    device = choose_device(config.device)
    try:
        tokenizer = room.tokenizers.load(path, trust)
        encoder = _load_encoder(path, tokenizer, trust)
        prepare = partial(_prepare, name, config=config, room=room, mapped=mapped)

        def load() -> Any:
            with watched(progress, path, mapped.have_read):
                return _load(path, config.dtype, device, trust)

        runnable = (
            _find_recipe(config, prepare, load, mapped)
            if recipe is None
            else _follow(recipe, prepare, load, mapped)
        )
        progress.check()
        first_bytes = runnable.runner.first_bytes()
        progress.check()
    except GatewayError:
        raise
    except Exception as error:  # transformers raises anything; the edge of its world is here
        if refusal := refusal_of(name, error, trust):
            raise refusal from error
        logger.exception("loading %s failed", name)
        raise ModelLoadFailed(f"{name} could not be loaded: {first_line(error)}") from error
    # What others stand in for now: files, and what is freed in small parts.
    mapped.let_go()
    trim_memory()
    return _describe(runnable, config, tokenizer, encoder, first_bytes, device)


class _Runnable(NamedTuple):
    """A model that can answer, how that was found best, and what its linear layers take beside its
    other parameters where others stand in for them."""

    model: Any
    recipe: Recipe
    runner: Runner
    linear_bytes: int
    packing: Packing | None


def _describe(
    runnable: _Runnable,
    config: LoadConfig,
    tokenizer: Any,
    encoder: PromptEncoder,
    first_bytes: int,
    device: str,
) -> LoadedModel:
    model = runnable.model
    eos_ids = _eos_ids(model, tokenizer)
    vocabulary_size = model.get_input_embeddings().num_embeddings
    return LoadedModel(
        model=model,
        runner=runnable.runner,
        recipe=runnable.recipe,
        encoder=encoder,
        vocabulary=Vocabulary(tokenizer, vocabulary_size, eos_ids),
        eos_ids=eos_ids,
        vocabulary_size=vocabulary_size,
        context_length=_context_length(model, config),
        memory_bytes=tensor_bytes(model) + runnable.linear_bytes + runnable.runner.own_bytes,
        first_bytes=first_bytes,
        device=device,
        dtype=str(model.dtype).removeprefix("torch."),
        packing=runnable.packing,
    )


def _load(path: Path, dtype: str, device: str, trust: Trust) -> Any:
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        GenerationMixin,
    )

    is_vision = _sees_images(path, AutoConfig.from_pretrained(path, **reading_options(trust)))
    kind = AutoModelForImageTextToText if is_vision else AutoModelForCausalLM
    with building:
        model = kind.from_pretrained(path, dtype=dtype, **weight_options(path, trust))
    if is_vision and type(model).generate is not GenerationMixin.generate:
        raise ValueError(f"{type(model).__name__} generates in a way of its own.")
    return model.to(device).eval()


def _load_encoder(path: Path, tokenizer: Any, trust: Trust) -> PromptEncoder:
    from transformers import AutoConfig

    options = reading_options(trust)
    config = AutoConfig.from_pretrained(path, **options)
    if not _sees_images(path, config):
        return PromptEncoder(tokenizer)
    # With a tokenizer of its own, to which the encoder adds a token.
    return VisionEncoder(load_processor(path, config, **options))


def _sees_images(path: Path, config: Any) -> bool:
    return takes_images(config) and any((path / name).exists() for name in PROCESSOR_FILES)


_Prepared = tuple[int, "Packing | None"]
"""The bytes of what stands for the linear layers, and what is left to pack of them."""


def _follow(
    recipe: Recipe,
    prepare: Callable[[Any, Recipe], _Prepared],
    load: Callable[[], Any],
    mapped: MappedWeights,
) -> _Runnable:
    model = load()
    linear_bytes, packing = prepare(model, recipe)
    runner = build_runner(model, recipe.way, mapped.have_read, _gemv(packing))
    return _Runnable(model, recipe, runner, linear_bytes, packing)


def _find_recipe(
    config: LoadConfig,
    prepare: Callable[[Any, Recipe], _Prepared],
    load: Callable[[], Any],
    mapped: MappedWeights,
) -> _Runnable:
    """Return the model prepared as is fastest and right.

    A model that says something else once others stand in for its layers (one that reads their
    weights itself, say) is loaded anew.
    """
    if (found := _try_recipe(load(), config, prepare, mapped)) is None:
        give_back_memory()  # before the other comes
        model = load()
        way, runner = choose_runner(model, probe_logits(model), mapped.have_read)
        return _Runnable(model, Recipe(packs=False, way=way), runner, 0, None)
    return found


def _try_recipe(
    model: Any,
    config: LoadConfig,
    prepare: Callable[[Any, Recipe], _Prepared],
    mapped: MappedWeights,
) -> _Runnable | None:
    from gateway.engine.weights.linear import can_pack

    recipe = Recipe(packs=config.quantization == "none" and can_pack(model))
    # What quantized weights say is not what the others said: they are compared with themselves.
    expected = probe_logits(model) if config.quantization == "none" else None
    linear_bytes, packing = prepare(model, recipe)
    way, runner = choose_runner(
        model, expected or probe_logits(model), mapped.have_read, _gemv(packing)
    )
    if recipe.packs and way in UNPROVEN and not _still_says(model, expected):
        return None
    return _Runnable(model, replace(recipe, way=way), runner, linear_bytes, packing)


def _prepare(
    name: str,
    model: Any,
    recipe: Recipe,
    *,
    config: LoadConfig,
    room: EngineRoom,
    mapped: MappedWeights,
) -> _Prepared:
    """Quantize the linear layers, or put stand-ins in their place that can be packed."""
    if config.quantization != "none":
        from gateway.engine.weights.quantization import quantize

        part = _replaceable(model)
        return quantize(name, part, config.quantization, room.compute, mapped.have_read), None
    if recipe.packs:
        from gateway.engine.weights.packing import Packing

        packing = Packing(_replaceable(model), mapped, room.gemv())
        return packing.memory_bytes, packing
    return 0, None


def _gemv(packing: Packing | None) -> Gemv | None:
    return packing.gemv if packing is not None else None


def _still_says(model: Any, expected: Logits | None) -> bool:
    try:
        return expected is not None and are_alike(probe_logits(model), expected)
    except Exception as error:  # whatever an architecture trips over, it still runs as it is
        logger.info("%s does not run with packed layers: %s", type(model).__name__, error)
        return False


def _replaceable(model: Any) -> Any:
    """Return the part whose layers others may stand in for: not the image tower, as some read the
    weights of their layers, and no probe looks at an image."""
    return model.get_decoder() if sees_images(model) else model


def choose_device(wanted: str) -> str:
    """Return the device to load on: `cpu`, `mps`, `cuda:0`, ... Blocking: imports torch, unless it
    is `cpu` that is wanted, which is always there.

    Raises ModelLoadFailed for one that this machine has not.
    """
    if wanted == "cpu":
        return wanted
    import_torch()
    import torch

    if wanted == "auto":
        has_mps = torch.backends.mps.is_available()
        wanted = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    kind, _, index = wanted.partition(":")
    is_missing = (kind == "cuda" and int(index or 0) >= torch.cuda.device_count()) or (
        kind == "mps" and not torch.backends.mps.is_available()
    )
    if is_missing:
        raise ModelLoadFailed(
            f"There is no device {wanted} that torch could use; it has {_describe_devices()}.",
            hint="Name one of these, or auto.",
            param="device",
        )
    return f"cuda:{index or 0}" if kind == "cuda" else wanted


def _describe_devices() -> str:
    """Return what torch can use, for a person."""
    import torch

    there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    there += ["mps"] if torch.backends.mps.is_available() else []
    is_built_for_gpus = torch.version.cuda or torch.version.hip or torch.backends.mps.is_built()
    return ", ".join(there) + ("" if is_built_for_gpus else " (this build of torch knows no GPU)")


def _context_length(model: Any, config: LoadConfig) -> int:
    own = read_context_length(model.config.to_dict()) or UNKNOWN_CONTEXT
    return min(own, config.context_length or own)


def _eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    own = model.generation_config.eos_token_id
    ids = set(own) if isinstance(own, list) else {own}
    return frozenset(int(eos) for eos in ids | {tokenizer.eos_token_id} if eos is not None)


def tensor_bytes(model: Any) -> int:
    """Return what the weights and buffers of a torch module take; shared ones count once."""
    tensors = {t.data_ptr(): t for t in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def first_line(error: Exception) -> str:
    """Return the first line of an exception's text as a sentence."""
    lines = str(error).strip().splitlines()
    sentence = (lines[0] if lines else type(error).__name__)[:300]
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."
