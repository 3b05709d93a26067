"""SPZ, Niantic's compressed splats, degree 0: a gzip stream of 16 header bytes and one quantised array per attribute.

The layout is that of https://github.com/nianticlabs/spz (versions 2 and 3; version 3 is written). Its axes are those of
glTF: x right, y up, z backward.
"""

from __future__ import annotations

import io
import math
import struct
import zlib

import numpy as np

from trellis.errors import InputError
from trellis.representations.gaussian_ply import MAX_GAUSSIANS

_HEADER = struct.Struct("<IIIBBBB")  # magic, version, number, degree of harmonics, fractional bits, flags, reserved
_MAGIC = 0x5053474E  # "NGSP"
_COLOR_SCALE = 0.15
_LARGEST_MAGNITUDE = 511  # nine bits and a sign for each of the three smallest quaternion components
_HARMONICS = (0, 3, 8, 15, 24)  # coefficients per channel above the constant one, by degree


def pack_spz(table: np.ndarray) -> bytes:
    """Rows [N, 17] in the column order of the splat PLY as an SPZ file.

    Positions keep 24 bits, as many of them behind the point as the largest coordinate allows (2 um for an object of
    10 m); log scales step by 1/16, colours by 1/38 of a harmonic coefficient (0.7 % of the range), opacities by 1/255.
    """
    table = np.asarray(table, dtype=np.float64)
    count = len(table)
    if count > MAX_GAUSSIANS:
        raise InputError(f"An SPZ file holds at most {MAX_GAUSSIANS} Gaussians, but {count} came.")
    reach = max(float(np.abs(table[:, :3]).max(initial=0)), 2.0**-8)
    bits = min(23 - math.ceil(math.log2(reach * (1 + 1e-6))), 24)
    if bits < 0:
        raise InputError(f"A Gaussian lies {reach:.3g} m from the origin, too far for an SPZ file.")
    fixed = np.rint(table[:, :3] * 2**bits).astype(np.int64).clip(-(2**23), 2**23 - 1).astype("<i4")
    body = [
        np.ascontiguousarray(fixed).view(np.uint8).reshape(count, 3, 4)[:, :, :3],
        _byte(255 / (1 + np.exp(-table[:, 9]))),
        _byte(table[:, 6:9] * (_COLOR_SCALE * 255) + 127.5),
        _byte((table[:, 10:13] + 10) * 16),
        _pack_quaternions(table[:, 13:17]),
    ]
    content = _HEADER.pack(_MAGIC, 3, count, 0, bits, 0, 0) + b"".join(part.tobytes() for part in body)
    compressor = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)  # 16: gzip framing, without a time stamp
    return compressor.compress(content) + compressor.flush()


def unpack_spz(content: bytes) -> np.ndarray:
    """Rows [N, 17] float32 in the column order of the splat PLY; view-dependent colour is dropped.

    Raises:
        InputError: anything but a complete SPZ file of version 2 or 3 and of a size that an asset can have.
    """
    head = _inflate(content, _HEADER.size)
    if len(head) < _HEADER.size:
        raise InputError("This is not an SPZ file: it is not a gzip stream with an SPZ header.")
    magic, version, count, degree, bits, _, _ = _HEADER.unpack(head)
    if magic != _MAGIC or version not in (2, 3) or degree >= len(_HARMONICS):
        raise InputError("This is not an SPZ file of version 2 or 3.")
    if count > MAX_GAUSSIANS:
        raise InputError(f"This SPZ file announces {count} Gaussians; at most {MAX_GAUSSIANS} are read.")
    widths = (9, 1, 3, 3, 3 if version == 2 else 4, 3 * _HARMONICS[degree])
    expected = _HEADER.size + count * sum(widths)
    data = _inflate(content, expected)
    if len(data) < expected:
        raise InputError(f"This SPZ file announces {count} Gaussians but is cut short; export or copy it again.")
    parts, stream = [], io.BytesIO(data[_HEADER.size :])
    for width in widths:
        parts.append(np.frombuffer(stream.read(count * width), np.uint8).reshape(count, width).astype(np.int64))
    positions, alphas, colors, scales, quats, _ = parts
    table = np.zeros((count, 17))
    place = positions.reshape(count, 3, 3) @ np.array([1, 2**8, 2**16])
    table[:, :3] = np.where(place >= 2**23, place - 2**24, place) / 2.0**bits
    opacity = (alphas / 255).clip(1 / 510, 1 - 1 / 510)
    table[:, 9:10] = np.log(opacity / (1 - opacity))
    table[:, 6:9] = (colors / 255 - 0.5) / _COLOR_SCALE
    table[:, 10:13] = scales / 16 - 10
    table[:, 13:17] = _unpack_xyz(quats) if version == 2 else _unpack_quaternions(quats)
    return table.astype(np.float32)


def _byte(values: np.ndarray) -> np.ndarray:
    return np.rint(values).clip(0, 255).astype(np.uint8)


def _inflate(content: bytes, limit: int) -> bytes:
    """The first `limit` bytes of a gzip stream, or fewer; never more, however much a hostile file would expand to."""
    try:
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(content, limit)
    except zlib.error as error:
        raise InputError("This is not an SPZ file: its gzip stream is damaged.") from error


def _pack_quaternions(quats: np.ndarray) -> np.ndarray:
    """[N, 4] w first, any length -> [N] uint32: index of the largest component, then the others, x y z w order."""
    xyzw = quats[:, [1, 2, 3, 0]] / np.linalg.norm(quats, axis=1, keepdims=True)
    rows = np.arange(len(xyzw))
    largest = np.abs(xyzw).argmax(axis=1)
    xyzw = np.where(xyzw[rows, largest] < 0, -1, 1)[:, None] * xyzw  # -q is the same rotation
    magnitude = np.rint(np.abs(xyzw) * (_LARGEST_MAGNITUDE * math.sqrt(2))).clip(0, _LARGEST_MAGNITUDE).astype(np.int64)
    code = magnitude | ((xyzw < 0).astype(np.int64) << 9)
    packed = largest.astype(np.int64)
    for component in range(4):
        packed = np.where(largest == component, packed, packed << 10 | code[:, component])
    return packed.astype("<u4")


def _unpack_quaternions(packed: np.ndarray) -> np.ndarray:
    """[N, 4] bytes -> [N, 4] unit, w first."""
    remaining = packed @ np.array([1, 2**8, 2**16, 2**24])
    largest = remaining >> 30
    xyzw = np.zeros((len(packed), 4))
    for component in (3, 2, 1, 0):
        stored = largest != component
        value = (remaining & _LARGEST_MAGNITUDE) / (_LARGEST_MAGNITUDE * math.sqrt(2))
        xyzw[:, component] = np.where(stored, np.where(remaining >> 9 & 1, -value, value), 0)
        remaining = np.where(stored, remaining >> 10, remaining)
    rest = np.sqrt(np.maximum(1 - np.square(xyzw).sum(axis=1), 0))
    xyzw[np.arange(len(xyzw)), largest] = rest
    return xyzw[:, [3, 0, 1, 2]]


def _unpack_xyz(packed: np.ndarray) -> np.ndarray:
    """Version 2: three bytes x, y, z; w is positive. [N, 4] unit, w first."""
    xyz = packed / 127.5 - 1
    w = np.sqrt(np.maximum(1 - np.square(xyz).sum(axis=1, keepdims=True), 0))
    return np.concatenate([w, xyz], axis=1)
