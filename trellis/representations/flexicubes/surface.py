"""Vertex positions and triangles of a dual mesh: the part of the extraction that carries gradients.

Follows "Flexible Isosurface Extraction for Gradient-Based Mesh Optimization" (Shen et al., SIGGRAPH 2023), sections 4.2
to 4.4: weights alpha move a crossing along its edge, weights beta move a dual vertex within its patch, and gamma
chooses how a quad is split.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from .tables import EDGES
from .topology import Topology, build_topology


@dataclass(frozen=True)
class Surface:
    """A triangle mesh with gradients.

    Attributes:
        vertices: float [V, 3].
        faces: int64 [F, 3], counter-clockwise seen from outside.
        attributes: float [V, C] or None, interpolated like the vertices.
        deviation: float [D] or None, per dual vertex the mean absolute deviation of its distances to the crossings of
            its patch (the paper's L_dev before summing); only with `training`.
    """

    vertices: Tensor
    faces: Tensor
    attributes: Tensor | None = None
    deviation: Tensor | None = None


def extract_surface(
    topology: Topology,
    sdf: Tensor,
    positions: Tensor,
    alpha: Tensor | None = None,
    beta: Tensor | None = None,
    gamma: Tensor | None = None,
    attributes: Tensor | None = None,
    training: bool = False,
) -> Surface:
    """Place the vertices of `topology` and split its quads. Differentiable in every float argument.

    Args:
        sdf: float [M], signed distance at `topology.corners`, negative inside; its signs are those of the topology.
        positions: float [M, 3], where those corners are.
        alpha: float [K, 8] > 0 per cube corner, or None for 1.
        beta: float [K, 12] > 0 per cube edge (order: `tables.EDGES`), or None for 1.
        gamma: float [K] > 0 per cube, or None for 1.
        attributes: float [M, C] at the corners.
        training: split every quad at a gamma-weighted middle vertex into four triangles, so that gamma has a gradient,
            and compute `deviation`. Otherwise two triangles along the diagonal with the larger gamma product.
    """
    values = positions if attributes is None else torch.cat([positions, attributes], dim=1)
    # Autocast would run the small matrix product below in half precision: vertices would jump by 1e-3.
    with torch.autocast(values.device.type, enabled=False):
        along = _crossings(topology, sdf, alpha)
        vertices = _dual_vertices(topology, along, beta, values)
        deviation = _deviation(topology, along, positions, vertices[:, :3]) if training else None
    if training:
        vertices, faces = _split_quads_at_middle(topology, gamma, vertices)
    else:
        faces = _split_quads_by_diagonal(topology, gamma)
    return Surface(vertices[:, :3], faces, None if attributes is None else vertices[:, 3:], deviation)


def flexicubes(
    sdf: Tensor,
    positions: Tensor | None = None,
    alpha: Tensor | None = None,
    beta: Tensor | None = None,
    gamma: Tensor | None = None,
    attributes: Tensor | None = None,
    training: bool = False,
) -> Surface:
    """FlexiCubes on a full lattice of X x Y x Z cubes, index order [x, y, z]; weights as in `extract_surface`.

    Args:
        sdf: float [X+1, Y+1, Z+1], negative inside.
        positions: float [X+1, Y+1, Z+1, 3]; None for a regular lattice over [-0.5, 0.5]^3.
        alpha: float [X, Y, Z, 8]; beta: float [X, Y, Z, 12]; gamma: float [X, Y, Z]; attributes: [X+1, Y+1, Z+1, C].

    Raises:
        ValueError: a shape does not fit `sdf`.
    """
    topology = build_topology(sdf.detach() < 0)
    cells = tuple(n - 1 for n in sdf.shape)
    expected = {"positions": (*sdf.shape, 3), "alpha": (*cells, 8), "beta": (*cells, 12), "gamma": cells}
    given = {"positions": positions, "alpha": alpha, "beta": beta, "gamma": gamma}
    for name, shape in expected.items():
        if given[name] is not None and given[name].shape != shape:
            raise ValueError(f"{name} must have shape {shape} for this sdf, got {tuple(given[name].shape)}.")
    if attributes is not None and (attributes.dim() != 4 or attributes.shape[:3] != sdf.shape):
        raise ValueError(f"attributes must have shape {(*sdf.shape, 'C')}, got {tuple(attributes.shape)}.")

    corners, cubes = topology.corners, topology.cubes.unbind(1)
    if positions is None:
        index = torch.stack(torch.unravel_index(corners, sdf.shape), dim=1)
        here = index.to(sdf.dtype) / torch.tensor(cells, dtype=sdf.dtype, device=sdf.device) - 0.5
    else:
        here = positions.reshape(-1, 3)[corners]
    return extract_surface(
        topology,
        sdf.reshape(-1)[corners],
        here,
        None if alpha is None else alpha[cubes],
        None if beta is None else beta[cubes],
        None if gamma is None else gamma[cubes],
        None if attributes is None else attributes.reshape(-1, attributes.shape[-1])[corners],
        training,
    )


def _crossings(topology: Topology, sdf: Tensor, alpha: Tensor | None) -> Tensor:
    """float [V, 12, 2]: shares of the two end corners in the crossing of each edge of a vertex's patch, else 0."""
    scaled = sdf[topology.cube_corners]
    if alpha is not None:
        scaled = scaled * alpha
    edges = torch.from_numpy(EDGES).to(sdf.device)
    ends = scaled[topology.vertex_cube][:, edges]  # [V, 12, 2]
    used = topology.vertex_edges
    # Edges outside the patch may have equal ends; a harmless divisor keeps their (unused) gradient finite.
    difference = torch.where(used, ends[..., 1] - ends[..., 0], 1.0)
    first = torch.where(used, ends[..., 1] / difference, 0.0)
    return torch.stack([first, torch.where(used, 1 - first, 0.0)], dim=-1)


def _dual_vertices(topology: Topology, along: Tensor, beta: Tensor | None, values: Tensor) -> Tensor:
    """float [V, C]: beta-weighted mean of the crossings, as one weighted sum over the eight cube corners."""
    weights = topology.vertex_edges.to(along.dtype)
    if beta is not None:
        weights = weights * beta[topology.vertex_cube]
    weights = weights / weights.sum(1, keepdim=True)
    edges = torch.from_numpy(EDGES).to(along.device)
    ends = torch.nn.functional.one_hot(edges, 8).to(along.dtype)  # [12, 2, 8]
    share = (along * weights[..., None]).flatten(1) @ ends.flatten(0, 1)  # [V, 8]
    corners = topology.cube_corners[topology.vertex_cube]
    if share.requires_grad and not values.requires_grad:  # which torch 2.4 refuses
        values = values.detach().requires_grad_()
    return embedding_bag(corners, values, mode="sum", per_sample_weights=share)


def _deviation(topology: Topology, along: Tensor, positions: Tensor, vertices: Tensor) -> Tensor:
    """float [V]: mean absolute deviation of the distances from a dual vertex to its crossings."""
    vertex, edge = topology.vertex_edges.nonzero(as_tuple=True)
    edges = torch.from_numpy(EDGES).to(vertex.device)
    ends = topology.cube_corners[topology.vertex_cube[vertex][:, None], edges[edge]]  # [P, 2]
    crossing = (positions[ends] * along[vertex, edge][..., None]).sum(1)
    distance = torch.linalg.vector_norm(crossing - vertices[vertex], dim=1)
    count = topology.vertex_edges.sum(1)
    mean = torch.zeros_like(vertices[:, 0]).index_add(0, vertex, distance) / count
    return torch.zeros_like(mean).index_add(0, vertex, (distance - mean[vertex]).abs()) / count


def _diagonal_products(topology: Topology, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """gamma0 * gamma2 and gamma1 * gamma3 of each quad, float [Q] each."""
    g = gamma[topology.quad_cubes]
    return g[:, 0] * g[:, 2], g[:, 1] * g[:, 3]


def _split_quads_by_diagonal(topology: Topology, gamma: Tensor | None) -> Tensor:
    """int64 [2Q, 3]: along 0-2 where that product of gammas is larger, else along 1-3."""
    q = topology.quads
    along_13 = q[:, [0, 1, 3, 3, 1, 2]]
    if gamma is None:
        return along_13.reshape(-1, 3)
    product_02, product_13 = _diagonal_products(topology, gamma.detach())
    faces = torch.where((product_02 > product_13)[:, None], q[:, [0, 1, 2, 0, 2, 3]], along_13)
    return faces.reshape(-1, 3)


def _split_quads_at_middle(topology: Topology, gamma: Tensor | None, vertices: Tensor) -> tuple[Tensor, Tensor]:
    """Vertices [V + Q, C] with one middle vertex per quad, and faces int64 [4Q, 3]."""
    q = topology.quads
    middle_02 = (vertices[q[:, 0]] + vertices[q[:, 2]]) / 2
    middle_13 = (vertices[q[:, 1]] + vertices[q[:, 3]]) / 2
    if gamma is None:
        share = torch.full_like(vertices[: len(q), :1], 0.5)
    else:
        product_02, product_13 = _diagonal_products(topology, gamma)
        share = (product_02 / (product_02 + product_13))[:, None]
    middle = share * middle_02 + (1 - share) * middle_13
    centre = torch.arange(len(vertices), len(vertices) + len(q), device=q.device)
    faces = torch.stack([q, q.roll(-1, dims=1), centre[:, None].expand(-1, 4)], dim=-1).reshape(-1, 3)
    return torch.cat([vertices, middle]), faces
