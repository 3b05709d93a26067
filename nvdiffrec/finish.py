"""The last touch to fitted textures: what no photograph showed, and the gutters between charts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from nvdiffrec.asset import Asset
from nvdiffrec.material import Material
from trellis.export.gutter import dilate
from trellis.export.texels import texels_of

_UNTOUCHED = 1e-6  # a texel that no gradient reached has not moved at all
_NEIGHBOURS = 8  # texels on the surface whose change is continued into what was not seen
_DARKEST = 0.02  # linear; a change is taken as a factor, and below this it would be one of noise
_FACTORS = (0.25, 4.0)


def finish(asset: Asset, start: Asset) -> Asset:
    """The fitted asset with its textures completed.

    Taking the light out of the colours changes them where the photographs look and nowhere else. What they do not show
    takes over the change of its nearest neighbours on the surface, as a factor for the base colour, and their roughness
    and metallic. Gutters then continue the charts, as mipmapped lookups need it.

    Args:
        asset: the result of a fit.
        start: what it started from, with the same texture coordinates.
    """
    texels = texels_of(asset.atlas, asset.material.base_color.shape[-1])
    rows, columns = torch.from_numpy(texels.rows), torch.from_numpy(texels.columns)
    old, new = start.material.stack[:5, rows, columns].T, asset.material.stack[:5, rows, columns].T.clone()
    seen = ((new - old).abs().amax(dim=1) > _UNTOUCHED).numpy()
    if seen.any() and not seen.all():
        new[~seen] = _continued(texels.positions, seen, old, new)
    known = np.zeros((texels.size, texels.size), dtype=bool)
    known[texels.rows, texels.columns] = True
    stack = asset.material.stack.clone()
    stack[:5, rows, columns] = new.T
    stack = torch.from_numpy(dilate(stack.permute(1, 2, 0).numpy(), known)).permute(2, 0, 1)
    normal = None if asset.material.normal is None else stack[5:].contiguous()
    return replace(asset, material=Material(stack[:3].contiguous(), stack[3:5].contiguous(), normal))


def _continued(positions: np.ndarray, seen: np.ndarray, old: Tensor, new: Tensor) -> Tensor:
    """Values [U, 5] for the texels that were not seen."""
    count = min(_NEIGHBOURS, int(seen.sum()))
    distance, index = cKDTree(positions[seen]).query(positions[~seen], k=count, workers=-1)
    distance, index = distance.reshape(-1, count), index.reshape(-1, count)
    weights = torch.from_numpy((1 / (distance + 1e-4)).astype(np.float32))
    weights = (weights / weights.sum(1, keepdim=True))[..., None]
    was, now = old[seen][index], new[seen][index]
    factor = (weights * ((now[..., :3] + _DARKEST) / (was[..., :3] + _DARKEST)).log()).sum(1).exp().clamp(*_FACTORS)
    color = (old[~seen][:, :3] * factor).clamp(0, 1)
    return torch.cat([color, (weights * now[..., 3:]).sum(1)], dim=1)
