import io
import struct
import zlib
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gateway.core.errors import GatewayError, InvalidRequest, PayloadTooLarge
from gateway.engine.text.images import decode_images

RED, GREEN, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (255, 255, 255), (0, 0, 0)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def two_pixels(mode: str, left: Any, right: Any) -> Image.Image:
    image = Image.new(mode, (2, 1))
    image.putpixel((0, 0), left)
    image.putpixel((1, 0), right)
    return image


def decode(data: bytes) -> list[Any]:
    """Return the pixels of an image, row after row."""
    [image] = decode_images([data])
    assert image.mode == "RGB"
    return [image.getpixel((x, y)) for y in range(image.height) for x in range(image.width)]


@pytest.mark.parametrize(
    ("mode", "left", "right"),
    [
        ("RGB", RED, GREEN),
        ("RGBA", (*RED, 255), (*GREEN, 255)),
        ("P", 1, 2),
    ],
)
def test_colours_are_kept_in_every_mode(mode: str, left: Any, right: Any) -> None:
    image = two_pixels(mode, left, right)
    if mode == "P":
        image.putpalette([0, 0, 0, *RED, *GREEN])
    assert decode(encode(image)) == [RED, GREEN]


@pytest.mark.parametrize(
    ("mode", "left", "right"),
    [("LA", (0, 0), (0, 255)), ("RGBA", (0, 0, 0, 0), (0, 0, 0, 255)), ("1", 1, 0), ("L", 255, 0)],
)
def test_what_is_transparent_is_white(mode: str, left: Any, right: Any) -> None:
    assert decode(encode(two_pixels(mode, left, right))) == [WHITE, BLACK]


def test_a_transparent_colour_of_a_palette_is_white() -> None:
    image = two_pixels("P", 0, 1)
    image.putpalette([*RED, *GREEN])
    assert decode(encode(image, transparency=0)) == [WHITE, GREEN]


def test_sixteen_bits_of_grey_keep_their_shades() -> None:
    image = two_pixels("I;16", 0x8080, 0xFFFF)
    assert decode(encode(image)) == [(128, 128, 128), WHITE]


def test_a_cmyk_photo_is_red_where_it_is_red() -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red, green, blue = decode(encode(image, "JPEG"))[0]
    assert red > 200 and green < 60 and blue < 60


def test_a_photo_is_turned_as_its_exif_says() -> None:
    image = two_pixels("RGB", RED, GREEN)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    assert decode(encode(image, exif=exif)) == [GREEN, RED]


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_an_animation_is_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert set(decode(data)) == {RED}


def test_one_pixel_is_an_image() -> None:
    assert decode(encode(Image.new("RGB", (1, 1), RED))) == [RED]


def test_images_are_counted_together_before_any_is_decoded() -> None:
    good, bomb = encode(Image.new("RGB", (10, 10))), png_header(9_000, 9_000)
    assert len(decode_images([good, good], max_pixels=200)) == 2
    with pytest.raises(PayloadTooLarge, match="300 pixels together; 200"):
        decode_images([good, good, good], max_pixels=200)
    with pytest.raises(PayloadTooLarge, match="81000100 pixels"):
        decode_images([good, bomb], max_pixels=80_000_000)
    with pytest.raises(PayloadTooLarge):
        decode_images([png_header(50_000, 50_000)])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_a_file_that_is_cut_off_is_refused(kind: str) -> None:
    data = encode(Image.effect_noise((64, 64), 90).convert("RGB"), kind)
    with pytest.raises(InvalidRequest, match="broken"):
        decode_images([data[: len(data) // 2]])


WHOLE = [encode(Image.effect_noise((9, 5), 90), kind) for kind in ("PNG", "JPEG", "GIF", "WEBP")]


@given(st.sampled_from(WHOLE), st.data())
def test_a_damaged_file_raises_nothing_of_pillow(data: bytes, draw: st.DataObject) -> None:
    damaged = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 6))):
        damaged[draw.draw(st.integers(0, len(damaged) - 1))] = draw.draw(st.integers(0, 255))
    with suppress(GatewayError):
        decode_images([bytes(damaged)], max_pixels=1_000_000)


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that says its size and has no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(b""))


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
