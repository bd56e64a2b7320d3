"""Decoding images, by Pillow."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np

from fusile.kernels.host.registry import Refused, host_op
from fusile.kernels.registry import Malformed, Unsupported

Array = np.ndarray[Any, np.dtype[Any]]

FORMATS = ("BMP", "JPEG", "JPEG2000", "TIFF", "PNG", "WEBP", "PPM")
"""Pillow's names of the formats that ONNX lists; no other decoder sees a file."""
MOST_PIXELS = 1 << 27
"""Pixels of an image: a small file may claim to be an enormous one."""


@host_op("ImageDecoder")
def image_decoder(encoded: Array, *, pixel_format: str = "RGB") -> Array:
    """An image as [height, width, channels] of bytes; nothing of it where it cannot be decoded.

    Raises Refused for an image of too many pixels, before it is decoded.
    """
    if pixel_format not in ("RGB", "BGR", "Grayscale"):
        raise Malformed(f"pixel_format is {pixel_format!r}, and should be RGB, BGR or Grayscale")
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise Unsupported("the library Pillow is not installed", "pip install pillow") from error
    channels = 1 if pixel_format == "Grayscale" else 3
    nothing = np.zeros((0, 0, channels), np.uint8)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(encoded.tobytes()), formats=FORMATS)
            if image.width * image.height > MOST_PIXELS:
                raise Refused(f"the image has {image.width} x {image.height} pixels")
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"), np.uint8)
    except Image.DecompressionBombError as error:
        raise Refused(f"the image is too large: {error}") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError):
        return nothing
    pixels = pixels.reshape(*pixels.shape[:2], channels)
    return np.ascontiguousarray(pixels[..., ::-1] if pixel_format == "BGR" else pixels)
