"""Turns messages with images into token ids and the tensors that a model sees the images by."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from gateway.core.errors import EngineFailed, InvalidRequest
from gateway.core.messages import GenerateRequest
from gateway.engine.text.images import decode_images
from gateway.engine.text.prompt import Piece, Prompt, PromptEncoder

logger = logging.getLogger(__name__)

MARK = "<|gateway:literal|>"
"""A token of our own, unknown to the model: two of them enclose the number of a user's text that
spells a control token, while the processor fills in the images."""


class VisionEncoder(PromptEncoder):
    """Encodes with a transformers processor, which alone knows what stands in for an image."""

    def __init__(self, processor: Any) -> None:
        from transformers import AddedToken

        tokenizer = processor.tokenizer
        # A control string from here on, so that no user can write it either.
        tokenizer.add_tokens(AddedToken(MARK, special=True, normalized=False), special_tokens=True)
        template = getattr(processor, "chat_template", None)
        if isinstance(template, dict):  # several by name
            template = template.get("default")
        super().__init__(tokenizer, template=template, in_parts=True)
        self._processor = processor
        self._mark = tokenizer.convert_tokens_to_ids(MARK)

    def _encode_chat(self, request: GenerateRequest) -> Prompt:
        files = [part.data for message in request.messages for part in message.images]
        pieces = self._pieces(request)
        outputs = self._process(pieces, files)
        literals = [self._literal_ids(piece.text) for piece in pieces if piece.is_literal]
        ids = outputs.pop("input_ids")[0].tolist()
        spelled, origins = self._spell(ids, literals)
        if not files:
            return Prompt(spelled)
        outputs.pop("attention_mask", None)
        by_token = (1, len(ids))
        inputs = {
            name: value[:, origins] if value.shape[:2] == by_token else value
            for name, value in outputs.items()
        }
        return Prompt(spelled, inputs)

    def _process(self, pieces: Sequence[Piece], files: list[bytes]) -> dict[str, Any]:
        """Return what the processor makes of the rendered prompt and the images.

        One request at a time: pixels are large, and a tokenizer is not for two threads.
        """
        text, options = _join(pieces), dict[str, Any]()
        begin = self._tokenizer.bos_token
        if begin is not None and text.startswith(begin):
            # As its own apply_chat_template does: the template wrote what else would be added.
            options["add_special_tokens"] = False
        with self._lock:
            images = decode_images(files)
            try:
                outputs = self._processor(
                    text=text, images=[images] if images else None, return_tensors="pt", **options
                )
            except ValueError as error:
                raise InvalidRequest(
                    f"The model's processor refused the messages: {error}", param="messages"
                ) from None
            except Exception as error:  # the edge of transformers' world: it raises anything
                logger.exception("a processor failed")
                raise EngineFailed("The model's processor failed on these messages.") from error
        return dict(outputs)

    def _spell(self, ids: list[int], literals: list[list[int]]) -> tuple[list[int], list[int]]:
        """Return the ids with the user's texts in the places of their marks, and for each the
        position in `ids` that it comes from."""
        spelled: list[int] = []
        origins: list[int] = []
        position = 0
        while position < len(ids):
            found, end = [ids[position]], position + 1
            if ids[position] == self._mark:
                close = ids.index(self._mark, end)
                found, end = literals[int(self.decode(ids[end:close]))], close + 1
            spelled += found
            origins += [position] * len(found)
            position = end
        return spelled, origins


def _join(pieces: Sequence[Piece]) -> str:
    """Return the text of the prompt, with marks around the numbers of its literal pieces."""
    texts: list[str] = []
    literals = 0
    for piece in pieces:
        if piece.is_literal:
            texts.append(f"{MARK}{literals}{MARK}")
            literals += 1
        else:
            texts.append(piece.text)
    return "".join(texts)
