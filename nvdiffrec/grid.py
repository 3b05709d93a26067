"""A shape whose topology can change: signed distances on a FlexiCubes grid (Shen et al. 2023), with colours.

The grid starts as the visual hull of the silhouettes, or as the signed distance of a given mesh.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, grid_sample

from nvdiffrec.views import Views
from trellis.errors import InputError
from trellis.renderers.cameras import Cameras
from trellis.renderers.mesh_raster import project, rasterize
from trellis.representations.flexicubes import build_topology, extract_surface, map_weights
from trellis.representations.flexicubes.surface import Surface

_HULL_MARGIN = 0.08  # of the box, on every side of what was found
_SEARCH_CELLS = 48
_SIGN_SHARPNESS = 100.0  # of the sign-change entropy, in 1 / units of the grid


@dataclass(frozen=True)
class Placement:
    """The cube that a grid covers: centre (3 numbers) and side, in the world of the cameras."""

    center: tuple[float, float, float]
    side: float

    def to_unit(self, cameras: Cameras) -> Cameras:
        """The same cameras around the cube brought to [-0.5, 0.5]^3."""
        extrinsics = cameras.extrinsics.clone()
        center = extrinsics.new_tensor(self.center)
        extrinsics[:, :3, 3] = (cameras.rotations @ center + cameras.translations) / self.side
        return Cameras(extrinsics, cameras.intrinsics, cameras.image_size)

    def to_world(self, points: Tensor) -> Tensor:
        """Points [V, 3] of the unit cube in the world."""
        return points * self.side + points.new_tensor(self.center)

    def cameras_to_world(self, cameras: Cameras) -> Cameras:
        """The inverse of `to_unit`."""
        extrinsics = cameras.extrinsics.clone()
        center = extrinsics.new_tensor(self.center)
        extrinsics[:, :3, 3] = cameras.translations * self.side - cameras.rotations @ center
        return Cameras(extrinsics, cameras.intrinsics, cameras.image_size)


def locate(views: Views) -> Placement:
    """The cube around the visual hull, found by carving ever tighter boxes around where the cameras look.

    Raises:
        InputError: the silhouettes have nothing in common, so that masks or cameras must be wrong.
    """
    cameras = views.cameras
    center = _nearest_point(cameras.centers.double(), cameras.directions.double())
    side = 2 * float((cameras.centers - center.float()).norm(dim=1).max())
    for _ in range(6):
        occupied = _carve(views, _lattice(center, side, _SEARCH_CELLS))
        if not bool(occupied.any()):
            # Small in a coarse grid, or nothing at all: look once more, closely, before giving up.
            occupied = _carve(views, _lattice(center, side, 3 * _SEARCH_CELLS))
        if not bool(occupied.any()):
            raise InputError(
                "The silhouettes have no volume in common: a camera or a mask contradicts the others. "
                "Check that the cameras belong to these images and that the masks show the object in white."
            )
        cells = len(occupied)
        places = occupied.nonzero().double()
        low, high = places.amin(0) - 1, places.amax(0) + 2
        found = float((high - low).max()) / cells * side
        center = center + ((low + high) / 2 / cells - 0.5) * side
        smaller = found * (1 + 2 * _HULL_MARGIN)
        if smaller > 0.9 * side:
            break
        side = smaller
    return Placement(tuple(center.tolist()), side)


def around(vertices: Tensor) -> Placement:
    """The cube around the points [V, 3], with room to grow."""
    low, high = vertices.amin(0), vertices.amax(0)
    side = float((high - low).max()) * (1 + 2 * _HULL_MARGIN)
    return Placement(tuple(((low + high) / 2).tolist()), side)


def hull_distance(views: Views, cells: int) -> Tensor:
    """Signed distance [cells + 1]^3 to the visual hull in [-0.5, 0.5]^3, negative inside; units of the cube.

    Raises:
        InputError: no corner of the grid lies inside all silhouettes.
    """
    axis = torch.linspace(-0.5, 0.5, cells + 1)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    inside = _carve(views, points)
    if not bool(inside.any()):
        raise InputError("The silhouettes have no volume in common at this resolution; check cameras and masks.")
    return _distance_of(inside) / cells


def mesh_distance(vertices: Tensor, faces: Tensor, cells: int) -> Tensor:
    """Signed distance [cells + 1]^3 to a mesh in [-0.5, 0.5]^3, negative inside; units of the cube.

    Inside is what no ray along any axis reaches from outside (a vote of three, so that small holes do not let it leak);
    the distance is that to the boundary of the voxels, good to a fraction of a cell, which is all a start needs.
    """
    if not bool(torch.isfinite(vertices).all()):
        raise InputError("The mesh has vertices that are not finite.")
    votes = torch.zeros(cells + 1, cells + 1, cells + 1, dtype=torch.int8)
    for axis in range(3):
        votes += _between(vertices.roll(-axis, dims=1), faces, cells).permute(*_unrolled(axis)).to(torch.int8)
    inside = votes >= 2
    if not bool(inside.any()):
        raise InputError("The mesh encloses no volume at this resolution, so no grid can be started from it.")
    return _distance_of(inside) / cells


class FlexiGrid:
    """Signed distance, deformation and colour on a grid over [-0.5, 0.5]^3, and optionally FlexiCubes' weights.

    Attributes:
        cells: R, per side.
        parameters: tensors that require gradients: "sdf" [R+1, R+1, R+1]; "deform" [.., 3] raw, tanh gives up to half a
            cell; "color" [.., 3] raw, the sigmoid is linear light; with `flexible`, "weights" [R, R, R, 21] raw.

    The weights let dual vertices slide into corners, and triple the time of a step; without them they are neutral.
    """

    def __init__(self, sdf: Tensor, flexible: bool = False) -> None:
        self.cells = len(sdf) - 1
        shapes = {"deform": (*sdf.shape, 3), "color": (*sdf.shape, 3)}
        if flexible:
            shapes["weights"] = (self.cells,) * 3 + (21,)
        self.parameters = {"sdf": sdf.clone().requires_grad_()}
        self.parameters.update({name: torch.zeros(shape, requires_grad=True) for name, shape in shapes.items()})

    @property
    def sdf(self) -> Tensor:
        return self.parameters["sdf"]

    def extract(self, training: bool = False) -> Surface:
        """The surface with colours [V, 3] (linear light) as attributes; differentiable. See `extract_surface`."""
        topology = build_topology(self.sdf.detach() < 0)
        corners = topology.corners
        index = torch.stack(torch.unravel_index(corners, self.sdf.shape), dim=1).to(self.sdf.dtype)
        moved = torch.tanh(self.parameters["deform"].view(-1, 3)[corners]) * (0.49 / self.cells)
        raw = self.parameters.get("weights")
        return extract_surface(
            topology,
            self.sdf.view(-1)[corners],
            index / self.cells - 0.5 + moved,
            *((None,) * 3 if raw is None else map_weights(raw[topology.cubes.unbind(1)])),
            attributes=torch.sigmoid(self.parameters["color"].view(-1, 3)[corners]),
            training=training,
        )

    def roughness(self) -> Tensor:
        """Mean absolute second difference of the distances along the axes, in cells: zero for a flat surface."""
        seconds = (self.sdf.diff(n=2, dim=axis).abs().mean() for axis in range(3))
        return sum(seconds) * self.cells

    def sign_entropy(self) -> Tensor:
        """Cross entropy between the distances at the two ends of every edge with a sign change (Munkberg 2022, eq. 2).

        It shrinks floating pieces and inner walls that no view can see.
        """
        terms = []
        for axis in range(3):
            a, b = self.sdf.narrow(axis, 0, self.cells), self.sdf.narrow(axis, 1, self.cells)
            changes = (a.detach() < 0) != (b.detach() < 0)
            for here, there in ((a[changes], b[changes]), (b[changes], a[changes])):
                outside = (there.detach() > 0).to(here.dtype)
                terms.append(binary_cross_entropy_with_logits(here * _SIGN_SHARPNESS, outside, reduction="none"))
        return torch.cat(terms).mean()


def _nearest_point(centers: Tensor, directions: Tensor) -> Tensor:
    """The point with the least squared distance to all optical axes."""
    identity = torch.eye(3, dtype=centers.dtype)
    projectors = identity - directions[:, :, None] * directions[:, None, :]
    matrix = projectors.sum(0) + 1e-6 * identity
    return torch.linalg.solve(matrix, (projectors @ centers[..., None]).sum(0)[:, 0] + 1e-6 * centers.mean(0))


def _lattice(center: Tensor, side: float, cells: int) -> Tensor:
    axis = (torch.arange(cells) + 0.5) / cells - 0.5
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1) * side + center.float()


def _carve(views: Views, points: Tensor) -> Tensor:
    """Which of the points [..., 3] lie inside every silhouette."""
    flat = points.reshape(-1, 3)
    kept = torch.arange(len(flat))
    for index in range(len(views)):
        screen = project(flat[kept], views.cameras.extrinsics[index], views.cameras.intrinsics[index])
        height, width = views.cameras.height_width(index)
        grid = torch.stack([2 * screen[:, 0] / width - 1, 2 * screen[:, 1] / height - 1], dim=1)
        mask = views.masks[index]
        covered = grid_sample(mask[None], grid.view(1, 1, -1, 2), align_corners=False, padding_mode="zeros").view(-1)
        inside = covered > 0.5
        if _is_cut_off(mask):  # then the picture cannot speak for what lies beyond its border
            inside |= (grid.abs() > 1).any(dim=1)
        kept = kept[inside & (screen[:, 2] > 1e-3)]
    occupied = torch.zeros(len(flat), dtype=torch.bool)
    occupied[kept] = True
    return occupied.view(points.shape[:-1])


def _is_cut_off(mask: Tensor) -> bool:
    """Whether an object [1, H, W] reaches the border of its picture."""
    return any(float(side.max()) > 0.5 for side in (mask[:, 0], mask[:, -1], mask[..., 0], mask[..., -1]))


def _distance_of(inside: Tensor) -> Tensor:
    """Signed distance in cells to the boundary half-way between inside and outside corners; the rim counts as out."""
    volume = inside.numpy().copy()
    volume[[0, -1]] = volume[:, [0, -1]] = volume[:, :, [0, -1]] = False
    distance = ndimage.distance_transform_edt(~volume) - ndimage.distance_transform_edt(volume)
    distance = np.where(volume, distance + 0.5, distance - 0.5)
    return torch.from_numpy(ndimage.gaussian_filter(distance, 0.7).astype(np.float32))


def _between(vertices: Tensor, faces: Tensor, cells: int) -> Tensor:
    """Corners between the first and the last surface along z, seen along both directions: [x, y, z] bool."""
    scale = float(cells)
    x, y, z = (vertices + 0.5).unbind(1)
    depths = []
    for sign in (1.0, -1.0):
        screen = torch.stack([x * scale + 0.5, y * scale + 0.5, 2 + sign * z], dim=1)
        raster = rasterize(screen, faces, cells + 1, cells + 1)
        depth = torch.where(raster.mask, (raster.depth - 2) * sign, torch.nan)
        depths.append(depth.T)  # rows are y
    level = torch.linspace(0, 1, cells + 1)
    return (level > depths[0][..., None]) & (level < depths[1][..., None])


def _unrolled(axis: int) -> tuple[int, int, int]:
    """Permutation that brings volume axes (axis, axis + 1, axis + 2) back to (0, 1, 2)."""
    order = [(axis + k) % 3 for k in range(3)]
    return tuple(order.index(k) for k in range(3))
