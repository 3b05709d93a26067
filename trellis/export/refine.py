"""A few optimiser steps that sharpen a baked texture by comparing it with the pictures it came from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from trellis.export.bake import trust
from trellis.export.unwrap import Atlas
from trellis.export.views import Looker, View
from trellis.renderers.cameras import Cameras

_LEARNING_RATES = (5e-3, 5e-4)  # cosine from the first to the second
_BETAS = (0.5, 0.9)
_MIN_TRUST = 0.2  # pixels that show mostly something else teach nothing


def refine_texture(
    texture: np.ndarray,
    atlas: Atlas,
    cameras: Cameras,
    views: Sequence[View],
    steps: int,
    on_step: Callable[[int], None] | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Minimise the L1 difference between textured surface and pictures with Adam, one picture per step.

    Averaging over pictures blurs; some dozens of steps win part of the loss back (0.3 dB on a painted torus).

    Args:
        texture: [S, S, 3] float32 sRGB, first row at the top.
        atlas, cameras, views: as in `bake.bake_views`.
        steps: number of steps; 0 returns the texture unchanged.
        on_step: called with the number of steps done; may raise to stop.
        seed: fixes the order of the pictures.

    Returns:
        [S, S, 3] float32 in [0, 1]. Texels that no picture shows keep their colour.
    """
    if steps == 0 or len(views) == 0:
        return texture
    start = torch.from_numpy(texture).permute(2, 0, 1)[None].contiguous()
    image = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([image], lr=_LEARNING_RATES[0], betas=_BETAS)
    looker, normals = Looker(atlas.surface), atlas.surface.face_vectors()
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-20)
    order = torch.randperm(len(views), generator=torch.Generator().manual_seed(seed)).tolist()
    for step in range(steps):
        k = order[step % len(order)]
        lookup, target, weight = _samples(atlas, looker, normals, cameras, k, views[k])
        if len(target):
            progress = step / max(steps - 1, 1)
            high, low = _LEARNING_RATES
            optimiser.param_groups[0]["lr"] = low + 0.5 * (high - low) * (1 + math.cos(math.pi * progress))
            color = F.grid_sample(image, lookup[None, None], align_corners=False)[0, :, 0].T  # [P, 3]
            loss = (weight * (color - target).abs()).sum() / weight.sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        if on_step is not None:
            on_step(step + 1)
    return image.detach()[0].permute(1, 2, 0).clamp(0, 1).numpy()


def _samples(
    atlas: Atlas, looker: Looker, normals: np.ndarray, cameras: Cameras, k: int, view: View
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of one picture's P pixels that show the surface: lookup places [P, 2], colours [P, 3] and weights [P, 1]."""
    hit = looker.look(cameras, k)
    trusted = trust(view, hit, atlas.surface.bounding_sphere()[1])
    chosen = (hit.face_ids >= 0) & (trusted > _MIN_TRUST)
    ids = hit.face_ids[chosen]
    uvs = looker.interpolate(hit, atlas.uvs)[chosen]
    lookup = np.stack([2 * uvs[:, 0] - 1, 1 - 2 * uvs[:, 1]], axis=1)  # grid_sample measures downwards from -1
    toward = cameras.centers[k].numpy() - atlas.vertices[atlas.faces[ids, 0]]
    toward /= np.linalg.norm(toward, axis=1, keepdims=True)
    cosine = np.einsum("pk,pk->p", toward, normals[ids]).clip(0, 1)
    weight = (trusted[chosen] * cosine**2)[:, None]
    return tuple(torch.from_numpy(values.astype(np.float32)) for values in (lookup, view.color[chosen], weight))
