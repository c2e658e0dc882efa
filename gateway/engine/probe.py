"""Chooses how a model is run: the fastest way that says exactly what the model itself says."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

from gateway.engine import attention
from gateway.engine.decoder import new_decoder, sees_images
from gateway.engine.runner import BatchRunner, Feed, Runner, SerialRunner

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

PROMPTS = ([5, 3, 8, 1, 9], [4, 6, 2])
"""Two short prompts that tell whether a model can be batched; the second joins the first."""

Way = Literal["stack", "batch", "serial"]
"""How a model is run: by the flat stack, in batches by its own forward pass, or one by one."""

# Rope that depends on the longest sequence at hand would let neighbours disturb each other.
_SHARED_ROPE = frozenset({"dynamic", "longrope"})

Logits = list[list["Tensor"]]
"""The logits after each step of each prompt."""


def choose_runner(model: Any, expected: Logits) -> tuple[Way, Runner]:
    """Return the fastest runner that says what is `expected` of the model by `probe_logits`.

    Leaves the model set to the attention that the runner needs.
    """
    if not _may_batch(model):
        return "serial", SerialRunner(model)
    usual = model.config._attn_implementation
    way: Way
    for way in ("stack", "batch"):
        try:
            runner = build_runner(model, way)
            assert isinstance(runner, BatchRunner)
            if _agrees(runner, expected):
                return way, runner
            reason = "its logits differ"
        except Exception as error:  # whatever an architecture trips over, it still runs
            reason = f"{type(error).__name__}: {error}"
        logger.info("%s does not run by %s: %s", type(model).__name__, way, reason)
    model.set_attn_implementation(usual)
    return "serial", SerialRunner(model)


def build_runner(model: Any, way: Way) -> Runner:
    """Return the runner of a way that is known to be right for this model."""
    if way == "serial":
        return SerialRunner(model)
    attention.register()
    model.set_attn_implementation(attention.NAME)
    if way == "batch":
        return BatchRunner(model)
    from gateway.engine.stack import Stack

    return BatchRunner(model, Stack(model))


def probe_logits(model: Any) -> Logits:
    """Return the logits of the probes, step by step, by the model's own rules."""
    return [_serial_logits(model, prompt) for prompt in PROMPTS]


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


def _may_batch(model: Any) -> bool:
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {rope.get("rope_type")} | {
        part.get("rope_type") for part in rope.values() if isinstance(part, dict)
    }
    return bool(
        getattr(model, "_supports_attention_backend", False)
        and not getattr(model, "_is_stateful", False)
        and not sees_images(model)
        and not kinds & _SHARED_ROPE
    )


def _serial_logits(model: Any, prompt: list[int]) -> list[Tensor]:
    decoder = new_decoder(model)
    return [decoder.feed(prompt[:2]), *(decoder.feed([token]) for token in prompt[2:])]


def _agrees(runner: BatchRunner, expected: Logits) -> bool:
    """Feed the probes side by side, as a scheduler would, and compare every step's logits.

    The second joins while the first decodes, so that one pass holds both kinds of tokens.
    """
    places = [runner.open() for _ in PROMPTS]
    found: Logits = [[] for _ in PROMPTS]
    fed = [0 for _ in PROMPTS]
    for step in range(len(PROMPTS[0])):
        feeds: dict[int, Feed] = {}
        for index, prompt in enumerate(PROMPTS):
            if step >= 2 * index and fed[index] < len(prompt):
                ids = prompt[fed[index] : fed[index] + 1] if fed[index] else prompt[:2]
                feeds[index] = Feed(places[index], ids)
                fed[index] += len(ids)
        rows = runner.run(list(feeds.values())) if feeds else ()
        for index, row in zip(feeds, rows, strict=True):
            found[index].append(row)
    for place in places:
        runner.release(place)
    return are_alike(found, expected)
