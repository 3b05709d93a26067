"""Surface appearance as textures: base colour, roughness, metallic and, optionally, a tangent-space normal map.

Lookups are trilinear: bilinear in two levels of a mip pyramid, chosen by how many texels a pixel covers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample

COARSEST = 16  # texels a side of the smallest mip level; below it, charts are mixed beyond use


@dataclass(frozen=True, eq=False)
class Material:
    """Textures [C, S, S] float32, first row at the top (v = 1), S from 16 to 31 times a power of two.

    Attributes:
        base_color: [3, S, S] linear light in [0, 1].
        orm: [2, S, S] roughness and metallic in [0, 1].
        normal: [3, S, S] tangent-space normals (x along u, y along v, z outwards), any length, or None for flat.
    """

    base_color: Tensor
    orm: Tensor
    normal: Tensor | None = None

    def to(self, device: torch.device | str) -> Material:
        """A copy on another device."""
        return Material(*(None if m is None else m.to(device) for m in (self.base_color, self.orm, self.normal)))

    @property
    def stack(self) -> Tensor:
        """All channels, [5 or 8, S, S]."""
        maps = [self.base_color, self.orm]
        return torch.cat(maps if self.normal is None else [*maps, self.normal])


def mip_pyramid(texture: Tensor) -> list[Tensor]:
    """The texture [C, S, S] and its halvings down to `COARSEST`; differentiable."""
    levels = [texture]
    while levels[-1].shape[-1] >= 2 * COARSEST:
        levels.append(avg_pool2d(levels[-1][None], 2)[0])
    return levels


def sample(pyramid: list[Tensor], uvs: Tensor, level: Tensor) -> Tensor:
    """Trilinear lookup, differentiable in the textures and `uvs`.

    Args:
        pyramid: of `mip_pyramid`.
        uvs: [P, 2] in [0, 1], origin at the lower left.
        level: [P] mip level, 0 = finest; clamped.

    Returns:
        [P, C].
    """
    grid = torch.stack([2 * uvs[:, 0] - 1, 1 - 2 * uvs[:, 1]], dim=1)
    level = level.clamp(0, len(pyramid) - 1)
    result = uvs.new_zeros(len(uvs), pyramid[0].shape[0])
    for index, texture in enumerate(pyramid):
        weight = 1 - (level - index).abs()
        rows = (weight > 0).nonzero().squeeze(1)
        if len(rows):
            taken = grid_sample(
                texture[None], grid[rows].view(1, 1, -1, 2), align_corners=False, padding_mode="border"
            ).view(texture.shape[0], -1)
            result = result.index_add(0, rows, taken.T * weight[rows, None])
    return result


def face_mip_levels(screen: Tensor, faces: Tensor, uvs: Tensor, uv_faces: Tensor, size: int) -> Tensor:
    """Mip level per face [F]: half the binary logarithm of the texels per pixel, from the areas of the face in both.

    One level for all directions, as a mean would give; what a face shows obliquely is filtered less than it could be.
    """
    with torch.no_grad():
        texels = _areas(uvs * size, uv_faces)
        pixels = _areas(screen[:, :2], faces)
        return 0.5 * torch.log2(texels.clamp(min=1e-6) / pixels.clamp(min=1e-6))


def _areas(points: Tensor, faces: Tensor) -> Tensor:
    a, b, c = points[faces].unbind(1)
    p, q = b - a, c - a
    return 0.5 * (p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]).abs()
