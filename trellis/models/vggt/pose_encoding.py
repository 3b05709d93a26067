"""The nine numbers in which VGGT states a camera, and the matrices they stand for.

A pose encoding is (tx, ty, tz, qx, qy, qz, qw, fov_h, fov_w): world-to-camera translation and rotation with OpenCV axes
(x right, y down, z forward), then the vertical and horizontal fields of view in radians. The principal point is the
centre of the image. Quaternions may have any length; the encoding made from matrices has unit ones with qw >= 0.
"""

from __future__ import annotations

import torch


def quaternion_to_matrix(quaternions: torch.Tensor) -> torch.Tensor:
    """Quaternions [..., 4] (x, y, z, w, any non-zero length) -> rotations [..., 3, 3]."""
    x, y, z, w = quaternions.unbind(-1)
    double = 2.0 / quaternions.square().sum(-1)
    rows = [
        1 - double * (y * y + z * z),
        double * (x * y - z * w),
        double * (x * z + y * w),
        double * (x * y + z * w),
        1 - double * (x * x + z * z),
        double * (y * z - x * w),
        double * (x * z - y * w),
        double * (y * z + x * w),
        1 - double * (x * x + y * y),
    ]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def matrix_to_quaternion(rotations: torch.Tensor) -> torch.Tensor:
    """Rotations [..., 3, 3] -> unit quaternions [..., 4] (x, y, z, w) with w >= 0.

    The products 4 q_i q_j are sums and differences of matrix entries. Any row of that 4x4 matrix is a multiple of q;
    the one with the largest diagonal is at least 1 long, so normalising it is safe (Shepperd, 1978).
    """
    r = [[rotations[..., i, j] for j in range(3)] for i in range(3)]
    xy, xz, yz = r[0][1] + r[1][0], r[0][2] + r[2][0], r[1][2] + r[2][1]
    xw, yw, zw = r[2][1] - r[1][2], r[0][2] - r[2][0], r[1][0] - r[0][1]
    products = [
        [1 + r[0][0] - r[1][1] - r[2][2], xy, xz, xw],
        [xy, 1 - r[0][0] + r[1][1] - r[2][2], yz, yw],
        [xz, yz, 1 - r[0][0] - r[1][1] + r[2][2], zw],
        [xw, yw, zw, 1 + r[0][0] + r[1][1] + r[2][2]],
    ]
    table = torch.stack([torch.stack(row, dim=-1) for row in products], dim=-2)  # [..., 4, 4]
    best = table.diagonal(dim1=-2, dim2=-1).argmax(dim=-1)
    row = torch.take_along_dim(table, best[..., None, None], dim=-2).squeeze(-2)
    unit = row / row.norm(dim=-1, keepdim=True)
    return torch.where(unit[..., 3:] < 0, -unit, unit)


def pose_encoding_to_extri_intri(
    pose_encoding: torch.Tensor, image_size_hw: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pose encodings [..., 9] -> extrinsics [..., 3, 4] (world to camera, OpenCV) and intrinsics [..., 3, 3] in pixels.

    `image_size_hw` is the (height, width) that the intrinsics shall fit.
    """
    height, width = image_size_hw
    rotation = quaternion_to_matrix(pose_encoding[..., 3:7])
    extrinsics = torch.cat([rotation, pose_encoding[..., :3, None]], dim=-1)
    tangent = torch.tan(pose_encoding[..., 7:9] / 2)
    zero, one = torch.zeros_like(tangent[..., 0]), torch.ones_like(tangent[..., 0])
    fy, fx = height / 2 / tangent[..., 0], width / 2 / tangent[..., 1]
    rows = [fx, zero, one * (width / 2), zero, fy, one * (height / 2), zero, zero, one]
    return extrinsics, torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def extri_intri_to_pose_encoding(
    extrinsics: torch.Tensor, intrinsics: torch.Tensor, image_size_hw: tuple[int, int]
) -> torch.Tensor:
    """The inverse of `pose_encoding_to_extri_intri`; extrinsics may be [..., 3, 4] or [..., 4, 4].

    The principal point of `intrinsics` has no place in the encoding and is dropped.
    """
    height, width = image_size_hw
    fov = [
        2 * torch.atan(height / 2 / intrinsics[..., 1, 1]),
        2 * torch.atan(width / 2 / intrinsics[..., 0, 0]),
    ]
    quaternion = matrix_to_quaternion(extrinsics[..., :3, :3])
    return torch.cat([extrinsics[..., :3, 3], quaternion, torch.stack(fov, dim=-1)], dim=-1)
