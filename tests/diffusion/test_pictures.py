"""Pictures: decoded, cut and squeezed; what is none, and what is made to take a worker down."""

from __future__ import annotations

import io
import resource
import struct
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from datainf_ray.diffusion.pictures import MOST_PIXELS, read_picture


def encoded(pixels: np.ndarray, format: str, **settings: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **settings)
    return file.getvalue()


def gradient(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * y // height, 255 * x // width, 0 * x], 2).astype(np.uint8)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_the_middle_of_a_picture(format: str) -> None:
    found = read_picture(encoded(gradient(40, 80), format, quality=95), 20, "center")
    assert (found.pixels.shape, found.pixels.dtype) == ((20, 20, 3), np.uint8)
    assert (found.original, found.corner) == ((40, 80), (0, 10))
    across, down = found.pixels[..., 1].mean(0), found.pixels[..., 0].mean(1)
    assert (abs(across[0] - 64), abs(across[-1] - 191)) < (8, 8)  # a quarter to three quarters
    assert (down[0] < 12, down[-1] > 243) == (True, True)


def test_all_of_it_squeezed() -> None:
    found = read_picture(encoded(gradient(40, 80), "PNG"), 20, "none")
    across = found.pixels[..., 1].mean(0)
    assert (across[0] < 12, across[-1] > 243, found.corner) == (True, True, (0, 0))


def test_one_of_the_right_size_is_left_as_it_is() -> None:
    pixels = gradient(24, 24)
    np.testing.assert_array_equal(read_picture(encoded(pixels, "PNG"), 24, "center").pixels, pixels)


def test_gray_palette_transparent_and_turned() -> None:
    gray = gradient(24, 24)[..., 1]
    for image in (Image.fromarray(gray), Image.fromarray(gray).convert("P"), Image.fromarray(gray).convert("LA")):
        file = io.BytesIO()
        image.save(file, "PNG")
        np.testing.assert_array_equal(read_picture(file.getvalue(), 24, "center").pixels, np.stack([gray] * 3, 2))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter to the right
    file = io.BytesIO()
    Image.fromarray(gradient(24, 24)).save(file, "PNG", exif=exif)
    np.testing.assert_array_equal(read_picture(file.getvalue(), 24, "center").pixels, np.rot90(gradient(24, 24), -1))


def png(width: int, height: int, data: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def text_bomb() -> bytes:
    """A compressed text that is a gigabyte."""
    whole = encoded(gradient(24, 24), "PNG")
    deflate, zeros = zlib.compressobj(9), bytes(2**20)
    content = b"a\0\0" + b"".join(deflate.compress(zeros) for _ in range(2**8)) + deflate.flush()
    chunk = struct.pack(">I", len(content)) + b"zTXt" + content + struct.pack(">I", zlib.crc32(b"zTXt" + content))
    return whole[:33] + chunk + whole[33:]


WRONG: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "image is no PNG, JPEG or WEBP picture"),
    "text": (lambda: b"a dog", "image is no PNG, JPEG or WEBP picture"),
    "a GIF": (lambda: encoded(gradient(24, 24), "GIF"), "image is no PNG, JPEG or WEBP picture"),
    "cut off": (lambda: encoded(gradient(64, 64), "JPEG")[:600], "image cannot be decoded: "),
    "cut off, PNG": (lambda: encoded(gradient(64, 64), "PNG")[:-90], "image cannot be decoded: "),
    "a bomb": (lambda: png(30_000, 30_000, zlib.compress(bytes(10**6))), "image is not decoded: "),
    "a smaller bomb": (lambda: png(9_000, 9_000, b""), f"9,000 × 9,000 pixels, and {MOST_PIXELS:,} is the most"),
    "a line": (lambda: png(100_000, 1, b""), "a line, and no picture"),
    "no rows": (lambda: png(0, 0, b""), "image "),
    "16 bits": (lambda: encoded(np.full((24, 24), 1000, np.uint16), "PNG"), "image has pixels of mode I;16"),
    "a text of a gigabyte": (text_bomb, "image cannot be decoded: "),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_decoded_is_a_value_error_and_takes_no_memory(case: str) -> None:
    make, said = WRONG[case]
    data = make()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"^image ") as caught:
            read_picture(data, 16, "center")
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_strip_that_would_grow_beyond_bounds_is_not_made_larger() -> None:
    """A file of 2 kB, of which the picture that is cut at 2,048 pixels would take half a gigabyte first."""
    data = encoded(gradient(10, 640), "PNG")
    before = peak()
    with pytest.raises(ValueError, match=r"^image has 640 × 10 pixels, 131,072 × 2,048 at diffusion.resolution 2048: "):
        read_picture(data, 2048, "center")
    assert peak() - before < 100e6
    assert read_picture(data, 512, "center").pixels.shape == (512, 512, 3)
    assert read_picture(encoded(gradient(8, 16), "PNG"), 2048, "center").original == (8, 16)


def peak() -> int:
    """Bytes of memory that this process has had at most: Pillow's own are not seen by tracemalloc."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
