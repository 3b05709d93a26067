"""Splats that wear the photographs' colours where those see the object well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree

from trellis.export.photographs import Photographs, blend_photographs, calm_normals
from trellis.export.surface import surface_of
from trellis.export.texels import SurfacePoints
from trellis.representations.gaussian import SH_DC, Gaussian

_REACH = 0.03  # object units: about a voxel of the structure; splats farther from the surface are not what is seen


def painted_splats(
    gaussian: Gaussian, mesh: Any, photographs: Photographs, on_view: Callable[[int], None] | None = None
) -> Gaussian:
    """The same splats with colours from photographs, blended as on a texture (see `photographs`).

    Args:
        gaussian: N splats, on the CPU.
        mesh: of the same object, as `surface_of` takes it. Each splat stands for the place of it that is nearest.
        photographs: the pictures.
        on_view: called with the number of photographs done; may raise to stop.

    Returns:
        New splats, which share all other fields. Those that no photograph sees well keep their colours, or take those
        of painted ones beside them, and in between the two are mixed.

    Raises:
        InputError: the mesh is empty or broken.
    """
    surface = surface_of(mesh)
    centers, own = gaussian.get_xyz.detach().numpy(), gaussian.raw_color.detach().numpy()
    distances, nearest = cKDTree(surface.vertices).query(centers, workers=-1)
    normals = calm_normals(surface)[nearest]
    height = np.einsum("nk,nk->n", centers - surface.vertices[nearest], normals)
    places = SurfacePoints((centers - height[:, None] * normals).astype(np.float32), normals)
    blended = blend_photographs(surface, places, photographs, own, on_view)
    share = np.where(distances < _REACH, blended.share, 0)
    colors = np.where(share[:, None] > 0, blended.colors, own)
    colors = _borrowed(centers, colors, share > 0.5).astype(np.float32)
    result = gaussian.to(gaussian.device)
    result.from_features(((torch.from_numpy(colors) - 0.5) / SH_DC)[:, None])
    return result


def _borrowed(centers: np.ndarray, colors: np.ndarray, painted: np.ndarray) -> np.ndarray:
    """Colours [N, 3] with those of splats not `painted` [N] taken from painted ones within reach.

    Some splats shine through, though the place they lie at is an inner wall or the next part over: they would speckle
    what is painted.
    """
    if not painted.any() or painted.all():
        return colors
    wanted = np.flatnonzero(~painted)
    known = np.flatnonzero(painted)
    distances, nearest = cKDTree(centers[known]).query(
        centers[wanted], k=[1, 2, 3, 4], distance_upper_bound=_REACH, workers=-1
    )
    found = np.isfinite(distances)
    beside = found.any(axis=1)
    weights = found[beside] / np.maximum(distances[beside], 1e-6)
    weights /= weights.sum(axis=1, keepdims=True)
    result = colors.copy()
    sources = known[np.where(found, nearest, 0)[beside]]
    result[wanted[beside]] = np.einsum("nk,nkc->nc", weights, colors[sources])
    return result
