"""Loads the processor of a vision-language model: its tokenizer, template and image processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def takes_images(config: Any) -> bool:
    """Tell whether transformers knows the model of this config as one of images and text."""
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not config.is_encoder_decoder


def load_processor(path: Path, config: Any, **options: Any) -> Any:
    """Return the processor in `path`; one that also takes videos comes without that part where
    torchvision, which only videos need, is not installed."""
    from transformers import AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.utils import is_torchvision_available

    kind = PROCESSOR_MAPPING.get(type(config), None)
    if kind is None or "video_processor" not in kind.get_attributes() or is_torchvision_available():
        return AutoProcessor.from_pretrained(path, **options)
    return _without_video(kind).from_pretrained(path, video_processor=None, **options)


def _without_video(kind: Any) -> Any:
    class ImagesOnly(kind):  # type: ignore[misc]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in super().get_attributes() if name != "video_processor"]

    # transformers reads the files of some processors by the name of their class.
    ImagesOnly.__name__ = kind.__name__
    return ImagesOnly
