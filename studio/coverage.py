"""Which part of the surface the photographs show, and which part the networks made up.

observed   at least one view looks at the point, unoccluded, from less than 75 degrees off its normal
inferred   no view does, but one sees it at a flatter angle, or an observed point lies close by and faces the same way
invented   the rest: nothing in the photographs speaks for or against it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree

from studio.stages import PreparedView
from trellis.export.gltf import TexturedMesh
from trellis.export.texels import Texels, paint, texels_of
from trellis.export.unlit import interpolated, looked_up
from trellis.export.unwrap import Atlas
from trellis.pipelines.image_files import OPAQUE
from trellis.renderers import mesh_raster
from trellis.renderers.cameras import Cameras, turntable

INVENTED, INFERRED, OBSERVED = 0, 1, 2
COLORS = {"observed": (15, 118, 110), "inferred": (234, 179, 8), "invented": (190, 60, 50)}
_PALETTE = np.array([COLORS["invented"], COLORS["inferred"], COLORS["observed"]], dtype=np.float32)

_MIN_COSINE = 0.26  # 75 degrees
_DEPTH_TOLERANCE = 0.01  # of the object's size; a texel this little behind what the camera sees is what it sees
_REACH = 0.05  # of the object's size
_SAME_WAY = 0.5  # cosine between normals: 60 degrees
_MAX_POINTS = 40_000  # observed texels looked up; more would cost seconds and change nothing
_SHADE = 0.45  # how much a surface seen edge-on darkens in the turntable


@dataclass(frozen=True, eq=False)
class Coverage:
    """Per texel of the asset's texture.

    Attributes:
        classes: [S, S] uint8, INVENTED, INFERRED or OBSERVED; gutters continue their chart.
        seen_by: [S, S] uint32, bit k set where view k observes the surface.
        shares: of the covered texels, by "observed", "inferred" and "invented"; they add up to 1.
        by_view: share of the covered texels that each view observes.
    """

    classes: np.ndarray
    seen_by: np.ndarray
    shares: dict[str, float]
    by_view: list[float]

    @property
    def picture(self) -> np.ndarray:
        """The classes in colour, [S, S, 3] uint8."""
        return _PALETTE[self.classes].astype(np.uint8)


def measure(asset: TexturedMesh, cameras: Cameras, views: Sequence[PreparedView]) -> Coverage:
    """Classify every texel of an asset by the views' cameras, which must be in the object frame."""
    atlas = Atlas(asset.vertices, asset.faces, asset.uvs, asset.normals)
    texels = texels_of(atlas, len(asset.texture))
    size = float(np.linalg.norm(np.ptp(asset.vertices, axis=0)))
    seen_by = np.zeros(len(texels), dtype=np.uint32)
    glanced = np.zeros(len(texels), dtype=bool)
    for index, view in enumerate(views):
        visible, cosine = _visible(asset, texels, cameras, index, view, _DEPTH_TOLERANCE * size)
        seen_by |= np.where(visible & (cosine >= _MIN_COSINE), np.uint32(1) << np.uint32(index), np.uint32(0))
        glanced |= visible & (cosine > 0)
    classes = np.where(seen_by > 0, OBSERVED, np.where(glanced, INFERRED, INVENTED)).astype(np.uint8)
    classes[_near_observed(texels, classes, _REACH * size)] = INFERRED
    shares = {
        name: round(float(np.mean(classes == value)), 4)
        for name, value in (("observed", OBSERVED), ("inferred", INFERRED), ("invented", INVENTED))
    }
    by_view = [round(float(np.mean(seen_by >> np.uint32(k) & 1)), 4) for k in range(len(views))]
    bits = np.zeros((texels.size, texels.size), dtype=np.uint32)
    bits[texels.rows, texels.columns] = seen_by
    return Coverage(paint(texels, classes[:, None])[..., 0].astype(np.uint8), bits, shares, by_view)


def turntable_frames(asset: TexturedMesh, coverage: Coverage, frames: int, size: int) -> list[np.ndarray]:
    """The coloured classes as a turntable, a little shaded: `frames` images [size, size, 3] uint8."""
    cameras = turntable(frames, size=size)
    picture = coverage.picture
    attributes = np.concatenate([asset.uvs, asset.normals], axis=1)
    images = []
    for k in range(frames):
        seen, mask = interpolated(asset, attributes, cameras, k)
        color = looked_up(picture, seen[..., :2]) * mask[..., None]
        cosine = np.abs(seen[..., 2:] @ cameras.directions[k].numpy())
        shade = 1 - _SHADE * (1 - cosine.clip(0, 1))
        image = color * shade[..., None] + 0.93 * (1 - mask[..., None])
        images.append((image * 255 + 0.5).clip(0, 255).astype(np.uint8))
    return images


def _visible(
    asset: TexturedMesh, texels: Texels, cameras: Cameras, index: int, view: PreparedView, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Whether a view shows each texel [T], and the cosine between its normal and the way to the camera [T]."""
    height, width = cameras.height_width(index)
    extrinsics, intrinsics = cameras.extrinsics[index], cameras.intrinsics[index]
    with torch.no_grad():
        screen = mesh_raster.project(torch.from_numpy(asset.vertices), extrinsics, intrinsics)
        depth = mesh_raster.rasterize(screen, torch.from_numpy(asset.faces), height, width).depth.numpy()
        places = mesh_raster.project(torch.from_numpy(texels.positions), extrinsics, intrinsics).numpy()
    column, row = (np.floor(places[:, k]).clip(-1, limit).astype(np.int64) for k, limit in ((0, width), (1, height)))
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (places[:, 2] > 0)
    column, row = column.clip(0, width - 1), row.clip(0, height - 1)
    seen = depth[row, column]
    alpha = np.asarray(view.image.convert("RGBA").getchannel("A").resize((width, height)))
    visible = inside & (seen > 0) & (places[:, 2] <= seen + tolerance) & (alpha[row, column] > OPAQUE)
    to_camera = cameras.centers[index].numpy() - texels.positions
    to_camera /= np.maximum(np.linalg.norm(to_camera, axis=1, keepdims=True), 1e-12)
    return visible, np.einsum("tk,tk->t", to_camera, texels.normals)


def _near_observed(texels: Texels, classes: np.ndarray, reach: float) -> np.ndarray:
    """Indices of invented texels that lie within `reach` of an observed one and face the same way."""
    observed, invented = np.flatnonzero(classes == OBSERVED), np.flatnonzero(classes == INVENTED)
    if not len(observed) or not len(invented):
        return invented[:0]
    observed = observed[:: -(-len(observed) // _MAX_POINTS)]
    distance, nearest = cKDTree(texels.positions[observed]).query(
        texels.positions[invented], distance_upper_bound=reach
    )
    found = np.isfinite(distance)
    nearest = observed[np.where(found, nearest, 0)]
    same_way = np.einsum("tk,tk->t", texels.normals[invented], texels.normals[nearest]) > _SAME_WAY
    return invented[found & same_way]
