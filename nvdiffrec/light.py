"""Environment light for split-sum shading: an equirectangular map, filtered for every roughness.

After "Real Shading in Unreal Engine 4" (Karis, SIGGRAPH 2013 course). Filtering is linear in the map, so for a map that
is fitted it is one matrix, built once: exact, without noise, and its gradient is the transposed product.

Directions: z up, as in the object frame. The map's centre column looks along -y, its top row up; going right turns
towards -x (a photograph of the surroundings, seen from inside, is not mirrored).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from trellis.errors import InputError

FITTED_SIZE = (16, 32)  # rows and columns of a light that is fitted: about eleven degrees a texel
LOADED_SIZE = (32, 64)
ROUGHNESS_LEVELS = (0.0, 0.15, 0.3, 0.5, 0.75, 1.0)  # of the filtered copies; in between, neighbours are blended
_BLOCK = 512  # rows of the filter matrix at a time, when it is not kept


@dataclass(frozen=True, eq=False)
class FilteredLight:
    """An environment ready for lookups.

    Attributes:
        diffuse: [3, H, W] cosine-weighted mean radiance (irradiance / pi) by normal.
        specular: [3, L, H, W] GGX-weighted mean radiance by reflected direction, one layer per `ROUGHNESS_LEVELS`.
    """

    diffuse: Tensor
    specular: Tensor

    def irradiance(self, normals: Tensor) -> Tensor:
        """Mean incoming radiance [P, 3] for unit normals [P, 3], differentiable in both."""
        return _lookup(self.diffuse, normals)

    def reflection(self, directions: Tensor, roughness: Tensor) -> Tensor:
        """Filtered radiance [P, 3] for unit directions [P, 3] and roughness [P] in [0, 1], differentiable in all."""
        levels = roughness.new_tensor(ROUGHNESS_LEVELS)
        upper = torch.searchsorted(levels, roughness.detach().contiguous()).clamp(1, len(levels) - 1)
        low, high = levels[upper - 1], levels[upper]
        depth = (upper - 1) + (roughness - low) / (high - low)
        u, v = _grid_coordinates(directions, self.specular.shape[-1])
        grid = torch.stack([u, v, 2 * depth / (len(levels) - 1) - 1], dim=-1).view(1, 1, 1, -1, 3)
        padded = _wrap(self.specular)[None]
        return grid_sample(padded, grid, align_corners=True, padding_mode="border").view(3, -1).T


def filter_light(environment: Tensor) -> FilteredLight:
    """Filter an environment [3, H, W] (linear light, >= 0), differentiably.

    Maps up to `FITTED_SIZE` use a kept matrix. Larger ones are reduced to `LOADED_SIZE` first, and filtered in blocks.
    """
    if environment.ndim != 3 or environment.shape[0] != 3 or environment.shape[2] != 2 * environment.shape[1]:
        raise InputError(
            f"An environment must be [3, H, 2H], an equirectangular picture, but came as {list(environment.shape)}."
        )
    height, width = environment.shape[1:]
    if height > LOADED_SIZE[0]:
        environment = _reduced(environment, LOADED_SIZE)
        height, width = LOADED_SIZE
    flat = environment.reshape(3, -1)
    if height <= FITTED_SIZE[0]:
        matrices = _kept_filters(height, width, flat.device).to(flat)
        filtered = torch.einsum("lij,cj->cli", matrices, flat)
    else:
        parts = [(rows.to(flat) @ flat.T) for rows in _filter_blocks(height, width)]
        per_level = math.ceil(height * width / _BLOCK)
        layers = [torch.cat(parts[i : i + per_level]) for i in range(0, len(parts), per_level)]
        filtered = torch.stack(layers).permute(2, 0, 1)
    filtered = filtered.reshape(3, -1, height, width)
    return FilteredLight(filtered[:, -1], filtered[:, :-1])


def environment_from_hdr(pixels: np.ndarray, size: tuple[int, int] | None = None) -> Tensor:
    """An environment [3, H, 2H] from the pixels [H', W', 3] of an HDR file, reduced by area if `size` is given."""
    environment = torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32)).permute(2, 0, 1)
    return environment if size is None else _reduced(environment, size)


def texel_directions(height: int, width: int) -> Tensor:
    """Unit directions of the texel centres, [H * W, 3] float32."""
    polar = (torch.arange(height) + 0.5) / height * math.pi
    turn = (torch.arange(width) + 0.5) / width * 2 * math.pi - math.pi
    sine = polar.sin()[:, None]
    x, y = -sine * turn.sin(), -sine * turn.cos()
    return torch.stack([x, y, polar.cos()[:, None].expand_as(x)], dim=-1).reshape(-1, 3)


def solid_angles(height: int, width: int) -> Tensor:
    """Solid angle of every texel in steradians, [H * W]; together 4 pi."""
    edges = torch.cos(torch.arange(height + 1) / height * math.pi)
    return ((edges[:-1] - edges[1:]) * 2 * math.pi / width).repeat_interleave(width)


def _reduced(environment: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(environment[None], size, mode="area")[0]


@lru_cache(maxsize=4)
def _kept_filters(height: int, width: int, device: torch.device) -> Tensor:
    """[L + 1, HW, HW]: the specular levels, then the diffuse one; every row adds up to one."""
    blocks = list(_filter_blocks(height, width))
    per_level = math.ceil(height * width / _BLOCK)
    levels = [torch.cat(blocks[i : i + per_level]) for i in range(0, len(blocks), per_level)]
    return torch.stack(levels).to(device)


def _filter_blocks(height: int, width: int):
    """Rows of the filter matrices in blocks, level after level, the diffuse one last."""
    directions, angles = texel_directions(height, width), solid_angles(height, width)
    # A lobe narrower than a texel would fall between the samples; the texel's own size is a floor for it.
    floor = math.pi / height / 2
    for roughness in (*ROUGHNESS_LEVELS, None):
        for rows in directions.split(_BLOCK):
            cosine = (rows @ directions.T).clamp(-1, 1)
            if roughness is None:
                weights = cosine.clamp(min=0)
            else:
                weights = _ggx_lobe(cosine, max(roughness**2, floor))
            weights = weights * angles
            yield weights / weights.sum(dim=1, keepdim=True)


def _ggx_lobe(cosine: Tensor, alpha: float) -> Tensor:
    """Weight of light at an angle to the reflected direction, for view = normal (Karis): D(h) n.l.

    With n = v = r the half vector lies half-way, so n.h = cos(angle / 2), and n.l = cos(angle) weighs as in Karis.
    """
    half = (1 + cosine) / 2  # (n.h)^2
    density = alpha**2 / (half * (alpha**2 - 1) + 1).square()
    return density * cosine.clamp(min=0)


def _grid_coordinates(directions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Lookup coordinates in [-1, 1] for a map padded by `_wrap`, `align_corners=True`."""
    x, y, z = directions.unbind(-1)
    # atan2 and acos have no finite gradient at the poles; a direction that close to one may as well stand beside it.
    at_pole = (x.square() + y.square()) < 1e-8
    turn = torch.atan2(torch.where(at_pole, -1e-4, -x), torch.where(at_pole, 1e-4, -y))
    polar = torch.acos(z.clamp(-1 + 1e-6, 1 - 1e-6))
    height = width // 2
    column = (turn / (2 * math.pi) + 0.5) * width + 0.5  # in the padded map, whose centres start at 0
    row = polar / math.pi * height + 0.5
    return 2 * column / (width + 1) - 1, 2 * row / (height + 1) - 1


def _wrap(maps: Tensor) -> Tensor:
    """One more texel on every side: around the turn, and over each pole (half a turn away)."""
    rolled = maps.roll(maps.shape[-1] // 2, dims=-1)
    tall = torch.cat([rolled[..., :1, :], maps, rolled[..., -1:, :]], dim=-2)
    return torch.cat([tall[..., -1:], tall, tall[..., :1]], dim=-1)


def _lookup(maps: Tensor, directions: Tensor) -> Tensor:
    u, v = _grid_coordinates(directions, maps.shape[-1])
    grid = torch.stack([u, v], dim=-1).view(1, 1, -1, 2)
    return grid_sample(_wrap(maps)[None], grid, align_corners=True, padding_mode="border").view(maps.shape[0], -1).T
