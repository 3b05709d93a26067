"""Barycentrics, attributes and antialiasing in torch, for devices where they would otherwise have to leave it.

The formulas are those of `mesh_interpolation` and `mesh_antialias`; here autograd differentiates them. Gradients add up
in no fixed order on a GPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trellis.renderers.mesh_visibility import Raster


def raster_images(screen: Tensor, faces: Tensor, face_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`face_ids` [H, W] int32, with the barycentrics [H, W, 3] and depth [H, W] of what is seen."""
    pixels = _seen(face_ids)
    barycentrics = torch.zeros(*face_ids.shape, 3, device=screen.device)
    depth = torch.zeros(face_ids.shape, device=screen.device)
    weights, distance = _weights(screen, faces, face_ids, pixels)
    barycentrics.view(-1, 3)[pixels] = weights.float()
    depth.view(-1)[pixels] = distance.float()
    return face_ids, barycentrics, depth


def interpolate(attributes: Tensor, screen: Tensor, faces: Tensor, raster: Raster, attribute_faces: Tensor) -> Tensor:
    """See `mesh_interpolation.interpolate`; arguments are checked."""
    device = raster.face_ids.device
    local, screen, faces = attributes.to(device).float(), screen.to(device), faces.to(device)
    pixels = _seen(raster.face_ids)
    if screen.requires_grad and torch.is_grad_enabled():
        weights = _weights(screen, faces, raster.face_ids, pixels)[0].float()
    else:
        weights = raster.barycentrics.view(-1, 3)[pixels]
    corners = attribute_faces.to(device).long()[raster.face_ids.view(-1)[pixels].long()]  # [P, 3]
    values = (weights[:, :, None] * local[corners]).sum(1)
    image = values.new_zeros(raster.face_ids.numel(), local.shape[1]).index_copy(0, pixels, values)
    return image.view(*raster.face_ids.shape, -1).to(attributes.device)


def antialias(image: Tensor, screen: Tensor, faces: Tensor, raster: Raster, depth_tolerance: float) -> Tensor:
    """See `mesh_antialias.antialias`; arguments are checked."""
    device = raster.face_ids.device
    points = screen.to(device).double()
    found = _crossings(points.detach(), faces.to(device).long(), raster, depth_tolerance)
    rows = image.to(device).float().reshape(-1, image.shape[2])
    # The same crossing again, now from vertices that may want a gradient.
    lines = torch.arange(len(found.edge), device=device)
    a, b = points[found.edge[:, 0]], points[found.edge[:, 1]]
    major, minor = found.vertical.logical_not().long(), found.vertical.long()
    along = (found.walk + 0.5 - a[lines, major]) / (b[lines, major] - a[lines, major])
    crossing = a[lines, minor] + along * (b[lines, minor] - a[lines, minor]) - 0.5
    reach = ((crossing - found.inside) * found.outwards).float()
    spills = reach > 0.5
    target = torch.where(spills, found.outer, found.inner)
    source = torch.where(spills, found.inner, found.outer)
    weight = torch.where(spills, reach - 0.5, 0.5 - reach)[:, None]
    blended = rows.index_add(0, target, weight * (rows[source] - rows[target]))
    return blended.view(image.shape).to(image.device)


def _seen(face_ids: Tensor) -> Tensor:
    """Flat indices of the pixels that show a face, [P]."""
    return (face_ids.view(-1) >= 0).nonzero().squeeze(1)


