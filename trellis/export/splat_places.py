"""Splats laid flat on the surface that was decoded beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree

from trellis.export.photographs import calm_normals
from trellis.export.surface import surface_of
from trellis.representations.gaussian import Gaussian

_REACH = 0.04  # object units: somewhat more than a voxel of the structure; splats farther off stand for nothing
_NEIGHBOURS = 4
_SPREAD, _LARGEST = 0.7, 0.015  # deviation of a disc: its share of the distance to the neighbours; object units
_FLATNESS = 0.1  # thickness of a disc, of its deviation
_OPACITY = 0.97


def laid_on_surface(gaussian: Gaussian, mesh: Any) -> Gaussian:
    """The splats near the surface as opaque discs on it, which just overlap.

    Where a decoder is unsure of the surface, its splats lie about in several layers and one sees through all of them.
    The mesh of the same latent has decided.

    Args:
        gaussian: N splats, on the CPU.
        mesh: of the same object, as `surface_of` takes it.

    Returns:
        New splats, at most N, with the colours that they had; those given if none of them is near the surface.

    Raises:
        InputError: the mesh is empty or broken.
    """
    surface = surface_of(mesh)
    centers = gaussian.get_xyz.detach().numpy()
    distances, nearest = cKDTree(surface.vertices).query(centers, workers=-1)
    near = distances < _REACH
    if near.sum() <= _NEIGHBOURS:
        return gaussian
    centers, vertices = centers[near], surface.vertices[nearest[near]]
    normals = calm_normals(surface)[nearest[near]]
    height = np.einsum("nk,nk->n", centers - vertices, normals)
    places = (centers - height[:, None] * normals).astype(np.float32)
    # The nearest one of all is the splat itself.
    spacing = cKDTree(places).query(places, k=_NEIGHBOURS + 1, workers=-1)[0][:, -1]
    radius = np.minimum(_SPREAD * spacing, _LARGEST).astype(np.float32)
    result = gaussian.to(gaussian.device)
    result.from_xyz(torch.from_numpy(places))
    result.from_scaling(torch.from_numpy(radius[:, None] * np.float32([1, 1, _FLATNESS])))
    result.from_rotation(torch.from_numpy(_from_z(normals)))
    result.from_opacity(torch.full((len(places), 1), _OPACITY))
    result.from_features(gaussian.get_features.detach()[torch.from_numpy(near)])
    return result


def _from_z(normals: np.ndarray) -> np.ndarray:
    """Unit quaternions [N, 4], w first, that turn the z axis to unit normals [N, 3]."""
    x, y, z = normals.T
    half = np.stack([1 + z, -y, x, np.zeros_like(z)], axis=1)
    half[z < -0.9999] = 0, 1, 0, 0
    return (half / np.linalg.norm(half, axis=1, keepdims=True)).astype(np.float32)
