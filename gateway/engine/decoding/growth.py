"""How the state of a sequence grows in a model that keeps it in its own way: learnt by trying."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from gateway.engine.decoding.decoder import Decoder, sees_images
from gateway.engine.decoding.state import held_bytes

logger = logging.getLogger(__name__)

_PROMPTS = ([5, 3], [8, 1, 9, 2, 7, 4])
"""Two of unlike length: what is the same after both does not grow."""
_NEXT = 6


class Growth(msgspec.Struct, frozen=True):
    """What a sequence takes whatever its length (states), and for each of its tokens."""

    fixed_bytes: int = 0
    token_bytes: int = 0
    image_token_bytes: int = 0
    """What a token of a prompt with images takes besides: what the image tower made of it."""

    def step_bytes(self, tokens: int) -> int:
        """Return the most that a step of so many tokens adds."""
        return tokens * self.token_bytes

    def first_bytes(self, tokens: int, inputs: Mapping[str, Any] | None = None) -> int:
        """Return the most that a sequence takes after its first step."""
        needed = self.fixed_bytes + tokens * self.token_bytes
        return needed + held_bytes(inputs) + tokens * self.image_token_bytes if inputs else needed


def learn_growth(model: Any, open_decoder: Callable[[Any], Decoder]) -> Growth:
    """Return how the state of a model's sequences grows: computes some tokens."""
    try:
        return _try(model, open_decoder)
    except Exception as error:  # a model that does not run without an image, say
        logger.warning("%s does not show how it grows: %s", type(model).__name__, error)
        return Growth()


def _try(model: Any, open_decoder: Callable[[Any], Decoder]) -> Growth:
    sizes, steps = [], []
    for prompt in _PROMPTS:
        decoder = open_decoder(model)
        decoder.feed(prompt)
        sizes.append(decoder.memory_bytes)
        decoder.feed([_NEXT])
        steps.append(decoder.memory_bytes - sizes[-1])
    short, long = map(len, _PROMPTS)
    token_bytes = max(0, -(-(sizes[1] - sizes[0]) // (long - short)), *steps)
    return Growth(
        fixed_bytes=max(0, sizes[0] - short * token_bytes, sizes[1] - long * token_bytes),
        token_bytes=token_bytes,
        image_token_bytes=_image_token_bytes(model),
    )


def _image_token_bytes(model: Any) -> int:
    if not sees_images(model):
        return 0
    return int(model.config.get_text_config().hidden_size * model.dtype.itemsize)
