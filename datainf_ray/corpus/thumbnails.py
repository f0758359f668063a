"""What people are shown of a picture: a small one, of which every bit is ours.

A picture's own bytes are anybody's, and reach no page: a small JPEG is made of the pixels that were decoded. The same
pixels give the same bytes, so that tables that have them are the same whoever computed a row.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from datainf_ray.common.words import byte_size

SIDE = 128  #: pixels of the longer side, at most
MOST_BYTES = 8 * 1024  #: of one
_QUALITIES = (80, 60, 40, 20, 5)  # the first that takes no more bytes than that
_BEGIN = b"\xff\xd8\xff"  # of a JPEG


def thumbnail(pixels: np.ndarray) -> bytes:
    """A JPEG of at most `MOST_BYTES` of `pixels` (height × width × 3, uint8), with sides of at most `SIDE`."""
    from PIL import Image

    image = Image.fromarray(pixels)
    if max(image.size) > SIDE:
        image.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC, reducing_gap=2.0)
    for quality in _QUALITIES:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        if file.tell() <= MOST_BYTES:
            break
    return file.getvalue()


def is_thumbnail(data: bytes | None) -> bool:
    """Whether it looks like one of ours; what stands in a table may have been put there by others."""
    return data is not None and len(data) <= MOST_BYTES and data.startswith(_BEGIN)


def told(name: str | None, size: int, shape: Sequence[int] | None = None) -> str:
    """A picture in words: its file's name, its height and width, its bytes.

    >>> told("dogs/1.png", 51_200, (480, 640))
    'dogs/1.png, 640 × 480 pixels, 51.2 kB'
    """
    pixels = [] if shape is None else [f"{shape[1]:,} × {shape[0]:,} pixels"]
    return ", ".join([*([name] if name else []), *pixels, byte_size(size)])
