"""How far each pixel of a picture shows the surface itself, and not what lies behind it or around an edge."""

from __future__ import annotations

import numpy as np
import torch

from trellis.export.views import Hit, View
from trellis.renderers.numba_runtime import exclusive, kernel, prange

_MIN_ALPHA = np.float32(0.5)  # thinner than this, the picture shows mostly its background
_DEPTH_SPREAD = 0.1  # of the object's radius; mean depths farther off say that the far side shines through
_LEAST_TRUST = np.float32(1e-3)  # where all splats are off the surface, their colours are still better than none
_AT_CREASES = np.float32(0.02)  # of the usual trust, in pixels that may show the other side of an edge
_SAME_SIDE = np.float32(0.5)  # cosine; faces turned by more than 60 degrees belong to different sides


def judge(view: View, hit: Hit, normals: torch.Tensor, radius: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Trust in a picture's pixels, and the surface's depth there.

    A pixel is trusted as far as it is covered; less where the mean depth of the splats is off the surface, for then
    the far side shines through gaps between them; and hardly beside empty pixels and faces turned by more than 60
    degrees, where splats and surface may show different sides.

    Args:
        view: the picture.
        hit: what its camera sees of the surface.
        normals: [F, 3] float32, unit, of the faces.
        radius: of the object.
        All on one device.

    Returns:
        [H, W] float32 in [0, 1], and [H, W] float32 along the view axis, infinite where empty.
    """
    inverse_spread = 1 / max(_DEPTH_SPREAD * radius, 1e-9)
    splat_depth = hit.depth if view.depth is None else view.depth
    tensors = hit.face_ids, hit.depth, normals, view.alpha.contiguous(), splat_depth.contiguous()
    if hit.face_ids.device.type != "cpu":
        return judge_in_torch(*tensors, inverse_spread)
    trusted, depth = torch.empty_like(hit.depth), torch.empty_like(hit.depth)
    with exclusive():
        _judge(*(t.numpy() for t in tensors), np.float32(inverse_spread), trusted.numpy(), depth.numpy())
    return trusted, depth


def judge_in_torch(
    face_ids: torch.Tensor,
    surface_depth: torch.Tensor,
    normals: torch.Tensor,
    alpha: torch.Tensor,
    splat_depth: torch.Tensor,
    inverse_spread: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`judge` on any device, without waiting for it."""
    height, width = face_ids.shape
    empty = face_ids < 0
    depth = surface_depth.masked_fill(empty, float("inf"))
    offset = (splat_depth - surface_depth) * inverse_spread
    value = alpha * torch.exp(-offset * offset).clamp_min(float(_LEAST_TRUST))
    facing = normals[face_ids.clamp_min(0).long()]
    crease = torch.zeros_like(empty)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            here = slice(max(-dy, 0), height - max(dy, 0)), slice(max(-dx, 0), width - max(dx, 0))
            there = slice(max(dy, 0), height - max(-dy, 0)), slice(max(dx, 0), width - max(-dx, 0))
            turned = (facing[here] * facing[there]).sum(-1) < float(_SAME_SIDE)
            crease[here] |= (face_ids[here] != face_ids[there]) & (empty[there] | turned)
    value = torch.where(crease, value * float(_AT_CREASES), value)
    return value.masked_fill(empty | (alpha < float(_MIN_ALPHA)), 0), depth


@kernel(parallel=True)
def _judge(face_ids, surface_depth, normals, alpha, splat_depth, inverse_spread, trusted, depth):
    height, width = face_ids.shape
    for row in prange(height):
        for column in range(width):
            face = face_ids[row, column]
            if face < 0:
                trusted[row, column] = 0
                depth[row, column] = np.inf
                continue
            depth[row, column] = surface_depth[row, column]
            value = alpha[row, column]
            if value < _MIN_ALPHA:
                trusted[row, column] = 0
                continue
            offset = (splat_depth[row, column] - surface_depth[row, column]) * inverse_spread
            value *= max(np.exp(-offset * offset), _LEAST_TRUST)
            n = normals[face]
            crease = False
            for r in range(max(row - 1, 0), min(row + 2, height)):
                for c in range(max(column - 1, 0), min(column + 2, width)):
                    other = face_ids[r, c]
                    if other == face:
                        continue
                    m = normals[max(other, 0)]
                    crease |= other < 0 or n[0] * m[0] + n[1] * m[1] + n[2] * m[2] < _SAME_SIDE
            trusted[row, column] = value * _AT_CREASES if crease else value
