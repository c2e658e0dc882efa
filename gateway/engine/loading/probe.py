"""Chooses how a model is run: the fastest way that says exactly what the model itself says."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from gateway.engine.decoding import attention
from gateway.engine.decoding.decoder import (
    CachedDecoder,
    Decoder,
    RecomputingDecoder,
    VisionDecoder,
    WholePromptDecoder,
    sees_images,
)
from gateway.engine.decoding.loaded import Way
from gateway.engine.decoding.runner import BatchRunner, Feed, Runner
from gateway.engine.decoding.serial_runner import SerialRunner

if TYPE_CHECKING:
    from torch import Tensor

    from gateway.engine.weights.gemv import Gemv

logger = logging.getLogger(__name__)

PROBES = (
    ([5, 3, 8, 1, 9, 2, 7, 4, 6], (5, 1, 2, 1)),
    ([4, 6, 2], (2, 1)),
    ([7, 2], (1, 1)),
)
"""Short prompts, and how many of their tokens are fed at once: a beginning that is longer than a
convolution looks back and two that are shorter, single tokens, and several on top of a state."""

DECODERS: dict[Way, Callable[..., Decoder]] = {
    "cache": CachedDecoder,
    "whole prompt": WholePromptDecoder,
    "recompute": RecomputingDecoder,
    "vision": VisionDecoder,
}
UNPROVEN: frozenset[Way] = frozenset({"recompute", "vision"})
"""Ways that were not compared with anything."""

# Rope that depends on the longest sequence at hand would let neighbours disturb each other.
_SHARED_ROPE = frozenset({"dynamic", "longrope"})

# Others look at the past in a way that is only in a mask, which our attention is not given, and
# that may show no sooner than a probe is long.
_KNOWN_LAYERS = frozenset({"full_attention", "sliding_attention"})

Logits = list[list["Tensor"]]
"""The logits after each part of each probe."""


def choose_runner(
    model: Any,
    expected: Logits,
    on_read: Callable[[int], None] = lambda size_bytes: None,
    gemv: Gemv | None = None,
) -> tuple[Way, Runner]:
    """Return the fastest runner that says what is `expected` of the model by `probe_logits`.

    `on_read` is told how many bytes of weights were read to build one; `gemv` is as for
    `build_runner`. Leaves the model set to the attention that the runner needs.
    """
    usual = model.config._attn_implementation
    for way in _possible_ways(model):
        if model.config._attn_implementation != usual:
            model.set_attn_implementation(usual)
        try:
            runner = build_runner(model, way, on_read, gemv)
            if way in UNPROVEN or _agrees(runner, expected):
                return way, runner
            reason = "its logits differ"
        except Exception as error:  # whatever an architecture trips over, it still runs
            reason = f"{type(error).__name__}: {error}"
        logger.info("%s does not run by %s: %s", type(model).__name__, way, reason)
    raise AssertionError("recomputing is always possible")


def build_runner(
    model: Any,
    way: Way,
    on_read: Callable[[int], None] = lambda size_bytes: None,
    gemv: Gemv | None = None,
) -> Runner:
    """Return the runner of a way that is known to be right for this model; by `gemv` a stack does
    steps of few tokens in one call, once it is packed."""
    if way in DECODERS:
        return SerialRunner(model, DECODERS[way])
    from gateway.engine.decoding.graphs import CudaRecorder
    from gateway.engine.decoding.kernels import find_kernel
    from gateway.engine.decoding.stack import Stack

    attention.register()
    model.set_attn_implementation(attention.NAME)
    kernel = find_kernel(model.device, model.dtype)
    if way == "batch":
        return BatchRunner(model, kernel=kernel)
    recorder = partial(CudaRecorder, model.device) if model.device.type == "cuda" else None
    return BatchRunner(model, Stack(model, on_read), kernel=kernel, recorder=recorder, gemv=gemv)


def probe_logits(model: Any) -> Logits:
    """Return what the model says to the probes in plain forward passes, without any cache."""
    import torch

    found: Logits = []
    for prompt, parts in PROBES:
        with torch.inference_mode():
            logits = model(torch.tensor([prompt], device=model.device), use_cache=False).logits[0]
        found.append([logits[end - 1] for end in accumulate(parts)])
    return found


def are_alike(found: Logits, expected: Logits) -> bool:
    """Tell whether two sets of logits differ by no more than rounding does."""
    import torch

    tolerance = 1e-4 if expected[0][0].dtype == torch.float32 else 5e-2
    return all(
        torch.allclose(
            mine.float(),
            theirs.float(),
            rtol=tolerance,
            atol=tolerance * float(theirs.float().abs().max()),
        )
        for mines, theirss in zip(found, expected, strict=True)
        for mine, theirs in zip(mines, theirss, strict=True)
    )


def _possible_ways(model: Any) -> tuple[Way, ...]:
    """Return the ways that are worth trying, fastest first, and one at the end that is right."""
    if sees_images(model):
        return ("vision",)
    batched: tuple[Way, ...] = ("stack", "batch") if _may_batch(model) else ()
    return (*batched, "cache", "whole prompt", "recompute")


def _may_batch(model: Any) -> bool:
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {rope.get("rope_type")} | {
        part.get("rope_type") for part in rope.values() if isinstance(part, dict)
    }
    return bool(
        getattr(model, "_supports_attention_backend", False)
        and not getattr(model, "_is_stateful", False)
        and not kinds & _SHARED_ROPE
        and set(getattr(config, "layer_types", None) or ()) <= _KNOWN_LAYERS
        and not getattr(config, "attention_chunk_size", None)
    )


def _agrees(runner: Runner, expected: Logits) -> bool:
    """Feed the probes side by side, as a scheduler would, and compare what each part leads to.

    Each joins while the others go on: a pass holds both kinds of tokens, and state that a model
    keeps for whoever came last shows.
    """
    places = [runner.open() for _ in PROBES]
    starts = [[0, *accumulate(parts)] for _, parts in PROBES]
    found: Logits = [[] for _ in PROBES]
    for step in range(max(index + len(parts) for index, (_, parts) in enumerate(PROBES))):
        feeds: dict[int, Feed] = {}
        for index, (prompt, parts) in enumerate(PROBES):
            if 0 <= step - index < len(parts):
                start, end = starts[index][step - index : step - index + 2]
                feeds[index] = Feed(places[index], prompt[start:end])
        for index, row in zip(feeds, runner.run(list(feeds.values())), strict=True):
            found[index].append(row)
    for place in places:
        runner.release(place)
    return are_alike(found, expected)
