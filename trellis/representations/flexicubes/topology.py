"""Which vertices and quads a sign pattern implies: the part of the extraction that has no gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .tables import CORNERS, dual_tables, edge_index


@dataclass(frozen=True)
class Topology:
    """Dual mesh of a lattice of signs. Lattice corners are flat indices into the `[X+1, Y+1, Z+1]` volume.

    Only what touches the surface appears: `M` corners, `K` cubes, `V` vertices (one per surface patch of a cube) and
    `Q` quads (one per crossed lattice edge that has all four cubes around it).

    Attributes:
        corners: int64 [M], flat lattice index of each corner that takes part, ascending.
        cubes: int64 [K, 3], lattice coordinates of the crossed cubes, lexicographic.
        cube_corners: int64 [K, 8], rows of `corners`, x fastest.
        vertex_cube: int64 [V], the cube a vertex lies in (row of `cubes`).
        vertex_edges: bool [V, 12], the crossed cube edges of the vertex's patch.
        quads: int64 [Q, 4], vertices around a crossed edge, counter-clockwise seen from outside.
        quad_cubes: int64 [Q, 4], the cubes those vertices lie in.
    """

    corners: Tensor
    cubes: Tensor
    cube_corners: Tensor
    vertex_cube: Tensor
    vertex_edges: Tensor
    quads: Tensor
    quad_cubes: Tensor


@torch.no_grad()
def build_topology(inside: Tensor) -> Topology:
    """Dual marching cubes on `inside`, bool [X+1, Y+1, Z+1] (True = inside the object).

    Working memory is about nine bytes per lattice corner, plus what the surface itself needs.

    Raises:
        ValueError: `inside` is not a boolean volume with at least two corners per axis.
    """
    if inside.dtype != torch.bool or inside.dim() != 3 or min(inside.shape) < 2:
        raise ValueError(
            f"inside must be a bool volume of at least 2x2x2 corners, got {inside.dtype} {tuple(inside.shape)}."
        )
    device = inside.device
    cells = torch.tensor([n - 1 for n in inside.shape], device=device)
    case_volume = _sign_cases(inside)
    cubes = ((case_volume > 0) & (case_volume < 255)).nonzero()
    cube_strides = torch.tensor([case_volume.stride(axis) for axis in range(3)], device=device)
    flat_cubes = (cubes * cube_strides).sum(1)
    cases = case_volume.view(-1)[flat_cubes].long()
    row_of_cube = torch.full((case_volume.numel(),), -1, dtype=torch.int32, device=device)
    row_of_cube[flat_cubes] = torch.arange(len(cubes), dtype=torch.int32, device=device)

    corners, cube_corners = _number_corners(cubes, inside)
    patches = _resolve_shared_faces(cases, cubes, cells, flat_cubes, cube_strides, row_of_cube)

    tables = dual_tables()
    patch_of_edge = torch.from_numpy(tables.patch_of_edge).to(device)
    counts = torch.from_numpy(tables.patch_count).to(device).long()[patches]
    first_vertex = counts.cumsum(0) - counts
    vertex_cube = torch.arange(len(cubes), device=device).repeat_interleave(counts)
    slot = torch.arange(len(vertex_cube), device=device) - first_vertex[vertex_cube]
    vertex_edges = patch_of_edge[patches[vertex_cube]] == slot[:, None]

    quads, quad_cubes = [], []
    for axis in range(3):
        around = _cubes_around_edges(axis, cases, cubes, flat_cubes, cube_strides, row_of_cube)
        local_edges = torch.tensor(_EDGES_AROUND[axis], device=device)
        vertices = first_vertex[around] + patch_of_edge[patches[around], local_edges]
        # The ring runs counter-clockwise seen from +axis, which is outside only where the lower corner is inside.
        # Where gammas tie, the starting point decides the diagonal; these are the ones that the recorded meshes show.
        outward = (cases[around[:, 0]] & 1).bool()[:, None]
        rings = ([0, 1, 2, 3], [1, 0, 3, 2]) if axis == 1 else ([1, 2, 3, 0], [0, 3, 2, 1])
        order = torch.where(outward, around.new_tensor(rings[0]), around.new_tensor(rings[1]))
        quads.append(vertices.gather(1, order))
        quad_cubes.append(around.gather(1, order))
    return Topology(corners, cubes, cube_corners, vertex_cube, vertex_edges, torch.cat(quads), torch.cat(quad_cubes))


def _sign_cases(inside: Tensor) -> Tensor:
    """uint8 [X, Y, Z]: bit k is set where corner k of the cube is inside."""
    x, y, z = (n - 1 for n in inside.shape)
    bits = inside.to(torch.uint8)
    cases = torch.zeros((x, y, z), dtype=torch.uint8, device=inside.device)
    for k, (dx, dy, dz) in enumerate(CORNERS.tolist()):
        cases.add_(bits[dx : dx + x, dy : dy + y, dz : dz + z], alpha=1 << k)
    return cases


def _number_corners(cubes: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """The corners of `cubes` [K, 3] as ascending flat indices [M], and each cube's rows among them [K, 8]."""
    strides = torch.tensor([inside.stride(axis) for axis in range(3)], device=cubes.device)
    offsets = (torch.from_numpy(CORNERS).to(cubes.device) * strides).sum(1)
    flat = (cubes * strides).sum(1)[:, None] + offsets
    # A table over the lattice instead of torch.unique: no sort, several times faster on the CPU.
    row_of_corner = torch.zeros(inside.numel(), dtype=torch.int32, device=cubes.device)
    row_of_corner[flat.view(-1)] = 1
    corners = row_of_corner.nonzero().squeeze(1)
    row_of_corner[corners] = torch.arange(len(corners), dtype=torch.int32, device=cubes.device)
    return corners, row_of_corner[flat].long()


