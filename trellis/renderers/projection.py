"""4x4 view and projection matrices in the conventions of graphics APIs, from `Cameras`."""

from __future__ import annotations

import torch

from trellis.renderers.cameras import Cameras


def clip_projection(cameras: Cameras, near: float, far: float) -> torch.Tensor:
    """Camera to clip space with OpenCV axes, [N, 4, 4]: w = z, x and y (downwards) in [-1, 1], depth in [0, 1]."""
    k = cameras.normalised_intrinsics
    matrix = k.new_zeros(len(cameras), 4, 4)
    matrix[:, :2, :3] = 2 * k[:, :2, :3]
    matrix[:, :2, 2] -= 1
    matrix[:, 2, 2] = far / (far - near)
    matrix[:, 2, 3] = near * far / (near - far)
    matrix[:, 3, 2] = 1
    return matrix


def opengl_view(cameras: Cameras) -> torch.Tensor:
    """World to camera with OpenGL axes (x right, y up, z backward), [N, 4, 4]."""
    flip = cameras.extrinsics.new_tensor([1, -1, -1, 1])
    return flip[:, None] * cameras.extrinsics


def opengl_perspective(cameras: Cameras, near: float, far: float) -> torch.Tensor:
    """OpenGL camera axes to clip space, [N, 4, 4]: w = -z, y upwards, depth in [-1, 1]."""
    k = cameras.normalised_intrinsics
    matrix = k.new_zeros(len(cameras), 4, 4)
    matrix[:, 0, 0] = 2 * k[:, 0, 0]
    matrix[:, 1, 1] = 2 * k[:, 1, 1]
    matrix[:, 0, 2] = 1 - 2 * k[:, 0, 2]
    matrix[:, 1, 2] = 2 * k[:, 1, 2] - 1
    matrix[:, 2, 2] = (near + far) / (near - far)
    matrix[:, 2, 3] = 2 * near * far / (near - far)
    matrix[:, 3, 2] = -1
    return matrix
