"""Silhouettes with sub-pixel coverage, and through it the gradient of visibility.

After "Modular Primitives for High-Performance Differentiable Rendering" (Laine et al. 2020): where a silhouette passes
between two neighbouring pixel centres, one of the two is blended towards the other by how far the silhouette lies from
the midpoint. The search differs: silhouettes are found on the edges of the mesh, not on the triangles that are seen,
because near the horizon triangles are thinner than a pixel and the one that owns the silhouette is rarely seen.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from trellis import backends
from trellis.errors import InputError
from trellis.renderers.mesh_topology import FaceTable, face_table
from trellis.renderers.mesh_visibility import Raster, screen_array
from trellis.renderers.numba_runtime import exclusive, kernel

# Just inside the horizon of a rounded object the surface is already nearer than its silhouette, by up to half the
# object's depth. Something nearer than that hides the silhouette.
_RELATIVE_DEPTH_TOLERANCE = 0.5


def antialias(
    image: torch.Tensor,
    screen: torch.Tensor,
    faces: torch.Tensor,
    raster: Raster,
    depth_tolerance: float | None = None,
) -> torch.Tensor:
    """Blend the two sides of every visible silhouette by coverage.

    Differentiable in `image` and in the x and y of `screen`; deterministic on the CPU. The sum of an antialiased mask
    along a row changes with a silhouette's position exactly as the covered length does. Faces must share their
    vertices: a seam of duplicated vertices counts as a boundary, and is blended like one.

    Args:
        image: [H, W, C] float, rendered from `raster` (any channels: mask, colours, normals).
        screen: [V, 3], the positions that `raster` was made from.
        faces: [F, 3] integer, the faces that `raster` was made from.
        raster: from `rasterize`.
        depth_tolerance: how much nearer or farther than the silhouette the pixel inside may be, in world units;
            default half the depth range of the vertices.

    Returns:
        [H, W, C] float32 on the device of `image`.
    """
    if image.ndim != 3 or image.shape[:2] != raster.face_ids.shape:
        size = list(raster.face_ids.shape)
        raise InputError(f"The image must be [H, W, C] with (H, W) = {size} of its raster, not {list(image.shape)}.")
    face_table(faces).require_vertices(len(screen))
    if depth_tolerance is None:
        depths = screen.detach()[screen.detach()[:, 2] >= raster.near, 2].double()
        spread = float(depths.max() - depths.min()) if len(depths) else 0.0
        depth_tolerance = _RELATIVE_DEPTH_TOLERANCE * spread
    backend = backends.of("mesh_rasterisation", raster.face_ids.device)
    return backend.antialias(image, screen, faces, raster, depth_tolerance)


def antialias_numba(
    image: torch.Tensor, screen: torch.Tensor, faces: torch.Tensor, raster: Raster, depth_tolerance: float
) -> torch.Tensor:
    """`antialias` on the CPU; arguments are checked."""
    local = image.to("cpu", torch.float32), screen.to("cpu", torch.float32)
    return _Antialias.apply(*local, face_table(faces), raster, depth_tolerance).to(image.device)


class _Crossings(NamedTuple):
    """Points where silhouettes pass between two neighbouring pixel centres, K in all.

    Attributes:
        edge: [K, 2] int32, the silhouette's vertices.
        inner, outer: [K] int32, flat pixel indices on the object's side and on the other.
        vertical: [K] bool, the pixels are above one another (a shallow edge) instead of side by side (a steep one).
        along: [K] float32 in [0, 1], position of the crossing on the edge.
        reach: [K] float32 in [0, 1], distance in pixels from the inner centre to the crossing.
        direction: [K] float32, +1 if the outer pixel has the higher coordinate, else -1.
    """

    edge: np.ndarray
    inner: np.ndarray
    outer: np.ndarray
    vertical: np.ndarray
    along: np.ndarray
    reach: np.ndarray
    direction: np.ndarray


class _Antialias(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        image: torch.Tensor,
        screen: torch.Tensor,
        table: FaceTable,
        raster: Raster,
        depth_tolerance: float,
    ) -> torch.Tensor:
        image = image.detach().contiguous()
        result = image.clone()
        crossings = _find_crossings(screen_array(screen), table, raster, depth_tolerance)
        channels = image.shape[2]
        with exclusive():
            _blend(
                image.view(-1, channels).numpy(),
                result.view(-1, channels).numpy(),
                crossings.inner,
                crossings.outer,
                crossings.reach,
            )
        ctx.save_for_backward(image, screen)
        ctx.crossings = crossings
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        image, screen = ctx.saved_tensors
        crossings = ctx.crossings
        channels = image.shape[2]
        grad = grad.to(torch.float32).contiguous()
        grad_image, grad_screen = grad.clone(), torch.zeros_like(screen, memory_format=torch.contiguous_format)
        with exclusive():
            _blend_backward(
                grad.view(-1, channels).numpy(),
                image.view(-1, channels).numpy(),
                screen_array(screen),
                grad_image.view(-1, channels).numpy(),
                grad_screen.numpy(),
                *crossings,
            )
        need_image, need_screen = ctx.needs_input_grad[:2]
        return grad_image if need_image else None, grad_screen if need_screen else None, None, None, None


def _find_crossings(screen: np.ndarray, table: FaceTable, raster: Raster, depth_tolerance: float) -> _Crossings:
    """All visible crossings; where several silhouettes pass between the same two pixels, only the outermost."""
    edges = table.edges
    with exclusive():
        sides = _silhouette_sides(screen, edges.vertices, edges.starts, edges.opposites, raster.near)
        found = _Crossings(
            *_walk_silhouettes(
                screen,
                edges.vertices,
                sides,
                raster.face_ids.cpu().numpy(),
                raster.depth.cpu().numpy(),
                depth_tolerance,
            )
        )
    # A pair of pixels in one direction: the pair is fixed by its inner pixel, the axis and the direction.
    key = found.inner.astype(np.int64) * 4 + 2 * found.vertical + (found.direction > 0)
    order = np.lexsort((-found.reach, key))
    outermost = order[np.diff(key[order], prepend=-1) != 0]
    return _Crossings(*(column[outermost] for column in found))


@kernel
def _silhouette_sides(
    screen: np.ndarray, edges: np.ndarray, starts: np.ndarray, opposites: np.ndarray, near: float
) -> np.ndarray:
    """[E] int8: on which screen side of an edge all its faces lie, as the sign of a cross product; 0: on both."""
    sides = np.zeros(len(edges), np.int8)
    for edge in range(len(edges)):
        a, b = edges[edge, 0], edges[edge, 1]
        if min(screen[a, 2], screen[b, 2]) < near:
            continue
        dx, dy = screen[b, 0] - screen[a, 0], screen[b, 1] - screen[a, 1]
        left = right = False
        for slot in range(starts[edge], starts[edge + 1]):
            vertex = opposites[slot]
            if screen[vertex, 2] < near:  # that face is not drawn, so here the mesh ends
                continue
            ox, oy = screen[vertex, 0] - screen[a, 0], screen[vertex, 1] - screen[a, 1]
            side = dx * oy - dy * ox
            left |= side < 0.0
            right |= side > 0.0
        if left != right:
            sides[edge] = 1 if right else -1
    return sides


@kernel
def _walk_silhouettes(
    screen: np.ndarray,
    edges: np.ndarray,
    sides: np.ndarray,
    face_ids: np.ndarray,
    depth: np.ndarray,
    tolerance: float,
) -> tuple[np.ndarray, ...]:
    """The columns of `_Crossings`: steep edges are followed row by row, shallow ones column by column."""
    height, width = face_ids.shape
    capacity = 0
    for edge in range(len(edges)):
        if sides[edge] != 0:
            a, b = edges[edge, 0], edges[edge, 1]
            span = max(abs(screen[a, 0] - screen[b, 0]), abs(screen[a, 1] - screen[b, 1]))
            capacity += int(min(span, float(max(height, width)))) + 1
    vertices = np.empty((capacity, 2), np.int32)
    inner = np.empty(capacity, np.int32)
    outer = np.empty(capacity, np.int32)
    vertical = np.empty(capacity, np.bool_)
    along = np.empty(capacity, np.float32)
    reach = np.empty(capacity, np.float32)
    direction = np.empty(capacity, np.float32)
    count = 0
    for edge in range(len(edges)):
        if sides[edge] == 0:
            continue
        a, b = edges[edge, 0], edges[edge, 1]
        dx, dy = screen[b, 0] - screen[a, 0], screen[b, 1] - screen[a, 1]
        shallow = abs(dx) > abs(dy)
        # "major" is the axis that is walked, "minor" the one along which the two pixels lie.
        major, minor = (0, 1) if shallow else (1, 0)
        num_major, num_minor = (width, height) if shallow else (height, width)
        start, end = screen[a, major], screen[b, major]
        # Pixel centres in [low, high): where two edges meet, exactly one of them takes the row.
        first = int(np.ceil(min(max(min(start, end) - 0.5, 0.0), float(num_major))))
        last = int(np.ceil(min(max(max(start, end) - 0.5, 0.0), float(num_major)))) - 1
        outwards = -sides[edge] if (dx > 0 if shallow else dy < 0) else sides[edge]
        za, zb = 1.0 / screen[a, 2], 1.0 / screen[b, 2]
        for walk in range(first, last + 1):
            t = (walk + 0.5 - start) / (end - start)
            crossing = screen[a, minor] + t * (screen[b, minor] - screen[a, minor]) - 0.5
            if not 0.0 <= crossing < num_minor - 1:
                continue
            lower = int(crossing)
            inside, outside = (lower, lower + 1) if outwards > 0 else (lower + 1, lower)
            in_row, in_column = (inside, walk) if shallow else (walk, inside)
            out_row, out_column = (outside, walk) if shallow else (walk, outside)
            edge_depth = 1.0 / (za + t * (zb - za))
            if face_ids[in_row, in_column] < 0 or abs(depth[in_row, in_column] - edge_depth) > tolerance:
                continue
            if face_ids[out_row, out_column] >= 0 and depth[out_row, out_column] < edge_depth:
                continue
            vertices[count, 0] = a
            vertices[count, 1] = b
            inner[count] = in_row * width + in_column
            outer[count] = out_row * width + out_column
            vertical[count] = shallow
            along[count] = t
            reach[count] = (crossing - inside) * outwards
            direction[count] = outwards
            count += 1
    return (
        vertices[:count],
        inner[:count],
        outer[:count],
        vertical[:count],
        along[:count],
        reach[:count],
        direction[:count],
    )


@kernel
def _blend(image: np.ndarray, result: np.ndarray, inner: np.ndarray, outer: np.ndarray, reach: np.ndarray) -> None:
    """result += weight * (source - target) per crossing, with the colours before any blending."""
    for k in range(len(reach)):
        # Past the midpoint the object spills into the outer pixel, short of it the outside into the inner pixel.
        spills = reach[k] > 0.5
        target, source = (outer[k], inner[k]) if spills else (inner[k], outer[k])
        weight = abs(reach[k] - np.float32(0.5))
        for channel in range(image.shape[1]):
            result[target, channel] += weight * (image[source, channel] - image[target, channel])


@kernel
def _blend_backward(
    grad: np.ndarray,
    image: np.ndarray,
    screen: np.ndarray,
    grad_image: np.ndarray,
    grad_screen: np.ndarray,
    edge: np.ndarray,
    inner: np.ndarray,
    outer: np.ndarray,
    vertical: np.ndarray,
    along: np.ndarray,
    reach: np.ndarray,
    direction: np.ndarray,
) -> None:
    """Adds to both gradients; `grad_image` starts as a copy of `grad`."""
    for k in range(len(reach)):
        spills = reach[k] > 0.5
        target, source = (outer[k], inner[k]) if spills else (inner[k], outer[k])
        weight = abs(reach[k] - np.float32(0.5))
        grad_weight = 0.0
        for channel in range(image.shape[1]):
            g = grad[target, channel]
            grad_weight += g * (image[source, channel] - image[target, channel])
            grad_image[source, channel] += weight * g
            grad_image[target, channel] -= weight * g
        grad_crossing = (grad_weight if spills else -grad_weight) * direction[k]
        a, b = edge[k, 0], edge[k, 1]
        major, minor = (0, 1) if vertical[k] else (1, 0)
        # crossing = a_minor + slope * (row - a_major), and |slope| <= 1 since edges are walked along their longer axis.
        slope = (screen[b, minor] - screen[a, minor]) / (screen[b, major] - screen[a, major])
        at_a, at_b = grad_crossing * (1.0 - along[k]), grad_crossing * along[k]
        grad_screen[a, minor] += at_a
        grad_screen[b, minor] += at_b
        grad_screen[a, major] -= at_a * slope
        grad_screen[b, major] -= at_b * slope
