"""How far the place of each camera can be trusted before anything has been reconstructed.

The measure is silhouette consistency: where the outlines of the other views leave room for the object (their visual
hull, Laurentini 1994), a view's own outline must be filled by it. A camera in a wrong place looks past the hull.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from trellis.pipelines.image_files import OPAQUE
from trellis.renderers import mesh_raster
from trellis.renderers.cameras import Cameras

_GRID = 44  # points a side of the unit cube
_SIDE = 22  # cells a side that a view is looked at in: two points fall into one, so a hull has no holes
_TOLERATED = 0.25  # share of the other views that may contradict a point of the hull: some may be wrong themselves


def trust_in_cameras(cameras: Cameras, images: Sequence[Image.Image]) -> list[float | None]:
    """The share of each view's outline that the other views explain, in [0, 1].

    Args:
        cameras: in the object frame, the object within [-0.5, 0.5]^3.
        images: the prepared views, RGBA.

    Returns:
        None for every view where there are fewer than three: two outlines hardly ever contradict each other.
    """
    count = len(images)
    if count < 3:
        return [None] * count
    axis = (torch.arange(_GRID) + 0.5) / _GRID - 0.5
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
    masks, cells, inside = [], [], []
    for index, image in enumerate(images):
        alpha = np.asarray(image.convert("RGBA").getchannel("A").resize((_SIDE, _SIDE), Image.Resampling.BOX))
        height, width = cameras.height_width(index)
        place = mesh_raster.project(points, cameras.extrinsics[index], cameras.intrinsics[index]).numpy()
        column = np.floor(place[:, 0] * _SIDE / width).clip(-1, _SIDE).astype(np.int64)
        row = np.floor(place[:, 1] * _SIDE / height).clip(-1, _SIDE).astype(np.int64)
        seen = (place[:, 2] > 0) & (column >= 0) & (column < _SIDE) & (row >= 0) & (row < _SIDE)
        cell = np.where(seen, row * _SIDE + column, -1)
        masks.append((alpha > OPAQUE).ravel())
        cells.append(cell)
        # Points of the object may fall into cells that it covers only in part, too.
        inside.append(seen & (alpha > 0).ravel()[np.maximum(cell, 0)])
    votes = np.sum(inside, axis=0)
    needed = (count - 1) - int(_TOLERATED * (count - 1))
    trusts: list[float | None] = []
    for mask, cell, own in zip(masks, cells, inside, strict=True):
        hull = (votes - own >= needed) & (cell >= 0)
        explained = np.zeros(_SIDE * _SIDE, dtype=bool)
        explained[cell[hull]] = True
        trusts.append(round(float((mask & explained).sum() / mask.sum()), 3) if mask.any() else 0.0)
    return trusts
