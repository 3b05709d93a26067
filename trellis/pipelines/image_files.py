"""Opening image files that strangers uploaded: bounded, upright, 8-bit, and refused with one sentence otherwise."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from trellis.errors import InputError

MAX_VIEWS = 32
MIN_SIDE = 32  # pixels
MAX_PIXELS = 80_000_000
MAX_BYTES = 256 * 2**20
OPAQUE = 204  # alpha above this counts as the object: 0.8 of 255

# Pillow also reads formats that start external programs or that nobody photographs with; those are not offered to it.
# (MPO, what many phones write, opens as JPEG.)
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# Read as well where this Pillow can; HEIF needs the package pillow-heif.
_PERHAPS = ("AVIF", "JPEG2000", "PPM", "HEIF")


def open_image(file: str | os.PathLike | bytes | BinaryIO) -> Image.Image:
    """Decode an image file that may be hostile.

    The picture comes upright (EXIF rotation applied), first frame only, 8 bits a channel, mode RGBA if the file has
    transparency and RGB otherwise.

    Raises InputError, with one sentence for the person who supplied the file, if it is missing, not an image of a known
    format, damaged, below 32 pixels on a side, above 80 megapixels (checked before decoding) or transparent everywhere.
    """
    data, name = _read(file)
    if not data:
        raise InputError(f"{name} is empty.")
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(_too_large(name, "far too many")) from error
    except Exception as error:  # header parsers meet arbitrary bytes here and raise whatever they please
        raise InputError(
            f"{name} is not an image that can be read; use a JPEG, PNG, WebP, GIF, BMP or TIFF file."
        ) from error

    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InputError(_too_large(name, f"{width} x {height}"))
    if min(width, height) < MIN_SIDE:
        raise InputError(
            f"{name} has only {width} x {height} pixels; at least {MIN_SIDE} x {MIN_SIDE} are needed to see an object."
        )
    try:
        image.load()
        image = _upright(image)
        image = _eight_bit(image, name)
    except InputError:
        raise
    except Exception as error:  # likewise decoders
        raise InputError(f"{name} is damaged or incomplete; save or download it again.") from error

    if image.mode == "RGBA" and image.getextrema()[3][1] <= OPAQUE:
        raise InputError(f"{name} is transparent everywhere, so there is no object to see in it.")
    return image


@cache
def _formats() -> tuple[str, ...]:
    """The formats that are accepted and that Pillow has a reader for (it fails on a name without one)."""
    if find_spec("pillow_heif") is not None:
        from pillow_heif import register_heif_opener

        register_heif_opener()
    Image.init()
    return (*FORMATS, *(name for name in _PERHAPS if name in Image.OPEN))


def check_views(images: Sequence[Image.Image]) -> list[Image.Image]:
    """Return the views as a list, or raise InputError if they are not 1 to 32 pictures of at least 32 pixels a side."""
    if isinstance(images, Image.Image):
        images = [images]
    if not isinstance(images, Sequence) or isinstance(images, str | bytes):
        raise InputError(f"The views must be a list of images, but a {type(images).__name__} came.")
    if not 1 <= len(images) <= MAX_VIEWS:
        raise InputError(f"Between 1 and {MAX_VIEWS} views are needed, but {len(images)} came.")
    for number, image in enumerate(images, start=1):
        if not isinstance(image, Image.Image):
            raise InputError(f"View {number} is not an image but a {type(image).__name__}; open files with open_image.")
        if min(image.size) < MIN_SIDE:
            width, height = image.size
            raise InputError(
                f"View {number} has only {width} x {height} pixels; at least {MIN_SIDE} x {MIN_SIDE} are needed."
            )
    return list(images)


def _read(file: str | os.PathLike | bytes | BinaryIO) -> tuple[bytes, str]:
    """The bytes of the file, and what to call it in a message."""
    if isinstance(file, bytes):
        data, name = file, "The image"
    elif isinstance(file, str | os.PathLike):
        path = Path(file)
        name = f"'{path.name}'"
        try:
            if not path.is_file():
                raise InputError(f"{name} is not a file.")
            with path.open("rb") as stream:
                data = stream.read(MAX_BYTES + 1)
        except (OSError, ValueError) as error:  # ValueError: a null character in the name
            if isinstance(error, InputError):
                raise
            raise InputError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    elif hasattr(file, "read"):
        data, name = file.read(MAX_BYTES + 1), "The image"
    else:
        raise InputError(f"An image file was expected, but a {type(file).__name__} came.")
    if len(data) > MAX_BYTES:
        raise InputError(f"{name} is larger than {MAX_BYTES >> 20} MB; supply a smaller or more compressed image.")
    return data, name


def _too_large(name: str, pixels: str) -> str:
    limit = MAX_PIXELS // 1_000_000
    return f"{name} has {pixels} pixels, more than the {limit} megapixels accepted; scale it down first."


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF says nothing about the pixels, which decoded well
        return image


def _eight_bit(image: Image.Image, name: str) -> Image.Image:
    """RGBA if the image has transparency, RGB otherwise; 16-bit values keep their upper byte instead of saturating."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.max() > 255 or image.mode != "I":  # mode I: 16-bit data in a 32-bit container, or already bytes
            values = values >> 8
        if values.min() < 0 or values.max() > 255:
            raise InputError(f"{name} holds values beyond 16 bits a channel; save it with 8 or 16 bits.")
        image = Image.fromarray(values.astype(np.uint8))
    elif image.mode == "F":
        raise InputError(f"{name} holds floating-point values; save it with 8 or 16 bits a channel.")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")
