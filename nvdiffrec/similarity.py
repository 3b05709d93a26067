"""A change of frame and scale: what it does to cameras, and which one lies between two sets of cameras."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from trellis.errors import InputError
from trellis.renderers.cameras import Cameras

_ROUNDS = 30  # of reweighting, for the median of rotations
_LEAST_ANGLE = 1e-3  # radians; one that agrees better has no more say
_USUAL_ANGLE = 0.2  # radians; views that agree much worse have little say in where all look
_LEAST_WEIGHT = 0.1
_PARALLEL = 2e-4  # of the mean square sine between directions of view: about a degree


def moved(extrinsics: Tensor, rotation: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Extrinsics [..., 4, 4] after the world went through a similarity; depths grow with its scale."""
    turned = extrinsics[..., :3, :3] @ rotation.T
    translation = scale * extrinsics[..., :3, 3] - turned @ shift
    top = torch.cat([turned, translation[..., None]], dim=-1)
    return torch.cat([top, top.new_tensor([0, 0, 0, 1]).expand(*top.shape[:-2], 1, 4)], dim=-2)


@dataclass(frozen=True)
class Similarity:
    """asset = scale * rotation @ world + shift. rotation: [3, 3]; shift: [3]."""

    rotation: Tensor
    scale: float
    shift: Tensor

    def apply(self, cameras: Cameras) -> Cameras:
        """The same cameras in the asset's frame."""
        return Cameras(moved(cameras.extrinsics, self.rotation, torch.tensor(self.scale), self.shift),
                       cameras.intrinsics, cameras.image_size)  # fmt: skip


IDENTITY = Similarity(torch.eye(3), 1.0, torch.zeros(3))


@dataclass(frozen=True, eq=False)
class Alignment:
    """similarity: from the one world to the other. angles: [N] degrees by which the directions of each view still
    differ. shifts: [N] distances between the two places of each, in parts of the distance to what all look at."""

    similarity: Similarity
    angles: Tensor
    shifts: Tensor


def similarity_between(cameras: Cameras, reference: Cameras) -> Alignment:
    """The similarity that brings cameras nearest to other cameras of the same N pictures, which may be rough.

    Its rotation is the median of those that the views state (Hartley et al. 2011, L1 rotation averaging), so that a few
    wrong ones do not decide. Scale and shift follow from the point in the middle of all pictures: it must be the same
    in both worlds and, in the median, look as large. The distances between the centres, which Umeyama's method takes
    for that, suffer from every wrong direction and from a wrong focal length; these do not.

    Of one view the place is kept, and its distance such that what it shows looks as large.

    Raises InputError if all look in the same direction, which leaves the scale open.
    """
    facing, target = _facing(cameras), _facing(reference)
    turns = Rotation.from_matrix((target.rotations.mT @ facing.rotations).numpy())
    middle = _median(turns)
    angles = torch.from_numpy((middle.inv() * turns).magnitude())
    rotation = torch.from_numpy(middle.as_matrix())
    weights = (1 / (1 + (angles / _USUAL_ANGLE).square())).clamp(min=_LEAST_WEIGHT)
    if len(cameras) == 1:  # its picture's middle, as far away as the origin of the reference is
        distance = target.centers.norm(dim=1, keepdim=True)
        seen, meant = (side.centers + distance * side.rotations[:, 2] for side in (facing, target))
        seen, meant = seen[0], meant[0]
    else:
        seen, meant = _looked_at(facing, torch.ones_like(weights)), _looked_at(target, weights)
    away, wanted = (side.centers - point for side, point in ((facing, seen), (target, meant)))
    sizes = facing.focals / target.focals * wanted.norm(dim=1) / away.norm(dim=1).clamp(min=1e-9)
    scale = float(sizes.quantile(0.5))
    shift = meant - scale * rotation @ seen
    moved_centers = scale * facing.centers @ rotation.T + shift
    shifts = (moved_centers - target.centers).norm(dim=1) / wanted.norm(dim=1).clamp(min=1e-9)
    found = Similarity(rotation.float(), scale, shift.float())
    return Alignment(found, angles.rad2deg().float(), shifts.float())


@dataclass(frozen=True, eq=False)
class _Facing:
    """Cameras turned to the middle of their pictures: rotations [N, 3, 3], centers [N, 3], focals [N] in parts of the
    picture there."""

    rotations: Tensor
    centers: Tensor
    focals: Tensor


def _facing(cameras: Cameras) -> _Facing:
    """A picture may be a part of a photograph, whose camera looks past it; estimates look at it."""
    intrinsics = cameras.normalised_intrinsics.double().cpu()
    focals = intrinsics[:, [0, 1], [0, 1]]
    rays = torch.cat([(0.5 - intrinsics[:, :2, 2]) / focals, focals.new_ones(len(focals), 1)], dim=1)
    lengths = rays.norm(dim=1)
    axis = torch.tensor([0.0, 0.0, 1.0], dtype=rays.dtype)
    cross = torch.cross(rays / lengths[:, None], axis.expand_as(rays), dim=1)
    sines = cross.norm(dim=1, keepdim=True)
    turns = Rotation.from_rotvec((cross / sines.clamp(min=1e-12) * torch.asin(sines.clamp(max=1))).numpy())
    rotations = torch.from_numpy(turns.as_matrix()) @ cameras.rotations.double().cpu()
    # Off its axis a lens draws larger: by the length of the ray across, by its square outwards.
    return _Facing(rotations, cameras.centers.double().cpu(), focals.prod(dim=1).sqrt() * lengths**1.5)


def _median(turns: Rotation) -> Rotation:
    """The rotation with the least sum of angles to all (Weiszfeld's iteration, from the best one among them)."""
    sums = [(turn.inv() * turns).magnitude().sum() for turn in turns]
    middle = turns[int(torch.tensor(sums).argmin())]
    for _ in range(_ROUNDS):
        angles = (middle.inv() * turns).magnitude().clip(min=_LEAST_ANGLE)
        middle = turns.mean(weights=1 / angles)
    return middle


def _looked_at(facing: _Facing, weights: Tensor) -> Tensor:
    """The point [3] nearest to all axes, in the sense of least squares."""
    axes = facing.rotations[:, 2]
    across = torch.eye(3, dtype=axes.dtype) - axes[:, :, None] * axes[:, None, :]
    matrix = (weights[:, None, None] * across).sum(0)
    if float(torch.linalg.eigvalsh(matrix / weights.sum())[0]) < _PARALLEL:
        raise InputError("All cameras look in the same direction, which does not say how large their frame is.")
    return torch.linalg.solve(matrix, (weights[:, None] * (across @ facing.centers[..., None])[..., 0]).sum(0))
