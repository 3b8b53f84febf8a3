"""Still images: kinds, colours, limits before pixels, damage."""

from __future__ import annotations

import io
import math
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from svc.video.errors import (
    CorruptMediaError,
    EmptyMediaError,
    MediaFormError,
    PtsError,
    ResolutionLimitError,
    SizeLimitError,
    TruncatedMediaError,
    UnsupportedMediaError,
)
from svc.video.frames import ChunkItem, Frame, ImageItem, ImageMedia, Rgb
from svc.video.image_header import read_image_header
from svc.video.images import ImageDecoder, decode_image
from svc.video.limits import VideoLimits
from tests.svc.video.media import picture

MAX_PIXELS = VideoLimits().max_pixels
RGB = picture(7, width=37, height=21)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decode(data: bytes) -> Rgb:
    return decode_image(data, max_pixels=MAX_PIXELS)


def push(data: bytes, media: ImageMedia | None = None, **limits: int) -> Frame:
    decoder = ImageDecoder(media or ImageMedia(), VideoLimits(**limits))
    (frame,) = decoder.push(ImageItem(pts_s=1.5, data=data))
    assert list(decoder.finish()) == []
    decoder.close()
    return frame


def png_header(width: int, height: int, bit_depth: int = 8) -> bytes:
    """A PNG that announces a size, and has next to no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, bit_depth, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data",
    [
        encode(Image.fromarray(RGB), "PNG"),
        encode(Image.fromarray(RGB), "WEBP", lossless=True),
    ],
)
def test_lossless_images_keep_their_pixels(data: bytes) -> None:
    frame = push(data)
    assert (frame.pts_s, frame.width, frame.height) == (1.5, 37, 21)
    assert np.array_equal(frame.rgb, RGB)


def test_a_jpeg_decodes_to_what_pillow_makes_of_it() -> None:
    data = encode(Image.fromarray(RGB), "JPEG", quality=90)
    assert np.array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data))))


def test_raw_rgb_is_taken_as_it_is_and_must_have_its_size() -> None:
    media = ImageMedia(raw_width=37, raw_height=21)
    frame = push(RGB.tobytes(), media)
    assert np.array_equal(frame.rgb, RGB)
    assert frame.rgb.flags.writeable
    with pytest.raises(CorruptMediaError, match="given 2330 bytes, it has 2331"):
        push(RGB.tobytes()[:-1], media)


def test_grey_palette_and_cmyk_become_rgb() -> None:
    grey = Image.fromarray(RGB[:, :, 0])
    expected = np.repeat(RGB[:, :, :1], 3, axis=2)
    assert np.array_equal(decode(encode(grey, "PNG")), expected)
    palette = Image.fromarray(RGB).quantize(16)
    assert np.array_equal(decode(encode(palette, "PNG")), np.asarray(palette.convert("RGB")))
    bits = grey.convert("1")
    assert np.array_equal(decode(encode(bits, "PNG")), np.asarray(bits.convert("RGB")))
    cmyk = encode(Image.fromarray(RGB).convert("CMYK"), "JPEG")
    assert decode(cmyk).shape == RGB.shape


def test_of_16_bit_grey_the_upper_8_bits_are_taken() -> None:
    wide = np.arange(0, 65536, 97, dtype=np.uint16)[:640].reshape(16, 40)
    data = encode(Image.fromarray(wide), "PNG")
    expected = np.repeat((wide >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    assert np.array_equal(decode(data), expected)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparent_pixels_are_laid_over_black(kind: str) -> None:
    rgba = np.full((4, 6, 4), 200, np.uint8)
    rgba[:, :3, 3] = 0
    rgba[:, 3:, 3] = 255
    out = decode(encode(Image.fromarray(rgba), kind, lossless=True))
    assert (out[:, :3] == 0).all()
    assert (out[:, 3:] == 200).all()


def test_a_transparent_palette_entry_is_laid_over_black() -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([255, 255, 255, 10, 20, 30])
    assert (decode(encode(palette, "PNG", transparency=1)) == 0).all()
    assert (decode(encode(palette, "PNG", transparency=0)) == [10, 20, 30]).all()


def test_of_an_animation_the_first_picture_counts() -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    for kind in ("PNG", "WEBP"):
        data = encode(first, kind, save_all=True, append_images=[second], lossless=True)
        assert (decode(data)[:, :, 2] == 0).all()


def test_orientation_notes_are_not_followed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encode(Image.fromarray(RGB), "JPEG", exif=exif)).shape == RGB.shape


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0MM\0*"}])
def test_the_size_is_read_from_the_header_alone(kind: str, options: dict[str, Any]) -> None:
    data = encode(Image.fromarray(RGB), kind, **options)
    header = read_image_header(data)
    assert header is not None
    assert (header.format, header.width, header.height) == (kind, 37, 21)


@pytest.mark.parametrize("side", [20_000, 4097, 2**31 - 1])
def test_an_image_too_large_is_refused_before_its_pixels(side: int) -> None:
    tracemalloc.start()
    with pytest.raises(ResolutionLimitError, match=f"given {side} x {side} pixels") as caught:
        push(png_header(side, side))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert caught.value.max_pixels == MAX_PIXELS
    assert peak_bytes < 1_000_000


def test_a_real_image_of_20000_by_20000_is_refused_whatever_its_kind() -> None:
    with pytest.raises(ResolutionLimitError, match="20000 x 20000"):
        push(encode(Image.new("1", (20_000, 20_000)), "PNG", compress_level=1))
    for kind in ("JPEG", "WEBP"):
        large = encode(Image.new("L", (16_000, 1_050)), kind, quality=1, method=0)
        with pytest.raises(ResolutionLimitError, match="16000 x 1050"):
            push(large)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [5_000, 12_000, 60_000])
def test_a_second_header_cannot_smuggle_in_a_larger_image(side: int) -> None:
    small, large = png_header(8, 8), png_header(side, side)
    with pytest.raises(ResolutionLimitError):
        push(small[:33] + large[8:])


def test_raw_images_too_large_are_refused_when_announced() -> None:
    with pytest.raises(ResolutionLimitError):
        ImageDecoder(ImageMedia(raw_width=20_000, raw_height=20_000), VideoLimits())


def test_a_png_that_announces_more_than_it_has_is_refused() -> None:
    with pytest.raises(CorruptMediaError):
        push(png_header(4000, 4000))


def test_a_png_with_a_bomb_of_text_is_refused() -> None:
    data = png_header(8, 8)
    text = b"zTXt" + b"note\0\0" + zlib.compress(bytes(70_000_000), 9)
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    with pytest.raises(CorruptMediaError):
        push(data[:33] + chunk + data[33:])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.6, 0.95])
def test_a_truncated_image_is_an_error_that_names_its_time(kind: str, fraction: float) -> None:
    data = encode(Image.fromarray(picture(0, 200, 150)), kind)
    with pytest.raises(CorruptMediaError) as caught:
        push(data[: max(12, int(len(data) * fraction))])
    assert caught.value.pts_s == 1.5


def test_a_header_without_a_size_is_truncated() -> None:
    with pytest.raises(TruncatedMediaError, match="no size"):
        push(encode(Image.fromarray(RGB), "JPEG")[:20])


@pytest.mark.parametrize(
    "data",
    [encode(Image.fromarray(RGB), "GIF"), encode(Image.fromarray(RGB), "BMP"), b"x", b"<svg/>"],
)
def test_other_kinds_are_refused_with_what_is_allowed(data: bytes) -> None:
    with pytest.raises(UnsupportedMediaError, match="JPEG, PNG, WebP"):
        push(data)


def test_what_is_no_acceptable_image_is_refused() -> None:
    decoder = ImageDecoder(ImageMedia(), VideoLimits(max_image_bytes=10))
    with pytest.raises(EmptyMediaError):
        decoder.push(ImageItem(pts_s=0, data=b""))
    with pytest.raises(SizeLimitError, match="given 11 bytes, allowed: at most 10"):
        decoder.push(ImageItem(pts_s=0, data=bytes(11)))
    with pytest.raises(PtsError):
        decoder.push(ImageItem(pts_s=math.nan, data=b"x"))
    with pytest.raises(MediaFormError):
        decoder.push(ChunkItem(data=b"x"))


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5)])
def test_a_raw_size_is_whole_or_absent(size: tuple[int, int]) -> None:
    with pytest.raises(UnsupportedMediaError, match="both"):
        ImageMedia(raw_width=size[0], raw_height=size[1])


SAMPLES: list[Callable[[], bytes]] = [
    lambda: encode(Image.fromarray(RGB), "PNG"),
    lambda: encode(Image.fromarray(RGB), "JPEG"),
    lambda: encode(Image.fromarray(RGB), "WEBP"),
    lambda: encode(Image.fromarray(RGB).quantize(16), "PNG"),
]


@given(data=st.data())
def test_whatever_the_bytes_the_answer_is_a_picture_or_a_video_error(data: st.DataObject) -> None:
    sample = bytearray(data.draw(st.sampled_from(SAMPLES))())
    for _ in range(data.draw(st.integers(1, 8))):
        sample[data.draw(st.integers(0, len(sample) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(sample)))
    try:
        rgb = decode(bytes(sample[:cut]))
    except (CorruptMediaError, ResolutionLimitError, UnsupportedMediaError):
        return
    assert rgb.shape[0] * rgb.shape[1] <= MAX_PIXELS
