"""Small corrections of cameras: a rigid motion and a focal length per view, with a prior that keeps them small."""

from __future__ import annotations

import torch
from torch import Tensor

from trellis.renderers.cameras import Cameras

ROTATION_SPREAD = 0.05  # radians; how wrong a predicted camera is taken to be, one standard deviation
SHIFT_SPREAD = 0.05  # of the distance to the object
FOCAL_SPREAD = 0.02  # of the focal length


def corrected(cameras: Cameras, index: int, twist: Tensor, log_focal: Tensor) -> tuple[Tensor, Tensor]:
    """Extrinsics [4, 4] and intrinsics [3, 3] of one corrected view, differentiable in both corrections.

    Args:
        cameras, index: which view.
        twist: [6]; a rotation vector in radians (camera axes, about the origin of the object frame), and a shift in
            units of the distance to the origin. Turning about the object keeps the two nearly independent: a wrong
            direction of view does not also move the object out of the picture.
        log_focal: [] logarithm of the factor on the focal length. A longer lens also stands back by the same factor (a
            dolly zoom), so that it changes the perspective and not the size, which is the shift's to change: as one and
            the other alone they would be nearly the same, and neither would be found.
    """
    extrinsics = cameras.extrinsics[index]
    distance = extrinsics[:3, 3].norm().clamp(min=1e-6)
    factor = log_focal.exp()
    one = torch.ones_like(factor)
    scale = torch.stack([factor, factor, one])
    rotation = rotation_of(twist[:3]) @ extrinsics[:3, :3]
    translation = (extrinsics[:3, 3] + distance * twist[3:]) * torch.stack([one, one, factor])
    top = torch.cat([rotation, translation[:, None]], dim=1)
    return torch.cat([top, top.new_tensor([[0, 0, 0, 1]])]), _scaled_focal(cameras.intrinsics[index], scale)


def corrected_cameras(cameras: Cameras, twists: Tensor, log_focals: Tensor) -> Cameras:
    """All cameras with corrections [N, 6] and [N], without gradients."""
    with torch.no_grad():
        pairs = [corrected(cameras, index, twists[index], log_focals[index]) for index in range(len(cameras))]
        extrinsics, intrinsics = (torch.stack(column) for column in zip(*pairs, strict=True))
        return Cameras(extrinsics, intrinsics, cameras.image_size)


def prior(twists: Tensor, log_focals: Tensor) -> Tensor:
    """Mean squared correction in standard deviations."""
    return (
        (twists[:, :3] / ROTATION_SPREAD).square().mean()
        + (twists[:, 3:] / SHIFT_SPREAD).square().mean()
        + (log_focals / FOCAL_SPREAD).square().mean()
    )


def rotation_of(vector: Tensor) -> Tensor:
    """Rotation matrix [3, 3] of a rotation vector [3] (Rodrigues), with finite gradients at zero."""
    square = vector.square().sum()
    small = square < 1e-8
    angle = torch.where(small, torch.ones_like(square), square).sqrt()
    sine = torch.where(small, 1 - square / 6, angle.sin() / angle)
    versine = torch.where(small, 0.5 - square / 24, (1 - angle.cos()) / angle.square())
    x, y, z = vector.unbind()
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).view(3, 3)
    return torch.eye(3, dtype=vector.dtype, device=vector.device) + sine * cross + versine * cross @ cross


def pose_errors(cameras: Cameras, truth: Cameras) -> tuple[Tensor, Tensor, Tensor]:
    """Per view [N]: angle between the orientations in degrees, distance of the centres in parts of the true distance to
    the origin, and relative error of the focal length."""
    product = cameras.rotations.double() @ truth.rotations.double().transpose(1, 2)
    skew = torch.stack([product[:, 2, 1] - product[:, 1, 2], product[:, 0, 2] - product[:, 2, 0],
                        product[:, 1, 0] - product[:, 0, 1]], dim=1)  # fmt: skip
    cosine = (product.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2
    angle = torch.rad2deg(torch.atan2(skew.norm(dim=1) / 2, cosine))
    shift = (cameras.centers - truth.centers).norm(dim=1) / truth.centers.norm(dim=1)
    focal = (cameras.intrinsics[:, 0, 0] / truth.intrinsics[:, 0, 0] - 1).abs()
    return angle.float(), shift, focal


def _scaled_focal(intrinsics: Tensor, scale: Tensor) -> Tensor:
    focal = torch.diag(torch.diagonal(intrinsics) * scale)
    return focal + (intrinsics - torch.diag(torch.diagonal(intrinsics)))
