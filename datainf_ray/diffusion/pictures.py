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
    truncated, or have more than `MOST_PIXELS`; such a one is not decoded.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            width, height = opened.size
            if width * height > MOST_PIXELS:
                raise ValueError(f"image has {width:,} × {height:,} pixels, and {MOST_PIXELS:,} is the most")
            if max(width, height) > _EXTREME * min(width, height):
                raise ValueError(f"image has {width:,} × {height:,} pixels: a line, and no picture")
            opened.load()
            image = _rgb(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError:
        raise ValueError(f"image is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} picture") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"image is not decoded: {one_line(error)}") from None
    except (OSError, SyntaxError, EOFError, OverflowError, MemoryError) as error:  # as Pillow's decoders raise them
        raise ValueError(f"image cannot be decoded: {one_line(error)[:200]}") from None
    width, height = image.size
    if crop == "none":
        sized, corner = image.resize((side, side), Image.Resampling.LANCZOS), (0, 0)
    else:
        w, h = (int(side * length / min(width, height)) for length in (width, height))
        top, left = round((h - side) / 2), round((w - side) / 2)
        resized = image.resize((w, h), Image.Resampling.LANCZOS) if (w, h) != image.size else image
        sized, corner = resized.crop((left, top, left + side, top + side)), (top, left)
    return Picture(np.array(sized, dtype=np.uint8), (height, width), corner)


def _rgb(image: Any) -> Any:
    """In RGB as trainers convert it: what is transparent shows its color."""
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "F"):
        raise ValueError(f"image has pixels of mode {image.mode}, not 8 bits a color")
    return image.convert("RGB")
