"""A picture that somebody sends, at the model's size: PNG, JPEG or WebP, with no more pixels than memory bears."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from deploykit.folders import FORMATS, MAX_PIXELS, fitted

TOO_MANY = f"the picture must have at most {MAX_PIXELS / 1e6:.0f} million pixels"


class BadImageError(ValueError):
    """The bytes are no picture that is taken; the text says what is needed."""


def decode(data: bytes, height: int, width: int) -> NDArray[np.uint8]:
    """Return a picture as uint8 [height, width, 3], brought to that size as pictures of a folder are.

    Args:
        data: a whole PNG, JPEG or WebP file.
        height: in pixels; another shape is cropped in the middle.
        width: in pixels.

    Raises:
        BadImageError: another format, a damaged file, or too many pixels, which is seen before any is decoded.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            small_enough = picture.width * picture.height <= MAX_PIXELS
            pixels = fitted(picture, height, width) if small_enough else None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # its own limits are higher
        raise BadImageError(TOO_MANY) from error
    except UnidentifiedImageError as error:
        raise BadImageError("the body must be a PNG, JPEG or WebP picture") from error
    except Exception as error:  # a damaged file may raise anything
        raise BadImageError("the picture is damaged") from error
    if pixels is None:
        raise BadImageError(TOO_MANY)
    return pixels
