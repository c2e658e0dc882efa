import io
import struct
import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gateway.core.errors import GatewayError, InvalidRequest, PayloadTooLarge
from gateway.core.messages import GenerateRequest, ImagePart, Message
from gateway.services.images import ImagePolicy

POLICY = ImagePolicy(max_bytes=100_000, max_pixels=10_000)


def encode(kind: str, size: tuple[int, int] = (4, 4)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, kind)
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))


def chunk(kind: bytes, body: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + checksum


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_common_formats_pass(kind: str) -> None:
    POLICY.check_data(encode(kind))


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", encode("BMP"), b"<svg/>"])
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="PNG, JPEG, GIF or WebP"):
        POLICY.check_data(data)


@pytest.mark.parametrize("size", [(101, 100), (50_000, 50_000), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_refused_by_the_header_alone(size: tuple[int, int]) -> None:
    with pytest.raises(PayloadTooLarge, match="pixels"):
        POLICY.check_data(bomb(*size))


def test_too_many_bytes_are_refused() -> None:
    with pytest.raises(PayloadTooLarge, match="bytes"):
        POLICY.check_data(b"x" * 100_001)


@given(st.binary(max_size=200), st.integers(0, 60))
def test_no_bytes_raise_anything_but_a_refusal(noise: bytes, at: int) -> None:
    whole = encode("PNG")
    with suppress(GatewayError):
        POLICY.check_data(whole[:at] + noise + whole[at + len(noise) :])


async def test_every_image_of_every_message_is_checked() -> None:
    good, bad = ImagePart(encode("PNG")), ImagePart(b"no")
    request = GenerateRequest(
        id="r", model="m", messages=(Message("user", (good,)), Message("user", (good, bad)))
    )
    with pytest.raises(InvalidRequest):
        await POLICY.check(request)