def _resolve_shared_faces(
    cases: Tensor, cubes: Tensor, cells: Tensor, flat_cubes: Tensor, strides: Tensor, row_of_cube: Tensor
) -> Tensor:
    """Case whose patches each cube uses [K]: the complement where both sides touch their shared face twice."""
    partner = torch.from_numpy(dual_tables().partner).to(cases.device).long()
    touches_twice = partner.any(1)
    rows = touches_twice[cases].nonzero().squeeze(1)
    step = partner[cases[rows]]
    neighbour = cubes[rows] + step
    inside_grid = ((neighbour >= 0) & (neighbour < cells)).all(1)
    rows, step = rows[inside_grid], step[inside_grid]
    # The face alternates in sign, so the cube behind it is crossed and has a row; such a cube has one such face only.
    other = row_of_cube[flat_cubes[rows] + (step * strides).sum(1)].long()
    rows = rows[touches_twice[cases[other]]]
    resolved = cases.clone()
    resolved[rows] = 255 - resolved[rows]
    return resolved


def _list_edges_around() -> list[list[int]]:
    """For each axis: the local edge number of one lattice edge in the four cubes of `_cubes_around_edges`."""
    around = []
    for axis in range(3):
        u, v = 1 << (axis + 1) % 3, 1 << (axis + 2) % 3
        around.append([edge_index(start, start + (1 << axis)) for start in (0, u, u + v, v)])
    return around


_EDGES_AROUND = _list_edges_around()


def _cubes_around_edges(
    axis: int, cases: Tensor, cubes: Tensor, flat_cubes: Tensor, strides: Tensor, row_of_cube: Tensor
) -> Tensor:
    """int64 [Q, 4]: rows of the cubes around every crossed lattice edge along `axis`.

    An edge is named by the cube that starts where it starts (first column); the others lie one step back along the
    next axis, along both others, and along the one after. Edges on the border of the lattice have fewer cubes: skipped.
    """
    u, v = (axis + 1) % 3, (axis + 2) % 3
    crossed = ((cases & 1) != (cases >> (1 << axis) & 1)) & (cubes[:, u] > 0) & (cubes[:, v] > 0)
    flat = flat_cubes[crossed]
    steps = torch.stack([torch.zeros_like(strides[0]), strides[u], strides[u] + strides[v], strides[v]])
    return row_of_cube[flat[:, None] - steps].long()
