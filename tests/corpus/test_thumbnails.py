"""Small pictures for people: of which size, in how many bytes, and with nothing in them but pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from datainf_ray.corpus.thumbnails import MOST_BYTES, SIDE, is_thumbnail, thumbnail


def pixels(height: int, width: int) -> np.ndarray:
    """What takes the most bytes: noise."""
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (64, 64), (128, 128), (128, 127), (512, 512), (90, 3000)])
def test_it_is_a_jpeg_of_few_pixels_and_bytes(height: int, width: int) -> None:
    made = thumbnail(pixels(height, width))
    assert len(made) <= MOST_BYTES
    assert is_thumbnail(made)
    assert thumbnail(pixels(height, width)) == made
    with Image.open(io.BytesIO(made)) as image:
        assert (image.format, image.mode, max(image.size)) == ("JPEG", "RGB", min(SIDE, max(height, width)))
        assert image.size[0] / image.size[1] == pytest.approx(width / height, rel=0.2)
        assert not {"exif", "icc_profile", "comment"} & image.info.keys()


def test_it_looks_like_the_picture() -> None:
    y, x = np.mgrid[:300, :600]
    made = thumbnail(np.stack([255 * y // 300, 255 * x // 600, 0 * x], 2).astype(np.uint8))
    found = np.asarray(Image.open(io.BytesIO(made)))
    small = np.mgrid[:64, :128].astype(float)
    assert np.abs(found[..., 0] - 255 * small[0] / 64).mean() < 4
    assert np.abs(found[..., 1] - 255 * small[1] / 128).mean() < 4


def test_what_is_none_of_ours_is_seen() -> None:
    png = io.BytesIO()
    Image.fromarray(pixels(8, 8)).save(png, "PNG")
    for other in (None, b"", b"<script>", png.getvalue(), thumbnail(pixels(8, 8)) + bytes(MOST_BYTES)):
        assert not is_thumbnail(other)
