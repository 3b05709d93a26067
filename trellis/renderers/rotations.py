"""Unit quaternions, real part first (w, x, y, z), and rotation matrices."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def quaternion_to_matrix(quats: torch.Tensor) -> torch.Tensor:
    """Rotation matrices [..., 3, 3] of quaternions [..., 4]; any nonzero length stands for the same rotation."""
    w, x, y, z = F.normalize(quats, dim=-1).unbind(dim=-1)
    rows = (
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def matrix_to_quaternion(rotations: torch.Tensor) -> torch.Tensor:
    """Unit quaternions [..., 4] with w >= 0 of rotation matrices [..., 3, 3].

    The outer product q q^T is linear in the matrix; its longest row is q up to length, and is never close to zero
    (Shepperd 1978, "Quaternion from rotation matrix").
    """
    m = rotations
    a, b, c = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    wx, wy, wz = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    diagonal = torch.stack([1 + a + b + c, 1 + a - b - c, 1 - a + b - c, 1 - a - b + c], dim=-1)
    ww, xx, yy, zz = diagonal.unbind(dim=-1)
    outer = torch.stack([ww, wx, wy, wz, wx, xx, xy, xz, wy, xy, yy, yz, wz, xz, yz, zz], dim=-1).unflatten(-1, (4, 4))
    longest = diagonal.argmax(dim=-1)[..., None, None].expand(*diagonal.shape[:-1], 1, 4)
    quats = F.normalize(outer.gather(-2, longest).squeeze(-2), dim=-1)
    return torch.where(quats[..., :1] < 0, -quats, quats)
