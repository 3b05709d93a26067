"""Radiance RGBE pictures (.hdr): equirectangular environments in linear light.

The format is Greg Ward's ("Real Pixels", Graphics Gems II, 1991): a text header, then one shared exponent per pixel,
scanlines run-length coded per component.
"""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path

import numpy as np

from trellis.errors import InputError
from trellis.files import replacing

_MAX_PIXELS = 64_000_000
_RUN_LIMIT = 128  # a count byte above this announces a run
_CODED_WIDTHS = range(8, 0x8000)


def read_hdr(path: str | PathLike[str]) -> np.ndarray:
    """The pixels [H, W, 3] float32, first row at the top.

    Raises:
        InputError: not a Radiance RGBE file, damaged, or above 64 megapixels.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"'{path.name}' cannot be read: {error.strerror}.") from error
    head = re.match(rb"#\?(?:RADIANCE|RGBE)\n(.*?)\n\n-Y (\d+) \+X (\d+)\n", data, re.DOTALL)
    if head is None or b"FORMAT=32-bit_rle_rgbe" not in head[1]:
        raise InputError(f"'{path.name}' is not a Radiance RGBE picture stored from the top left.")
    height, width = int(head[2]), int(head[3])
    if not 0 < height * width <= _MAX_PIXELS:
        raise InputError(f"'{path.name}' has {width} x {height} pixels; up to {_MAX_PIXELS // 10**6} million are read.")
    try:
        rgbe = _decode(np.frombuffer(data, np.uint8, offset=head.end()), height, width)
    except (IndexError, ValueError) as error:
        raise InputError(f"'{path.name}' is damaged or incomplete.") from error
    scale = np.ldexp(1.0, rgbe[..., 3].astype(np.int32) - 136)
    pixels = (rgbe[..., :3] + 0.5) * np.where(rgbe[..., 3] > 0, scale, 0.0)[..., None]
    return pixels.astype(np.float32)


def write_hdr(path: str | PathLike[str], pixels: np.ndarray) -> None:
    """Write [H, W, 3], values finite and >= 0, uncompressed; one part in 256 of a pixel's largest component is kept.

    Raises:
        InputError: a wrong shape, or a value that is negative or not finite.
    """
    pixels = np.asarray(pixels, dtype=np.float64)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not (np.isfinite(pixels).all() and (pixels >= 0).all()):
        raise InputError("An HDR picture must be [H, W, 3] with finite values from 0.")
    mantissa, exponent = np.frexp(pixels.max(axis=2))
    visible = pixels.max(axis=2) > 1e-32
    scale = np.where(visible, np.ldexp(256.0, -np.where(visible, exponent, 0)), 0.0)
    rgbe = np.zeros((*pixels.shape[:2], 4), np.uint8)
    rgbe[..., :3] = np.minimum(pixels * scale[..., None], 255)
    rgbe[..., 3] = np.where(visible, (exponent + 128).clip(0, 255), 0)
    height, width = pixels.shape[:2]
    header = f"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y {height} +X {width}\n".encode()
    with replacing(path) as temporary:
        temporary.write_bytes(header + rgbe.tobytes())


def _decode(data: np.ndarray, height: int, width: int) -> np.ndarray:
    """[H, W, 4] uint8 of the body of a file, coded or flat."""
    coded = width in _CODED_WIDTHS and tuple(data[:2]) == (2, 2) and data[2] < _RUN_LIMIT
    if not coded:
        return data[: height * width * 4].reshape(height, width, 4)
    rows = np.empty((height, 4, width), np.uint8)
    position = 0
    for row in range(height):
        if tuple(data[position : position + 2]) != (2, 2):
            raise ValueError("A scanline lacks its mark.")
        position += 4
        for component in range(4):
            column = 0
            while column < width:
                count = int(data[position])
                run = count > _RUN_LIMIT
                count -= _RUN_LIMIT if run else 0
                if count == 0 or column + count > width:
                    raise ValueError("A run passes the end of its scanline.")
                taken = 1 if run else count
                rows[row, component, column : column + count] = data[position + 1 : position + 1 + taken]
                position += 1 + taken
                column += count
    return rows.transpose(0, 2, 1)
