"""Runs sequences through a model: a batch at a time where it can, else one after the other."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol

from gateway.engine import attention
from gateway.engine.decoder import new_decoder

if TYPE_CHECKING:
    from torch import Tensor

    from gateway.engine.kv_cache import Slot, SlotCache

logger = logging.getLogger(__name__)

Feed = tuple[Any, list[int]]
"""The place of a sequence and its new tokens: a chunk of its prompt, or the one it said last."""

PROBE = ([5, 3, 8, 1, 9, 2, 7], [4, 6, 2])
"""Two short prompts that tell whether a model can be batched."""

# Rope that depends on the longest sequence at hand would let neighbours disturb each other.
_SHARED_ROPE = frozenset({"dynamic", "longrope"})


class Runner(Protocol):
    """Keeps the state of sequences in one model. Used by one thread."""

    is_batched: bool

    def open(self) -> Any:
        """Return the place of a new sequence."""
        ...

    def release(self, place: Any) -> None:
        """Forget a sequence."""
        ...

    def run(self, feeds: list[Feed]) -> list[Tensor]:
        """Append tokens to sequences; return for each the logits after its last token, of shape
        [vocabulary]. When it raises nothing was appended."""
        ...


def choose_runner(model: Any) -> Runner:
    """Return the batched runner if it says exactly what the model itself says, else the other.

    Leaves the model set to the attention that the runner needs.
    """
    if _may_batch(model):
        expected = probe_logits(model)
        usual = model.config._attn_implementation
        try:
            attention.register()
            model.set_attn_implementation(attention.NAME)
            if _agrees(BatchRunner(model), expected):
                return BatchRunner(model)
            reason = "its logits differ"
        except Exception as error:  # whatever an architecture trips over, it still runs unbatched
            reason = f"{type(error).__name__}: {error}"
        logger.info("%s is not batched: %s", type(model).__name__, reason)
        model.set_attn_implementation(usual)
    return SerialRunner(model)


class SerialRunner:
    """One forward pass for each sequence, by the model's own rules. Works for every model."""

    is_batched = False

    def __init__(self, model: Any) -> None:
        self._model = model

    def open(self) -> Any:
        return new_decoder(self._model)

    def release(self, place: Any) -> None:
        pass

    def run(self, feeds: list[Feed]) -> list[Tensor]:
        return [decoder.feed(ids) for decoder, ids in feeds]


class BatchRunner:
    """One forward pass for the next token of all sequences; prompts go chunk by chunk, alone."""

    is_batched = True

    def __init__(self, model: Any) -> None:
        from gateway.engine.kv_cache import SlotCache

        self._model = model
        self._cache: SlotCache = SlotCache()

    def open(self) -> Slot:
        return self._cache.open()

    def release(self, place: Slot) -> None:
        self._cache.release(place)

    def run(self, feeds: list[Feed]) -> list[Tensor]:
        single = [feed for feed in feeds if len(feed[1]) == 1]
        # Single tokens first: they write into the rows between them, where a chunk would be.
        decoded = self._decode(single) if single else []
        logits = {id(place): row for (place, _), row in zip(single, decoded, strict=True)}
        for place, ids in feeds:
            if len(ids) > 1:
                logits[id(place)] = self._prefill(place, ids)
        for place, ids in feeds:
            place.length += len(ids)
        return [logits[id(place)] for place, _ in feeds]

    def _prefill(self, place: Slot, ids: list[int]) -> Tensor:
        return self._forward(place.row, [place.length], [ids])[0]

    def _decode(self, feeds: list[Feed]) -> list[Tensor]:
        """Compute all rows up to the last that is fed. A row between that is not fed gets a token
        that does not count: the next one of its own is written in the same place."""
        by_row = {place.row: ids[0] for place, ids in feeds}
        count = max(by_row) + 1
        lengths = [slot.length for slot in self._cache.slots[:count]]
        logits = self._forward(0, lengths, [[by_row.get(row, 0)] for row in range(count)])
        return [logits[place.row] for place, _ in feeds]

    def _forward(self, first: int, lengths: list[int], ids: list[list[int]]) -> Tensor:
        import torch

        from gateway.engine.kv_cache import View

        device = self._model.device
        tokens = len(ids[0])
        view = View(first, lengths, tokens, device)
        self._cache.begin(view)
        positions = view.lengths[:, None] + torch.arange(tokens, device=device)
        with torch.inference_mode():
            output = self._model(
                torch.tensor(ids, device=device),
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
                view=view,
            )
        logits: Tensor = output.logits[:, -1]
        return logits


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
    )


def probe_logits(model: Any) -> list[list[Tensor]]:
    """Return the logits of the probes, step by step, by the model's own rules."""
    return [_serial_logits(model, prompt) for prompt in PROBE]


def are_alike(found: list[list[Tensor]], expected: list[list[Tensor]]) -> bool:
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


def _serial_logits(model: Any, prompt: list[int]) -> list[Tensor]:
    decoder = new_decoder(model)
    return [decoder.feed(prompt[:2]), *(decoder.feed([token]) for token in prompt[2:])]


def _agrees(runner: BatchRunner, expected: list[list[Tensor]]) -> bool:
    """Feed the probes side by side, as a scheduler would, and compare every step's logits."""
    places = [runner.open() for _ in PROBE]
    found: list[list[Tensor]] = [
        runner.run([(place, prompt[:2])]) for place, prompt in zip(places, PROBE, strict=True)
    ]
    for step in range(2, max(map(len, PROBE))):
        fed = [index for index, prompt in enumerate(PROBE) if step < len(prompt)]
        rows = runner.run([(places[index], [PROBE[index][step]]) for index in fed])
        for index, row in zip(fed, rows, strict=True):
            found[index].append(row)
    return are_alike(found, expected)
