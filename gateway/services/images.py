"""Checks every image before any model sees it. Remote images are never fetched."""

import io

import anyio.to_thread
import msgspec

from gateway.core.errors import InvalidRequest, PayloadTooLarge
from gateway.core.messages import IMAGE_FORMATS, GenerateRequest


class ImagePolicy(msgspec.Struct, frozen=True):
    """What an image may be: encoded bytes, and pixels as its header declares them."""

    max_bytes: int
    max_pixels: int

    async def check(self, request: GenerateRequest) -> None:
        """Raise InvalidRequest or PayloadTooLarge for the first image that may not pass."""
        if request.has_images:
            images = [image.data for message in request.messages for image in message.images]
            await anyio.to_thread.run_sync(self._check_all, images)

    def _check_all(self, images: list[bytes]) -> None:
        for data in images:
            self.check_data(data)

    def check_data(self, data: bytes) -> None:
        """Check one encoded image by its size and its header; the pixels are not decoded."""
        if len(data) > self.max_bytes:
            raise PayloadTooLarge(
                f"An image has {len(data)} bytes; {self.max_bytes} are allowed.", param="messages"
            )
        width, height = _read_size(data)
        if width * height > self.max_pixels:
            raise PayloadTooLarge(
                f"An image has {width} x {height} pixels; {self.max_pixels} are allowed.",
                param="messages",
            )


def _read_size(data: bytes) -> tuple[int, int]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            return image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise PayloadTooLarge("An image has too many pixels.", param="messages") from None
    except (OSError, ValueError, SyntaxError):  # SyntaxError is Pillow's word for a broken file
        raise InvalidRequest(
            "An image is not a readable PNG, JPEG, GIF or WebP file.", param="messages"
        ) from None
