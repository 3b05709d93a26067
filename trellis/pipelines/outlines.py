"""How well a sampled structure fits the outlines of the views.

Samples of one object differ a good deal, and views tell which of them is best: of several, the one whose silhouettes
agree with the photographs' masks has the better shape on average (figures: training/LOG.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trellis.pipelines.image_files import OPAQUE
from trellis.renderers import mesh_raster
from trellis.renderers.cameras import Cameras

_SIDE = 64  # cells a side that an outline is looked at in
_SPACING = 64  # points a side of the unit cube that stand for voxels: less than a cell apart, so outlines have no holes
_CLEARLY = 0.02  # by which the silhouettes of another sample must agree better than those of the usual one
_ROUNDS = 4  # of centring; each halves what perspective leaves over, or better


@dataclass(frozen=True, eq=False)
class Outline:
    """What one view shows of the object.

    camera: N = 1, in the object frame. mask: [S, S] bool, the cells of the picture that the object mostly covers. box:
    [3], middle (x, y) and longer side of the box around it, in parts of the picture's side.
    """

    camera: Cameras
    mask: Tensor
    box: Tensor


class Outlines:
    """The outlines of views, and about where the views were taken from.

    Args:
        images: prepared views, RGBA; one without alpha, or in which nothing is opaque, has no say.
        cameras: one for each, in the object frame.
    """

    def __init__(self, images: Sequence[Image.Image], cameras: Cameras) -> None:
        self.views: list[Outline] = []
        for index, image in enumerate(images):
            alpha = image.convert("RGBA").getchannel("A")
            low, high = alpha.getextrema()
            if low <= OPAQUE < high:
                mask = _is_object(alpha.resize((_SIDE, _SIDE), Image.Resampling.BOX))
                self.views.append(Outline(cameras[index].to("cpu"), mask, _box(_is_object(alpha))))

    def agreement(self, coords: Tensor, resolution: int) -> float:
        """Mean intersection over union of the structure's silhouettes and the masks, in [0, 1].

        Estimated cameras show the object a little too large or beside its place, which says nothing of its shape. So
        every camera is first moved, without being turned, until the boxes around both silhouettes coincide.

        Args:
            coords: occupied voxels, int [M, 4] (0, x, y, z) of a cube of `resolution` voxels a side.
        """
        if not self.views or len(coords) == 0:
            return 0.0
        points = _points(coords[:, 1:].cpu(), resolution)
        total = 0.0
        for view in self.views:
            seen = torch.zeros(_SIDE, _SIDE, dtype=torch.bool)
            places = _centred(points, view.camera, view.box).nan_to_num(-1.0).clamp(-1, 2)
            cells = (places * _SIDE).floor().long()
            inside = ((cells >= 0) & (cells < _SIDE)).all(dim=1)
            seen[cells[inside, 1], cells[inside, 0]] = True
            total += float((seen & view.mask).sum() / (seen | view.mask).sum())
        return total / len(self.views)


def best_fitting(samples: Iterator[Tensor], outlines: Outlines | None, resolution: int) -> Tensor:
    """Of samples [M, 4] the one that agrees best, if clearly better than the first; without outlines the first."""
    best = next(samples)
    if outlines is None or (following := next(samples, None)) is None:
        return best
    score = outlines.agreement(best, resolution) + _CLEARLY
    for coords in chain([following], samples):
        its_score = outlines.agreement(coords, resolution)
        if its_score > score:
            best, score = coords, its_score
    return best


def _points(voxels: Tensor, resolution: int) -> Tensor:
    """Points [P, 3] in the object frame, spread evenly over voxels [M, 3]."""
    side = max(1, _SPACING // resolution)
    axis = (torch.arange(side) + 0.5) / side
    within = torch.cartesian_prod(axis, axis, axis)
    return ((voxels[:, None] + within) / resolution - 0.5).reshape(-1, 3)


def _is_object(alpha: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(alpha) > OPAQUE)


def _box(mask: Tensor) -> Tensor:
    rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
    low = torch.stack([columns[0, 0], rows[0, 0]]) / len(mask)
    high = (torch.stack([columns[-1, 0], rows[-1, 0]]) + 1) / len(mask)
    return torch.cat([(low + high) / 2, (high - low).max()[None]])


def _centred(points: Tensor, camera: Cameras, box: Tensor) -> Tensor:
    """Where a camera sees points [P, 3], in parts of its picture [P, 2], once it has been moved so that the box around
    them is the given one. A camera that looks elsewhere may see them anywhere, and a place may be no number."""
    extrinsics, lens = camera.extrinsics[0].float().clone(), camera.normalised_intrinsics[0].float()
    for _ in range(_ROUNDS):
        place = mesh_raster.project(points, extrinsics, lens)[:, :2]
        low, high = place.amin(0), place.amax(0)
        farther = (high - low).max() / box[2]
        shift = (box[:2] - (low + high) / 2) / lens[[0, 1], [0, 1]] * extrinsics[2, 3]
        extrinsics[:2, 3] += shift
        extrinsics[:3, 3] *= farther
    return mesh_raster.project(points, extrinsics, lens)[:, :2]
