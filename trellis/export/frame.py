"""The one frame of every exported file: glTF's (right-handed, y up, -z forward), in metres.

Inside the library the object frame is z up and unitless. Leaving it is a quarter turn about x and, when somebody has
measured the object, a factor from object units to metres that is the same for meshes, splats and cameras.
"""

from __future__ import annotations

import math

import numpy as np

from trellis.errors import InputError
from trellis.renderers.cameras import Cameras

MIN_METRES, MAX_METRES = 1e-4, 1e4


def to_gltf_frame(vectors: np.ndarray) -> np.ndarray:
    """Points or directions [..., 3] from the object frame (z up) to glTF's (y up): (x, y, z) -> (x, z, -y)."""
    x, y, z = np.moveaxis(np.asarray(vectors), -1, 0)
    return np.stack([x, z, -y], axis=-1)


def from_gltf_frame(vectors: np.ndarray) -> np.ndarray:
    """The inverse of `to_gltf_frame`: (x, y, z) -> (x, -z, y)."""
    x, y, z = np.moveaxis(np.asarray(vectors), -1, 0)
    return np.stack([x, -z, y], axis=-1)


def metres_per_unit(vertices: np.ndarray, longest_side: float | None) -> float:
    """The factor that makes the longest side of the bounding box of `vertices` [V, 3] that many metres; None gives 1.

    Raises:
        InputError: the length is not between a tenth of a millimetre and ten kilometres.
    """
    if longest_side is None:
        return 1.0
    if not (math.isfinite(longest_side) and MIN_METRES <= longest_side <= MAX_METRES):
        raise InputError(
            f"The longest side of the object must be between {MIN_METRES} and {MAX_METRES:.0f} metres, "
            f"but is {longest_side}."
        )
    extent = float(np.ptp(np.asarray(vertices, dtype=np.float64), axis=0).max())
    if not extent > 0:
        raise InputError("An object without extent cannot be given a length.")
    return longest_side / extent


def scaled_cameras(cameras: Cameras, scale: float) -> Cameras:
    """The same views of a world that is `scale` times as large (every point p becomes scale * p)."""
    extrinsics = cameras.extrinsics.clone()
    extrinsics[:, :3, 3] *= scale
    return Cameras(extrinsics, cameras.intrinsics, cameras.image_size)
