"""A set of 3D Gaussians as the decoder emits it: raw fields, their activations, and the PLY file splat viewers read.

The splat model and its file layout are those of Kerbl et al., "3D Gaussian Splatting" (2023), with degree-0 spherical
harmonics only. The smallest scale is kept away from zero by adding a fixed kernel in quadrature, the 3D smoothing
filter of Yu et al., "Mip-Splatting" (2024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from os import PathLike

import numpy as np
import torch
import torch.nn.functional as F

from trellis.errors import InputError
from trellis.representations.gaussian_ply import read_splat_table, write_splat_table

SH_DC = 0.28209479177387814  # the constant spherical harmonic, 1 / (2 sqrt(pi))
FRAMES = ("object", "gltf")


def quaternion_to_matrix(quats: torch.Tensor) -> torch.Tensor:
    """Rotation matrices [..., 3, 3] of unit quaternions [..., 4], w first."""
    w, x, y, z = quats.unbind(-1)
    rows = (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


class Gaussian:
    """N anisotropic Gaussians in the object frame (right-handed, z up).

    The stored fields are raw network outputs and may carry gradients:
    `_xyz` [N, 3] in [0, 1] of `aabb`; `_features_dc` [N, 1, 3] harmonic coefficients; `_scaling` [N, 3];
    `_rotation` [N, 4], w first, an offset from the identity; `_opacity` [N, 1], a logit offset.
    The `get_*` properties are what a renderer needs.

    Args:
        aabb: six numbers, the lower corner and the size of the box that `_xyz` spans.
        sh_degree: only 0 (one colour per Gaussian, seen alike from everywhere) is supported.
        mininum_kernel_size: standard deviation added in quadrature to every scale. The spelling is that of the
            published checkpoints' configuration files, which name this argument.
        scaling_bias: the activated scale of a raw value of 0 (before the kernel is added).
        opacity_bias: the activated opacity of a raw value of 0.
        scaling_activation: "softplus" or "exp".
        device: where the constants live; the fields may be assigned from anywhere.
    """

    def __init__(
        self,
        aabb: Sequence[float],
        sh_degree: int = 0,
        mininum_kernel_size: float = 0.0,
        scaling_bias: float = 0.01,
        opacity_bias: float = 0.1,
        scaling_activation: str = "exp",
        device: str | torch.device = "cpu",
    ) -> None:
        if sh_degree != 0:
            raise InputError(f"Gaussians of spherical-harmonics degree {sh_degree} are not supported; use degree 0.")
        if scaling_activation not in ("exp", "softplus"):
            raise InputError(f"The scaling activation must be 'exp' or 'softplus', not {scaling_activation!r}.")
        if len(aabb) != 6:
            raise InputError(f"The box of a Gaussian set needs 6 numbers (corner, size), got {len(aabb)}.")
        self.sh_degree = sh_degree
        self.mininum_kernel_size = mininum_kernel_size
        self.scaling_activation = scaling_activation
        self.init_params = {
            "aabb": [float(value) for value in aabb],
            "sh_degree": sh_degree,
            "mininum_kernel_size": mininum_kernel_size,
            "scaling_bias": scaling_bias,
            "opacity_bias": opacity_bias,
            "scaling_activation": scaling_activation,
        }
        self.aabb = torch.tensor(self.init_params["aabb"], dtype=torch.float32, device=device)
        self.scale_bias = self._inverse_scaling(torch.tensor([scaling_bias], dtype=torch.float32, device=device))
        self.opacity_bias = torch.logit(torch.tensor([opacity_bias], dtype=torch.float32, device=device))
        self.rots_bias = torch.tensor([1.0, 0.0, 0.0, 0.0], device=device)
        self._xyz = torch.empty(0, 3, device=device)
        self._features_dc = torch.empty(0, 1, 3, device=device)
        self._scaling = torch.empty(0, 3, device=device)
        self._rotation = torch.empty(0, 4, device=device)
        self._opacity = torch.empty(0, 1, device=device)

    def __len__(self) -> int:
        return self._xyz.shape[0]

    @property
    def device(self) -> torch.device:
        return self.aabb.device

    def to(self, device: str | torch.device) -> Gaussian:
        """The same set on another device; fields keep their gradient history."""
        moved = Gaussian(**self.init_params, device=device)
        for name in ("_xyz", "_features_dc", "_scaling", "_rotation", "_opacity"):
            setattr(moved, name, getattr(self, name).to(device))
        return moved

    @property
    def get_xyz(self) -> torch.Tensor:
        """Centres [N, 3] in the object frame."""
        return self._xyz * self.aabb[None, 3:] + self.aabb[None, :3]

    @property
    def get_features(self) -> torch.Tensor:
        """Spherical-harmonics coefficients [N, 1, 3]."""
        return self._features_dc

    @property
    def get_color(self) -> torch.Tensor:
        """RGB [N, 3] clamped to [0, 1]; a splat itself may be brighter, which renderers keep (see `raw_color`)."""
        return self.raw_color.clamp(0, 1)

    @property
    def raw_color(self) -> torch.Tensor:
        """RGB [N, 3] as the harmonics give it, not clamped."""
        return self._features_dc[:, 0] * SH_DC + 0.5

    @property
    def get_scaling(self) -> torch.Tensor:
        """Standard deviations along the local axes [N, 3], object units."""
        raw = self._scaling + self.scale_bias
        scale = torch.exp(raw) if self.scaling_activation == "exp" else F.softplus(raw)
        return torch.sqrt(torch.square(scale) + self.mininum_kernel_size**2)

    @property
    def get_rotation(self) -> torch.Tensor:
        """Unit quaternions [N, 4], w first."""
        return F.normalize(self._rotation + self.rots_bias[None])

    @property
    def get_opacity(self) -> torch.Tensor:
        """Opacities [N, 1] in (0, 1)."""
        return torch.sigmoid(self._opacity + self.opacity_bias)

    def get_covariance(self, scaling_modifier: float = 1.0) -> torch.Tensor:
        """World covariances [N, 6], upper triangle row by row: xx xy xz yy yz zz."""
        factor = quaternion_to_matrix(self.get_rotation) * (scaling_modifier * self.get_scaling)[:, None, :]
        covariance = factor @ factor.transpose(1, 2)
        rows, columns = torch.triu_indices(3, 3, device=covariance.device)
        return covariance[:, rows, columns]

    # Setters take activated values; they are the inverses of the properties above.

    def from_xyz(self, xyz: torch.Tensor) -> None:
        """Set the centres [N, 3] given in the object frame."""
        self._xyz = (xyz - self.aabb[None, :3]) / self.aabb[None, 3:]

    def from_features(self, features: torch.Tensor) -> None:
        """Set the spherical-harmonics coefficients [N, 1, 3]."""
        self._features_dc = features

    def from_scaling(self, scales: torch.Tensor) -> None:
        """Set the standard deviations [N, 3]; values at or below the kernel size become (almost) zero before it."""
        inner = torch.sqrt(torch.clamp(torch.square(scales) - self.mininum_kernel_size**2, min=1e-14))
        self._scaling = self._inverse_scaling(inner) - self.scale_bias

    def from_rotation(self, quats: torch.Tensor) -> None:
        """Set the rotations [N, 4], w first, any non-zero length."""
        self._rotation = quats - self.rots_bias[None]

    def from_opacity(self, opacities: torch.Tensor) -> None:
        """Set the opacities [N, 1] in (0, 1)."""
        self._opacity = _logit(opacities) - self.opacity_bias

    def _inverse_scaling(self, scale: torch.Tensor) -> torch.Tensor:
        if self.scaling_activation == "exp":
            return torch.log(scale)
        return scale + torch.log(-torch.expm1(-scale))

    def save_ply(self, path: str | PathLike[str], frame: str = "object") -> None:
        """Write a binary splat PLY: logit opacity, log scale, unnormalised quaternion, zero normals.

        Args:
            path: the file to write; it is replaced in one step, never left half written.
            frame: "object" writes the axes as they are. "gltf" turns centres and orientations by
                (x, y, z) -> (x, z, -y), so that the file lies on the GLB and OBJ exported beside it.
        """
        with torch.no_grad():
            xyz = self.get_xyz
            quats = self._rotation + self.rots_bias[None]
            if _checked_frame(frame) == "gltf":
                xyz, quats = _turn(xyz, quats, to_gltf=True)
            parts = [
                xyz,
                torch.zeros_like(xyz),
                self._features_dc.flatten(1),
                _logit(self.get_opacity),
                torch.log(self.get_scaling),
                quats,
            ]
            table = torch.cat([part.detach().float().cpu() for part in parts], dim=1).numpy()
        write_splat_table(path, table)

    def load_ply(self, path: str | PathLike[str], frame: str = "object") -> None:
        """Replace the fields by those of a splat PLY written in the given frame (see `save_ply`).

        Raises:
            InputError: the file is not a binary little-endian splat PLY of degree 0, is cut short, is larger than
                any asset of ours could be, or holds values that are not finite.
        """
        _checked_frame(frame)
        table = torch.from_numpy(np.ascontiguousarray(read_splat_table(path))).to(self.device)
        xyz, _, features, opacity, log_scale, quats = table.split([3, 3, 3, 1, 3, 4], dim=1)
        if frame == "gltf":
            xyz, quats = _turn(xyz, quats, to_gltf=False)
        self.from_xyz(xyz)
        self.from_features(features.unflatten(1, (1, 3)).contiguous())
        self._opacity = opacity - self.opacity_bias
        self.from_scaling(torch.exp(log_scale))
        self.from_rotation(quats)


def _logit(probability: torch.Tensor) -> torch.Tensor:
    # Opacity saturates to exactly 0 or 1 in float32; keep the logit finite so that every reader can parse it.
    probability = probability.clamp(1e-12, 1 - 2**-24)
    return torch.log(probability / (1 - probability))


def _checked_frame(frame: str) -> str:
    if frame not in FRAMES:
        raise InputError(f"The frame of a splat file must be one of {FRAMES}, not {frame!r}.")
    return frame


def _turn(xyz: torch.Tensor, quats: torch.Tensor, to_gltf: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Quarter turn about x of centres [N, 3] and quaternions [N, 4]: z up -> y up, or back."""
    x, y, z = xyz.unbind(1)
    turned = torch.stack((x, z, -y) if to_gltf else (x, -z, y), dim=1)
    # Left product with the quaternion (c, s, 0, 0) of that turn; its length is 1, so unnormalised input keeps its own.
    c = math.sqrt(0.5)
    s = -c if to_gltf else c
    qw, qx, qy, qz = quats.unbind(1)
    return turned, torch.stack((c * qw - s * qx, c * qx + s * qw, c * qy - s * qz, c * qz + s * qy), dim=1)
