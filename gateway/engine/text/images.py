"""Turns encoded images into pixels: upright, RGB, bounded before anything is decoded."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gateway.core.errors import InvalidRequest, PayloadTooLarge
from gateway.core.messages import IMAGE_FORMATS

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 2**27
"""Pixels decoded for one request, all its images together; each takes 3 bytes."""


def decode_images(files: Sequence[bytes], max_pixels: int = MAX_PIXELS) -> list[Image]:
    """Return the images in RGB, turned as their EXIF says, transparency over white.

    Of an animation it is the first frame. Raises PayloadTooLarge for more than `max_pixels`
    together, by their headers, and InvalidRequest for an image that cannot be decoded.
    """
    opened = [_open(data) for data in files]
    pixels = sum(image.width * image.height for image in opened)
    if pixels > max_pixels:
        raise PayloadTooLarge(
            f"The images have {pixels} pixels together; {max_pixels} are allowed.",
            hint="Send fewer or smaller images.",
            param="messages",
        )
    return [_decode(image) for image in opened]


def _open(data: bytes) -> Image:
    from PIL import Image

    try:
        return Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except Image.DecompressionBombError:
        raise PayloadTooLarge("An image has too many pixels.", param="messages") from None
    except (OSError, ValueError, SyntaxError):  # SyntaxError is Pillow's word for a broken file
        raise _broken() from None


def _decode(image: Image) -> Image:
    from PIL import ImageOps

    try:
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except (OSError, ValueError, SyntaxError, EOFError):
        raise _broken() from None


def _to_rgb(image: Image) -> Image:
    from PIL import Image

    if image.mode.startswith("I"):
        # 16 bits of grey; a plain conversion would clip all but the darkest to white.
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if image.has_transparency_data:
        upper = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", upper.size, "white"), upper).convert("RGB")
    return image.convert("RGB")


def _broken() -> InvalidRequest:
    return InvalidRequest("An image is broken and cannot be decoded.", param="messages")
