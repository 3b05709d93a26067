"""Several readings of the cameras of the same views, made into one.

VGGT places all views by the first one, so each view that is put first gives another reading. Their errors differ, and
what most of them say is nearer to the truth than one of them (figures: training/LOG.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from trellis.renderers.cameras import Cameras
from trellis.renderers.rotations import matrix_to_quaternion, quaternion_to_matrix

_SCALE = math.radians(10)  # of the errors that readings usually have
_ROUNDS = 20  # of weighing; what is left to change after them is far below the errors
_ENOUGH = 3  # readings that can outvote one


def first_views(count: int, readings: int) -> list[int]:
    """Which of `count` views to put first in each of at most so many readings: evenly chosen, from view 0 on.

    Two readings only differ, and do not say which is right: of two views there is one reading.
    """
    readings = min(count, readings)
    return [index * count // readings for index in range(readings)] if readings >= _ENOUGH else [0]


def combined(readings: Sequence[Cameras]) -> Cameras:
    """One camera per view out of readings of the same N views, in the frame of the first reading.

    Each reading is in an object frame, z up, that is turned about z by a view of its own. They are turned until view 0
    stands at azimuth 0 (on +y) in all of them, and each view's rotation is then the mean that counts a reading the
    less the farther it is from it. The search starts at the first reading: an object that looks alike from several
    sides has several such means, and this one stands where the structure, made from the first reading, will be.

    Distances, lenses and where the object stands in the picture are the first reading's: the others' are no better.
    """
    first = readings[0]
    if len(readings) == 1:
        return first
    rotations = _robust_mean(torch.stack([_facing(reading.rotations, reading.centers[0]) for reading in readings]))
    extrinsics = first.extrinsics.clone()
    extrinsics[:, :3, :3] = rotations
    turned = Cameras(extrinsics, first.intrinsics, first.image_size)
    extrinsics[:, :3, :3] = _facing(rotations, turned.centers[0])
    return Cameras(extrinsics, first.intrinsics, first.image_size)


def _facing(rotations: Tensor, center: Tensor) -> Tensor:
    """World-to-camera rotations [N, 3, 3] after the world is turned about z until a `center` [3] is at azimuth 0.

    A translation from world to camera is the same after such a turn.
    """
    s, c = F.normalize(center[:2], dim=0)
    zero, one = torch.zeros_like(s), torch.ones_like(s)
    turn = torch.stack([c, -s, zero, s, c, zero, zero, zero, one]).reshape(3, 3)
    return rotations @ turn.mT


def _robust_mean(rotations: Tensor) -> Tensor:
    """The mean [N, 3, 3] over readings [K, N, 3, 3], each weighed as by a Cauchy distribution of its distance.

    A mean of rotations is that of their quaternions, made a unit one (Markley et al. 2007, "Averaging quaternions");
    the weights follow from the mean and the mean from the weights (Holland and Welsch 1977).
    """
    quats = matrix_to_quaternion(rotations)
    mean = quats[0]
    for _ in range(_ROUNDS):
        cosine = (quats * mean).sum(dim=-1, keepdim=True)  # of half the angle; q and -q are one rotation
        weights = 1 / (1 + (1 - cosine.square()).clamp(min=0) / math.sin(_SCALE / 2) ** 2)
        mean = F.normalize((weights * torch.where(cosine < 0, -quats, quats)).sum(dim=0), dim=-1)
    return quaternion_to_matrix(mean)