def _weights(screen: Tensor, faces: Tensor, face_ids: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Perspective-correct weights [P, 3] and depth [P] at pixel centres, float64, differentiable in `screen`."""
    width = face_ids.shape[1]
    corners = screen.double()[faces.long()[face_ids.view(-1)[pixels].long()]]  # [P, 3, 3]
    a, b, c = (corners[:, i, :2] for i in range(3))
    centre = torch.stack([pixels % width, pixels // width], dim=1) + 0.5 - a
    ab, ac = b - a, c - a
    area = _cross(ab, ac)
    ub, uc = _cross(centre, ac) / area, _cross(ab, centre) / area
    shares = torch.stack([1 - ub - uc, ub, uc], dim=1) / corners[:, :, 2]
    depth = 1 / shares.sum(1)
    return shares * depth[:, None], depth


def _cross(u: Tensor, v: Tensor) -> Tensor:
    return u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]


class _Crossings(NamedTuple):
    """Points where silhouettes pass between two neighbouring pixel centres, K in all.

    edge [K, 2] vertices; inner, outer [K] flat pixels; vertical [K] bool, the pixels are above one another; walk [K]
    the row or column walked; inside [K] the inner pixel's other coordinate; outwards [K] +1 or -1.
    """

    edge: Tensor
    inner: Tensor
    outer: Tensor
    vertical: Tensor
    walk: Tensor
    inside: Tensor
    outwards: Tensor


def _silhouettes(points: Tensor, faces: Tensor, near: float) -> tuple[Tensor, Tensor]:
    """Edges [S, 2] whose faces all lie on one side on screen, and that side [S], the sign of a cross product."""
    ends = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    opposite = torch.cat([faces[:, 2], faces[:, 0], faces[:, 1]])
    proper = ends[:, 0] != ends[:, 1]
    ends, opposite = ends[proper].sort(dim=1).values, opposite[proper]
    key, edge = torch.unique(ends[:, 0] * len(points) + ends[:, 1], return_inverse=True)
    vertices = torch.stack([key // len(points), key % len(points)], dim=1)
    a, b = points[ends[:, 0]], points[ends[:, 1]]
    side = _cross(b[:, :2] - a[:, :2], points[opposite, :2] - a[:, :2])
    drawn = points[opposite, 2] >= near  # a face that is not drawn ends the mesh here
    left, right = (
        torch.zeros(len(key), dtype=torch.int64, device=key.device).index_add(0, edge, found.long()) > 0
        for found in ((side < 0) & drawn, (side > 0) & drawn)
    )
    chosen = (left != right) & (points[vertices, 2].amin(1) >= near)
    return vertices[chosen], torch.where(right[chosen], 1, -1)


def _crossings(points: Tensor, faces: Tensor, raster: Raster, tolerance: float) -> _Crossings:
    """All visible crossings; where several silhouettes pass between the same two pixels, only the outermost."""
    height, width = raster.face_ids.shape
    edge, side = _silhouettes(points, faces, raster.near)
    a, b = points[edge[:, 0]], points[edge[:, 1]]
    delta = b - a
    shallow = delta[:, 0].abs() > delta[:, 1].abs()
    major = shallow.logical_not().long()
    lines = torch.arange(len(edge), device=edge.device)
    start, end = a[lines, major], b[lines, major]
    length = torch.where(shallow, width, height)
    first, stop = (
        (bound - 0.5).clamp_min(0).minimum(length).ceil().long()
        for bound in (torch.minimum(start, end), torch.maximum(start, end))
    )
    along_axis = torch.where(shallow, delta[:, 0] > 0, delta[:, 1] < 0)
    outwards = torch.where(along_axis, -side, side)

    # One line for every pixel centre that an edge passes along its longer axis.
    counts = (stop - first).clamp_min(0)
    line = torch.repeat_interleave(lines, counts)
    walk = first[line] + torch.arange(len(line), device=line.device) - (counts.cumsum(0) - counts)[line]
    vertical, outwards = shallow[line], outwards[line]
    t = (walk + 0.5 - start[line]) / (end - start)[line]
    minor = vertical.long()
    crossing = a[line, minor] + t * delta[line, minor] - 0.5
    edge_depth = 1 / (1 / a[line, 2] + t * (1 / b[line, 2] - 1 / a[line, 2]))
    room = torch.where(vertical, height, width) - 1
    valid = (crossing >= 0) & (crossing < room)
    lower = torch.where(valid, crossing, 0).long()
    inside = torch.where(outwards > 0, lower, lower + 1)
    outside = torch.where(outwards > 0, lower + 1, lower)
    inner, outer = (torch.where(vertical, at * width + walk, walk * width + at) for at in (inside, outside))
    inner, outer = torch.where(valid, inner, 0), torch.where(valid, outer, 0)
    ids, depth = raster.face_ids.view(-1), raster.depth.view(-1).double()
    valid &= (ids[inner] >= 0) & ((depth[inner] - edge_depth).abs() <= tolerance)
    valid &= (ids[outer] < 0) | (depth[outer] >= edge_depth)

    # A pair of pixels in one direction: fixed by its inner pixel, the axis and the direction. The farthest comes first.
    key = inner * 4 + 2 * vertical + (outwards > 0)
    order = valid.nonzero().squeeze(1)
    order = order[((crossing - inside) * outwards)[order].argsort(descending=True)]
    order = order[key[order].argsort(stable=True)]
    order = order[torch.diff(key[order], prepend=key.new_full((1,), -1)) != 0]
    line = line[order]
    return _Crossings(
        edge[line], inner[order], outer[order], vertical[order], walk[order], inside[order], outwards[order]
    )
