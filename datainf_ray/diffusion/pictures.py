"""A picture's bytes as pixels of the size that a model is trained at. Bytes are hostile: Pillow alone looks at them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from datainf_ray.common.errors import one_line

FORMATS = ("PNG", "JPEG", "WEBP")
MOST_PIXELS = 64 * 10**6  #: of a picture that is decoded; a larger one takes more memory than a worker has to spare
_EXTREME = 64  # times longer than wide: no resizing gives a picture


@dataclass(frozen=True)
class Picture:
    """What a model is trained with."""

    pixels: np.ndarray  #: height × width × 3, uint8
    original: tuple[int, int]  #: height and width, as it was
    corner: tuple[int, int]  #: top and left of what was cut out, in pixels of the resized picture


def read_picture(data: bytes, side: int, crop: str) -> Picture:
    """The picture as `side` × `side` pixels, in RGB, upright as its EXIF says.

    `crop` "center": resized so that its shorter side is `side`, and cut to the middle of the longer one; "none":
    squeezed. As the trainers of diffusers do it. Raises ValueError where the bytes are no picture of `FORMATS`, are
    truncated, or have more than `MOST_PIXELS`; such a one is not decoded. So many is also the most, but for pictures at
    most four times as long as wide, that a resized one has.
    """
    from PIL import Image

    image = _decoded(data)
    width, height = image.size
    if crop == "none":
        sized, corner = image.resize((side, side), Image.Resampling.LANCZOS), (0, 0)
    else:
        w, h = (int(side * length / min(width, height)) for length in (width, height))
        if w * h > max(MOST_PIXELS, 4 * side * side):
            grown = f"{w:,} × {h:,} at diffusion.resolution {side}"
            raise ValueError(f"image has {width:,} × {height:,} pixels, {grown}: {MOST_PIXELS:,} is the most")
        top, left = round((h - side) / 2), round((w - side) / 2)
        resized = image.resize((w, h), Image.Resampling.LANCZOS) if (w, h) != image.size else image
        sized, corner = resized.crop((left, top, left + side, top + side)), (top, left)
    return Picture(np.array(sized, dtype=np.uint8), (height, width), corner)


def stand_in(side: int) -> Picture:
    """Gray of the same size, in the place of a picture that is not made yet."""
    return Picture(np.full((side, side, 3), 127, dtype=np.uint8), (side, side), (0, 0))


def _decoded(data: bytes) -> Any:
    """The picture, whole, in RGB as trainers convert it: what is transparent shows its color."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    wrong = None
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            wrong = refused(*opened.size, opened.mode)
            if wrong is None:
                opened.load()
                return ImageOps.exif_transpose(opened).convert("RGB")
    except UnidentifiedImageError:
        wrong = f"is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} picture"
    except Image.DecompressionBombError as error:
        wrong = f"is not decoded: {one_line(error)}"
    except Exception as error:  # OSError, SyntaxError, ValueError, struct.error and more, as Pillow's decoders have it
        wrong = f"cannot be decoded: {one_line(error)[:200]}"
    raise ValueError(f"image {wrong}")


def refused(width: int, height: int, mode: str) -> str | None:
    """Why a picture of this size and mode is not decoded; None where it is."""
    shown = f"has {width:,} × {height:,} pixels"
    if width * height > MOST_PIXELS:
        return f"{shown}, and {MOST_PIXELS:,} is the most"
    if min(width, height) < 1 or max(width, height) > _EXTREME * min(width, height):
        return f"{shown}: a line, and no picture"
    return f"has pixels of mode {mode}, not 8 bits a color" if mode.startswith(("I", "F")) else None
