"""Shape parameters: vertex offsets of a mesh, preconditioned so that big steps stay smooth; and regularisers.

"Large Steps in Inverse Rendering of Geometry" (Nicolet, Jacobson and Jakob, SIGGRAPH Asia 2021): instead of vertices x,
optimise u = (I + lambda L) x with the uniform Laplacian L. A gradient step on u is a step on x smoothed by the inverse
twice, so noise in the gradient moves nothing and silhouettes drag their surroundings along.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse as sparse
import torch
from scipy.sparse.linalg import splu
from torch import Tensor
from torch.nn.functional import normalize

from trellis.errors import InputError

MAX_FACES = 60_000  # factorising more takes longer than it improves; meshes are simplified first
_DENSE_VERTICES = 8192  # up to which a GPU keeps the inverse itself: half a gigabyte, one product for each solve


class LargeSteps:
    """The map between vertices and the preconditioned parameter, factorised once per topology.

    Args:
        faces: [F, 3] int64.
        num_vertices: V.
        smoothness: lambda; 0 makes it the identity.
        dense: multiply by the inverse on the device of `faces` instead of solving with sparse factors on the CPU, which
            a GPU would have to wait for. None does so on a GPU, for meshes that are not too large.

    Raises:
        InputError: more than `MAX_FACES` faces.
    """

    def __init__(
        self, faces: Tensor, num_vertices: int, smoothness: float = 19.0, dense: bool | None = None
    ) -> None:
        if len(faces) > MAX_FACES:
            raise InputError(
                f"The mesh has {len(faces)} faces, more than the {MAX_FACES} that can be refined; simplify it first."
            )
        laplacian = uniform_laplacian(faces, num_vertices)
        self.matrix = (sparse.identity(num_vertices, format="csc") + smoothness * laplacian).tocsc()
        if dense is None:
            dense = faces.device.type != "cpu" and num_vertices <= _DENSE_VERTICES
        self._solve = _dense_solver(self.matrix, faces.device) if dense else _sparse_solver(self.matrix)

    def to_parameter(self, vertices: Tensor) -> Tensor:
        """u [V, 3] of vertices [V, 3]."""
        product = self.matrix @ vertices.detach().cpu().double().numpy()
        return torch.from_numpy(product).to(vertices)

    def to_vertices(self, parameter: Tensor) -> Tensor:
        """Vertices [V, 3] of u [V, 3]; differentiable (the matrix is symmetric, so the gradient is solved alike)."""
        return _Solve.apply(parameter, self._solve)


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(ctx, right: Tensor, solve: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.solve = solve
        return solve(right)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.solve(grad), None


def _sparse_solver(matrix: sparse.csc_matrix) -> Callable[[Tensor], Tensor]:
    # Symmetric positive definite: no pivoting, and an ordering for symmetric patterns.
    factors = splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    return lambda right: torch.from_numpy(factors.solve(right.detach().cpu().double().numpy())).to(right)


def _dense_solver(matrix: sparse.csc_matrix, device: torch.device) -> Callable[[Tensor], Tensor]:
    factor = torch.linalg.cholesky(torch.from_numpy(matrix.toarray()).to(device))
    inverse = torch.cholesky_inverse(factor)
    return lambda right: (inverse @ right.detach().double()).to(right)


class UniformAdam:
    """Adam with one step size for all entries: the second moment is the largest of all (Nicolet et al. 2021, sec. 4).

    Plain Adam divides every entry by its own gradient's size and so undoes the smoothing of the preconditioner.
    """

    def __init__(self, parameter: Tensor, rate: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.parameter, self.rate, self.betas = parameter, rate, betas
        self.first, self.second, self.steps = torch.zeros_like(parameter), 0.0, 0

    @torch.no_grad()
    def step(self) -> None:
        """One step along the parameter's gradient, which is then cleared."""
        grad = self.parameter.grad
        if grad is None:
            return
        self.steps += 1
        beta1, beta2 = self.betas
        self.first.mul_(beta1).add_(grad, alpha=1 - beta1)
        self.second = beta2 * self.second + (1 - beta2) * float(grad.square().max())
        size = (self.second / (1 - beta2**self.steps)) ** 0.5 + 1e-12
        self.parameter.sub_(self.first, alpha=self.rate / (1 - beta1**self.steps) / size)
        self.parameter.grad = None


def uniform_laplacian(faces: Tensor, num_vertices: int) -> sparse.csc_matrix:
    """Graph Laplacian (degree minus adjacency), [V, V] symmetric positive semi-definite."""
    faces = faces.cpu().numpy()
    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    ends = np.concatenate([ends, ends[:, ::-1]])
    links = sparse.coo_matrix((np.ones(len(ends)), ends.T), shape=(num_vertices, num_vertices)).tocsr()
    links.data[:] = 1.0
    return (sparse.diags(np.asarray(links.sum(axis=1)).ravel()) - links).tocsc()


class SmoothnessTerms:
    """Laplacian smoothness (Sorkine 2005) and normal consistency of a mesh, for fixed faces."""

    def __init__(self, vertices: Tensor, faces: Tensor) -> None:
        self.faces = faces
        edges, pairs = manifold_edges(faces)
        self.pairs = pairs
        matrix = uniform_laplacian(faces, len(vertices)).tocoo()
        degree = np.maximum(matrix.diagonal(), 1)
        index = torch.from_numpy(np.stack([matrix.row, matrix.col]).astype(np.int64))
        values = torch.from_numpy((matrix.data / degree[matrix.row]).astype(np.float32))
        self._laplacian = torch.sparse_coo_tensor(
            index, values, matrix.shape, check_invariants=False
        ).coalesce().to(vertices.device)
        self.edge_length = float((vertices[edges[:, 0]] - vertices[edges[:, 1]]).norm(dim=1).mean())
        self._rest = (self._laplacian @ vertices.detach()).detach()

    def laplacian(self, vertices: Tensor) -> Tensor:
        """Mean squared change of the differential coordinates since construction, in mean edge lengths."""
        return ((self._laplacian @ vertices - self._rest) / self.edge_length).square().sum(1).mean()

    def normal_consistency(self, vertices: Tensor) -> Tensor:
        """Mean of 1 - cos of the angle between faces that share an edge."""
        a, b, c = vertices[self.faces].unbind(1)
        normals = normalize(torch.linalg.cross(b - a, c - a), dim=1, eps=1e-12)
        return (1 - (normals[self.pairs[:, 0]] * normals[self.pairs[:, 1]]).sum(1)).mean()


def manifold_edges(faces: Tensor) -> tuple[Tensor, Tensor]:
    """Edges [E, 2] with exactly two faces, and those faces [E, 2]."""
    ends = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).sort(dim=1).values
    owner = torch.arange(len(faces), device=faces.device).repeat(3)
    edges, place, count = torch.unique(ends, dim=0, return_inverse=True, return_counts=True)
    order = place.argsort(stable=True)
    first = count.cumsum(0) - count
    twice = count == 2
    start = first[twice]
    return edges[twice], torch.stack([owner[order[start]], owner[order[start + 1]]], dim=1)
