"""Colours for an atlas from pictures of the object, by inverse projection.

Every texel is projected into every picture. Where the surface itself is what that picture shows there (depth test), the
picture's colour counts with the fourth power of the cosine between surface normal and line of sight, so that frontal
views decide and grazing ones, where splats and mesh disagree most, hardly matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from scipy.spatial import cKDTree

from trellis import backends
from trellis.export.solve import TextureSystem
from trellis.export.texels import SurfacePoints, Texels
from trellis.export.trust import judge
from trellis.export.unwrap import Atlas
from trellis.export.views import Looker, View
from trellis.renderers.cameras import Cameras
from trellis.renderers.numba_runtime import exclusive, kernel, prange

_MIN_COSINE = 0.1  # flatter than 84 degrees, a pixel's footprint is ten pixels long
DEPTH_TOLERANCE = 0.015  # of the object's radius; about five pixels of depth at 45 degrees in a 512-pixel view
_NORMAL_WEIGHT = 0.3  # of the object's radius per unit: keeps the two sides of a thin plate apart when filling
_POORLY_SHOWN = 0.05  # of the usual weight: only gaps and grazing views; a well shown neighbour knows better
_REACH = 0.02  # of the object's radius: how far such a neighbour may be
_MAX_SOURCES = 100_000  # texels to take colours from; dense enough, and the search tree stays cheap
_NEUTRAL = 0.7  # grey for an object that no picture shows


def bake_views(
    atlas: Atlas,
    texels: Texels,
    cameras: Cameras,
    views: Iterable[View],
    on_view: Callable[[int], None] | None = None,
    system: TextureSystem | None = None,
    device: torch.device | str = "cpu",
) -> tuple[np.ndarray, float]:
    """Blend the pictures into texel colours.

    Args:
        atlas: the surface, which occludes itself.
        texels: of the atlas.
        cameras: one per picture, of the pictures' size.
        views: pictures of the object in the order of the cameras; consumed one at a time.
        on_view: called with the number of pictures done; may raise to stop.
        system: also takes in every picture.
        device: where the pictures are compared with the surface.

    Returns:
        [T, 3] float32 sRGB in [0, 1], and the fraction of texels that some picture shows. Hidden texels take the
        colour of the nearest shown ones on the surface.
    """
    device = backends.place("mesh_rasterisation", device)
    looker, cameras = Looker(atlas.surface, device), cameras.to(device)
    radius = atlas.surface.bounding_sphere()[1]
    seen, centers = SeenColors(texels, device), cameras.centers
    normals = torch.from_numpy(atlas.surface.face_normals()).to(device)
    for k, view in enumerate(views):
        view, hit = view.to(device), looker.look(cameras, k)
        trusted, depth = judge(view, hit, normals, radius)
        seen.add(cameras, k, view.color, trusted, depth, DEPTH_TOLERANCE * max(radius, 1e-6))
        if system is not None:
            system.add(view.color, trusted, hit, centers[k])
        if on_view is not None:
            on_view(k + 1)
    sums, weights = seen.sums.cpu().numpy(), seen.weights.cpu().numpy()
    shown = weights > 0
    colors = sums / np.maximum(weights, 1e-12)[:, None]
    colors = fill_hidden(texels, colors, shown, radius)
    if shown.any():
        poorly = weights < _POORLY_SHOWN * np.median(weights[shown])
        colors = fill_hidden(texels, colors, ~poorly, radius, reach=_REACH * radius)
    return colors, float(shown.mean()) if len(texels) else 0.0


class SeenColors:
    """What pictures show at some points, added up on a device.

    Attributes:
        sums: [T, 3] float32, weighted colours.
        weights: [T] float32.
    """

    def __init__(self, points: SurfacePoints, device: torch.device | str = "cpu") -> None:
        self._positions = torch.from_numpy(points.positions).to(device)
        self._normals = torch.from_numpy(points.normals).to(device)
        self.sums = torch.zeros_like(self._positions)
        self.weights = self.sums.new_zeros(len(points))

    def add(
        self,
        cameras: Cameras,
        index: int,
        color: torch.Tensor,
        trusted: torch.Tensor,
        depth: torch.Tensor,
        tolerance: float,
    ) -> None:
        """Project the points into one picture and add up what they see there.

        Args:
            cameras, index: the picture was taken by `cameras[index]`.
            color: [H, W, 3] float32.
            trusted: [H, W] float32 in [0, 1].
            depth: [H, W] float32 of the surface, infinite where empty.
            tolerance: how far a point may lie from that depth and still be what the picture shows, on top of what the
                slant of the surface makes of a pixel.
            All tensors on the device of the sums.
        """
        lens = cameras.extrinsics[index], cameras.intrinsics[index], cameras.centers[index]
        tensors = self._positions, self._normals, *lens, color.contiguous(), trusted, depth
        if self.sums.device.type != "cpu":
            gather_in_torch(*tensors, tolerance, self.sums, self.weights)
            return
        with exclusive():
            _gather(*(t.numpy() for t in tensors), np.float32(tolerance), self.sums.numpy(), self.weights.numpy())


def gather_in_torch(
    positions: torch.Tensor,
    normals: torch.Tensor,
    extrinsics: torch.Tensor,
    intrinsics: torch.Tensor,
    center: torch.Tensor,
    color: torch.Tensor,
    trusted: torch.Tensor,
    depth: torch.Tensor,
    tolerance: float,
    sums: torch.Tensor,
    weights: torch.Tensor,
) -> None:
    """`SeenColors.add` on any device, without waiting for it: adds to `sums` [T, 3] and `weights` [T]."""
    height, width = depth.shape
    to_camera = center - positions
    cosine = (to_camera * normals).sum(1) / to_camera.norm(dim=1)
    # Written out: a matrix product may run in reduced precision.
    local = (extrinsics[:3, :3] * positions[:, None, :]).sum(2) + extrinsics[:3, 3]
    depth_here = local[:, 2]
    place = local[:, :2] / depth_here[:, None]
    column = intrinsics[0, 0] * place[:, 0] + intrinsics[0, 2] - 0.5
    row = intrinsics[1, 1] * place[:, 1] + intrinsics[1, 2] - 0.5
    left, top = column.floor(), row.floor()
    shown = (cosine > _MIN_COSINE) & (depth_here > 0)
    shown &= (left >= 0) & (top >= 0) & (left + 1 < width) & (top + 1 < height)
    right_share, low_share = column - left, row - top
    slope = (1 - cosine * cosine).clamp_min(0).sqrt() / cosine
    allowed = tolerance + 1.5 * slope * depth_here / intrinsics[0, 0]
    corner = torch.where(shown, top * width + left, 0).long()
    layers = torch.cat([color.reshape(-1, 3), trusted.reshape(-1, 1), depth.reshape(-1, 1)], dim=1)
    total, mixed = torch.zeros_like(weights), torch.zeros_like(sums)
    for dy in range(2):
        for dx in range(2):
            found = layers[corner + (dy * width + dx)]
            shown &= (found[:, 4] - depth_here).abs() <= allowed
            share = (right_share if dx else 1 - right_share) * (low_share if dy else 1 - low_share) * found[:, 3]
            total += share
            mixed += share[:, None] * found[:, :3]
    weight = torch.where(shown, cosine**4, 0)
    # Where nothing is shown the shares may be anything, also not a number.
    sums += torch.where(shown[:, None], weight[:, None] * mixed, 0)
    weights += torch.where(shown, weight * total, 0)


def fill_hidden(
    texels: Texels, colors: np.ndarray, shown: np.ndarray, radius: float, reach: float = np.inf
) -> np.ndarray:
    """Colours [T, 3] with those of texels not `shown` [T] blended from the four nearest shown ones in space.

    Only shown ones within `reach` count; texels without any keep their colour. `radius` is that of the object.
    """
    if shown.all():
        return colors
    if not shown.any():
        return np.full_like(colors, _NEUTRAL)
    places = np.concatenate([texels.positions, _NORMAL_WEIGHT * radius * texels.normals], axis=1)
    known, wanted = np.flatnonzero(shown), np.flatnonzero(~shown)
    known = known[:: max(1, len(known) // _MAX_SOURCES)]
    # Cells of equal size suit points on a surface: such a tree answers in a third of a balanced one's time.
    tree = cKDTree(places[known], balanced_tree=False, compact_nodes=False)
    distances, nearest = tree.query(places[wanted], k=[1, 2, 3, 4], distance_upper_bound=reach, workers=-1)
    close = np.isfinite(distances[:, 0])
    found = np.isfinite(distances[close])  # there may be fewer than four
    weights = found / np.maximum(distances[close], 1e-6)
    weights /= weights.sum(axis=1, keepdims=True)
    filled = colors.copy()
    filled[wanted[close]] = np.einsum("tk,tkc->tc", weights, colors[known[np.where(found, nearest[close], 0)]])
    return filled


@kernel(parallel=True)
def _gather(positions, normals, extrinsics, intrinsics, center, color, trusted, depth, tolerance, sums, weights):
    """Add one picture's weighted colours to `sums` [T, 3] and its weights to `weights` [T]."""
    height, width = depth.shape
    for i in prange(positions.shape[0]):
        x, y, z = positions[i, 0], positions[i, 1], positions[i, 2]
        to_x, to_y, to_z = center[0] - x, center[1] - y, center[2] - z
        length = np.sqrt(to_x * to_x + to_y * to_y + to_z * to_z)
        cosine = (to_x * normals[i, 0] + to_y * normals[i, 1] + to_z * normals[i, 2]) / length
        if not cosine > _MIN_COSINE:
            continue
        e = extrinsics
        depth_here = e[2, 0] * x + e[2, 1] * y + e[2, 2] * z + e[2, 3]
        if depth_here <= 0:
            continue
        camera_x = e[0, 0] * x + e[0, 1] * y + e[0, 2] * z + e[0, 3]
        camera_y = e[1, 0] * x + e[1, 1] * y + e[1, 2] * z + e[1, 3]
        # Pixel centres lie at half integers; from here on (column, row) counts centres.
        column = intrinsics[0, 0] * camera_x / depth_here + intrinsics[0, 2] - 0.5
        row = intrinsics[1, 1] * camera_y / depth_here + intrinsics[1, 2] - 0.5
        left, top = int(np.floor(column)), int(np.floor(row))
        if left < 0 or top < 0 or left + 1 >= width or top + 1 >= height:
            continue
        right_share, low_share = column - left, row - top
        # On slanted surfaces depth changes from pixel to pixel.
        slope = np.sqrt(max(1 - cosine * cosine, 0.0)) / cosine
        allowed = tolerance + 1.5 * slope * depth_here / intrinsics[0, 0]
        total = red = green = blue = np.float32(0)
        shown = True
        for dy in range(2):
            for dx in range(2):
                r, c = top + dy, left + dx
                # Nearer: something stands in between. Farther: the picture shows past the rim there.
                if not abs(depth[r, c] - depth_here) <= allowed:
                    shown = False
                share = (right_share if dx else 1 - right_share) * (low_share if dy else 1 - low_share) * trusted[r, c]
                total += share
                red += share * color[r, c, 0]
                green += share * color[r, c, 1]
                blue += share * color[r, c, 2]
        if not shown or total == 0:
            continue
        squared = cosine * cosine
        weight = squared * squared
        sums[i, 0] += weight * red
        sums[i, 1] += weight * green
        sums[i, 2] += weight * blue
        weights[i] += weight * total
