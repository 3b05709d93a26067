"""The recipe of the original package through our kernels: many visibility views, supersampled pictures, an optimiser.

Facts of the recipe: 1000 visibility views at 1024 pixels; 30 pictures of the splats at 1024 pixels with four samples
per pixel and axis; 2500 Adam steps of one random picture each (learning rate 1e-2 falling to 1e-5 by a cosine, betas
0.5 and 0.9) on the L1 difference plus 0.01 times the total variation of the texture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from trellis.export.gutter import dilate
from trellis.export.surface import Surface
from trellis.export.texels import texels_of
from trellis.export.unwrap import Atlas
from trellis.export.views import FOV, Looker, View, gaussian_views, surround
from trellis.export.visibility import count_sightings
from trellis.renderers.cameras import Cameras, orbit
from trellis.representations.gaussian import Gaussian


@dataclass(frozen=True)
class Recipe:
    """Numbers of the original; smaller ones for a quick look."""

    visibility_views: int = 1000
    visibility_size: int = 1024
    pictures: int = 30
    picture_size: int = 1024
    supersampling: int = 4
    steps: int = 2500


def visibility(dense: Surface, recipe: Recipe) -> None:
    """Look at the surface from everywhere."""
    count_sightings(dense, surround(dense, recipe.visibility_views, recipe.visibility_size))


def pictures(gaussian: Gaussian, dense: Surface, recipe: Recipe) -> tuple[Cameras, list[View]]:
    """Supersampled pictures of the splats."""
    cameras = surround(dense, recipe.pictures, recipe.picture_size)
    factor = recipe.supersampling
    large = cameras.scaled(recipe.picture_size * factor, recipe.picture_size * factor)
    views = []
    for view in gaussian_views(gaussian, large):
        image = torch.cat([view.color * view.alpha[..., None], view.alpha[..., None]], dim=2)
        small = F.avg_pool2d(image.permute(2, 0, 1)[None], factor)[0].permute(1, 2, 0)
        views.append(View((small[..., :3] / small[..., 3:].clamp_min(1e-3)).clamp(0, 1), small[..., 3]))
    return cameras, views


def optimise(
    atlas: Atlas,
    size: int,
    cameras: Cameras,
    views: list[View],
    steps: int,
    on_step: Callable[[int], None] | None = None,
) -> np.ndarray:
    """The texture [size, size, 3] float32 after Adam from black, with gutters dilated."""
    looker, lookups, targets = Looker(atlas.surface), [], []
    for k, view in enumerate(views):
        hit = looker.look(cameras, k)
        inside = hit.face_ids >= 0
        uvs = looker.interpolate(hit, atlas.uvs)[inside]
        lookups.append(torch.stack([2 * uvs[:, 0] - 1, 1 - 2 * uvs[:, 1]], dim=1)[None, None])
        targets.append(view.color[inside])
    texture = torch.zeros(1, 3, size, size, requires_grad=True)
    optimiser = torch.optim.Adam([texture], lr=1e-2, betas=(0.5, 0.9))
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        k = int(torch.randint(len(views), (1,), generator=generator))
        rate = 1e-5 + 0.5 * (1e-2 - 1e-5) * (1 + math.cos(math.pi * step / steps))
        optimiser.param_groups[0]["lr"] = rate
        color = F.grid_sample(texture, lookups[k], align_corners=False)[0, :, 0].T
        variation = F.l1_loss(texture[:, :, :-1], texture[:, :, 1:]) + F.l1_loss(texture[..., :-1], texture[..., 1:])
        loss = F.l1_loss(color, targets[k]) + 0.01 * variation
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if on_step is not None:
            on_step(step + 1)
    image = texture.detach()[0].permute(1, 2, 0).clamp(0, 1).numpy()
    texels = texels_of(atlas, size)
    known = np.zeros((size, size), dtype=bool)
    known[texels.rows, texels.columns] = True
    return dilate(image, known)


def unseen_psnr(
    texture: np.ndarray,
    atlas: Atlas,
    gaussian: Gaussian,
    device: torch.device | str = "cpu",
    count: int = 20,
    size: int = 512,
) -> float:
    """Mean PSNR in dB of the textured mesh against the splats, where both are, from `count` random cameras."""
    rng = np.random.default_rng(7)
    center, radius = atlas.surface.bounding_sphere()
    distance = 1.05 * radius / math.sin(math.radians(FOV) / 2)
    yaw, pitch = rng.uniform(0, 2 * np.pi, count), np.arcsin(rng.uniform(-0.95, 0.95, count))
    cameras = orbit(torch.from_numpy(yaw), torch.from_numpy(pitch), distance, FOV, size)
    to_center = torch.eye(4)
    to_center[:3, 3] = torch.from_numpy(-center).float()
    cameras = Cameras(cameras.extrinsics @ to_center, cameras.intrinsics, cameras.image_size)
    looker, image = Looker(atlas.surface), torch.from_numpy(texture).float().permute(2, 0, 1)[None]
    values = []
    for k, view in enumerate(gaussian_views(gaussian, cameras, device)):
        view, hit = view.to("cpu"), looker.look(cameras, k)
        inside = (hit.face_ids >= 0) & (view.alpha > 0.5)
        uvs = looker.interpolate(hit, atlas.uvs)[inside]
        lookup = torch.stack([2 * uvs[:, 0] - 1, 1 - 2 * uvs[:, 1]], dim=1)[None, None]
        shown = F.grid_sample(image, lookup, align_corners=False)[0, :, 0].T
        values.append(-10 * np.log10((shown - view.color[inside]).square().mean()))
    return float(np.mean(values))
