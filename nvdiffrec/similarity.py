"""A change of frame and scale, and what it does to cameras."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trellis.renderers.cameras import Cameras


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
