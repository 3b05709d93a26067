"""Pinhole cameras: pose, intrinsics and image size in one immutable value.

Convention, everywhere in this package unless a docstring says otherwise: OpenCV camera axes (x right, y down,
z forward), extrinsics map world to camera, intrinsics are in pixels of the stated image, and pixel (row i, column j)
has its centre at (x, y) = (j + 0.5, i + 0.5). The world is the object frame, right-handed with z up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from trellis.errors import InputError

_ROTATION_TOLERANCE = 1e-3
_FULL_TURN = 2 * 3.1415  # the recorded turntables of the published model use this rounded value


@dataclass(frozen=True, eq=False)
class Cameras:
    """N cameras. Validated once, at construction; tensors may carry gradients.

    Attributes:
        extrinsics: [N, 4, 4] float, world to camera, OpenCV axes, rigid (no scale, no shear).
        intrinsics: [N, 3, 3] float, pixels, no skew, on the same device and of the same dtype as `extrinsics`.
        image_size: [N, 2] int64, (height, width) in pixels. Always on the CPU, because it shapes tensors.

    Raises:
        InputError: a shape, a value or a combination that is not a camera; the message names the first bad one.
    """

    extrinsics: torch.Tensor
    intrinsics: torch.Tensor
    image_size: torch.Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", _checked_image_size(self.image_size))
        _check_matrices(self.extrinsics, self.intrinsics, len(self.image_size))

    @classmethod
    def from_normalised(cls, extrinsics: torch.Tensor, intrinsics: torch.Tensor, image_size: torch.Tensor) -> Cameras:
        """Cameras from intrinsics in units of the image size (fx / width, fy / height, centre 0.5), [N, 3, 3]."""
        image_size = _checked_image_size(image_size)
        if intrinsics.shape != (len(image_size), 3, 3):
            raise InputError(f"Intrinsics must be [{len(image_size)}, 3, 3], but came as {list(intrinsics.shape)}.")
        return cls(extrinsics, intrinsics * _pixel_scale(image_size).to(intrinsics), image_size)

    @classmethod
    def cat(cls, cameras: Sequence[Cameras]) -> Cameras:
        """All cameras of the given groups, in order."""
        if not cameras:
            raise InputError("At least one group of cameras is needed to concatenate.")
        names = ("extrinsics", "intrinsics", "image_size")
        return cls(*(torch.cat([getattr(group, name) for group in cameras]) for name in names))

    def __len__(self) -> int:
        return len(self.extrinsics)

    def __getitem__(self, index: int | slice | Sequence[int] | torch.Tensor) -> Cameras:
        """A subset, always as `Cameras`: an integer gives one camera with N = 1."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"Camera {index} of {len(self)}.")
            index = [index]
        size_index = index.cpu() if isinstance(index, torch.Tensor) else index
        return Cameras(self.extrinsics[index], self.intrinsics[index], self.image_size[size_index])

    def __iter__(self) -> Iterator[Cameras]:
        return (self[i] for i in range(len(self)))

    @property
    def device(self) -> torch.device:
        return self.extrinsics.device

    @property
    def rotations(self) -> torch.Tensor:
        """World-to-camera rotations, [N, 3, 3]."""
        return self.extrinsics[:, :3, :3]

    @property
    def translations(self) -> torch.Tensor:
        """World-to-camera translations, [N, 3]."""
        return self.extrinsics[:, :3, 3]

    @property
    def centers(self) -> torch.Tensor:
        """Optical centres in the world, [N, 3]."""
        return -(self.rotations.transpose(1, 2) @ self.translations.unsqueeze(-1)).squeeze(-1)

    @property
    def directions(self) -> torch.Tensor:
        """Unit viewing directions (camera +z) in the world, [N, 3]."""
        return self.extrinsics[:, 2, :3]

    @property
    def normalised_intrinsics(self) -> torch.Tensor:
        """Intrinsics in units of the image size, [N, 3, 3]; the inverse of `from_normalised`."""
        return self.intrinsics / _pixel_scale(self.image_size).to(self.intrinsics)

    @property
    def fields_of_view(self) -> torch.Tensor:
        """(vertical, horizontal) opening angles in radians, [N, 2], of an image centred on the principal point."""
        focal = torch.stack([self.intrinsics[:, 1, 1], self.intrinsics[:, 0, 0]], dim=1)
        return 2 * torch.atan(self.image_size.to(focal) / (2 * focal))

    def height_width(self, index: int) -> tuple[int, int]:
        """Image size of one camera as plain integers."""
        height, width = self.image_size[index].tolist()
        return height, width

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Cameras:
        """A copy on another device or in another floating dtype. The image sizes stay on the CPU."""
        move = {key: value for key, value in (("device", device), ("dtype", dtype)) if value is not None}
        return Cameras(self.extrinsics.to(**move), self.intrinsics.to(**move), self.image_size)

    def scaled(self, height: int, width: int) -> Cameras:
        """The same views on images resized to (height, width); exact, since pixel centres sit at half integers."""
        target = torch.tensor([[height, width]]).expand(len(self), 2)
        return Cameras.from_normalised(self.extrinsics, self.normalised_intrinsics, target.clone())


def look_at(eyes: torch.Tensor, target: torch.Tensor | None = None, up: torch.Tensor | None = None) -> torch.Tensor:
    """Extrinsics of cameras at `eyes` that see `target` at the image centre with `up` upwards.

    Args:
        eyes: [N, 3] camera centres in the world.
        target: [3], default the origin.
        up: [3], default +z. Looking exactly along it, the image's upward direction becomes +y (for up = z).

    Returns:
        [N, 4, 4] world-to-camera matrices, OpenCV axes, in the dtype of `eyes`.
    """
    target = eyes.new_zeros(3) if target is None else target.to(eyes)
    up = eyes.new_tensor([0.0, 0.0, 1.0]) if up is None else up.to(eyes)
    forward = F.normalize(target - eyes, dim=-1)
    if bool((forward.norm(dim=-1) < 0.5).any()):
        raise InputError("A camera sits on the point that it should look at; move the eye or the target.")
    right = torch.linalg.cross(forward, up.expand_as(forward))
    substitute = torch.linalg.cross(forward, up.roll(-1).expand_as(forward))
    # Only an exactly zero product has no direction: a tiny one still fixes the roll, and recorded views rely on it.
    right = F.normalize(torch.where(right.norm(dim=-1, keepdim=True) > 0, right, substitute), dim=-1)
    down = torch.linalg.cross(forward, right)
    rotation = torch.stack([right, down, forward], dim=1)
    extrinsics = torch.eye(4, dtype=eyes.dtype, device=eyes.device).repeat(len(eyes), 1, 1)
    extrinsics[:, :3, :3] = rotation
    extrinsics[:, :3, 3] = -(rotation @ eyes.unsqueeze(-1)).squeeze(-1)
    return extrinsics


def orbit(
    yaw: torch.Tensor,
    pitch: torch.Tensor,
    radius: float = 2.0,
    fov: float = 40.0,
    size: int | tuple[int, int] = 512,
) -> Cameras:
    """Cameras on a sphere around the origin, looking inwards, z up.

    The eye is radius * (sin yaw cos pitch, cos yaw cos pitch, sin pitch): yaw 0 stands on +y, pitch pi/2 above.

    Args:
        yaw: [N] radians.
        pitch: [N] radians.
        radius: distance to the origin, positive.
        fov: opening angle in degrees across the shorter image side, in (0, 180).
        size: side of a square image, or (height, width), in pixels.
    """
    if not radius > 0:
        raise InputError(f"The orbit radius must be positive, but is {radius}.")
    if not 0 < fov < 180:
        raise InputError(f"The field of view must lie between 0 and 180 degrees, but is {fov}.")
    height, width = (size, size) if isinstance(size, int) else size
    # float32 throughout: straight above or below, the roll is decided by the rounding of cos(pitch).
    yaw, pitch = yaw.float(), pitch.float()
    eyes = radius * torch.stack([yaw.sin() * pitch.cos(), yaw.cos() * pitch.cos(), pitch.sin()], dim=-1)
    focal = 0.5 * min(height, width) / math.tan(math.radians(fov) / 2)
    intrinsics = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=eyes.dtype)
    count = len(eyes)
    return Cameras(
        look_at(eyes),
        intrinsics.to(eyes.device).repeat(count, 1, 1),
        torch.tensor([[height, width]]).repeat(count, 1),
    )


def turntable(
    num_frames: int = 120, radius: float = 2.0, fov: float = 40.0, size: int | tuple[int, int] = 512
) -> Cameras:
    """The preview orbit: one turn in yaw, both ends included, with the pitch swaying around 0.25 radians by 0.5."""
    angle = torch.linspace(0, _FULL_TURN, num_frames)
    return orbit(angle, 0.25 + 0.5 * angle.sin(), radius, fov, size)


def hammersley(num_views: int, radius: float = 2.0, fov: float = 40.0, size: int | tuple[int, int] = 512) -> Cameras:
    """`num_views` cameras spread evenly over the sphere, the first straight below; see `hammersley_yaw_pitch`."""
    yaw, pitch = hammersley_yaw_pitch(num_views).unbind(dim=1)
    return orbit(yaw, pitch, radius, fov, size)


def hammersley_yaw_pitch(num_views: int) -> torch.Tensor:
    """Low-discrepancy (yaw, pitch) in radians, [num_views, 2] float64 (Hammersley 1960; equal areas, not equal angles).

    yaw = 2 pi v and pitch = arccos(1 - 2u) - pi/2, with u = k / num_views and v the bit-reversed fraction of k.
    """
    if num_views < 1:
        raise InputError(f"At least one view is needed, but {num_views} were asked for.")
    k = torch.arange(num_views)
    yaw = 2 * math.pi * _bit_reversed_fraction(k)
    pitch = torch.acos(1 - 2 * k.double() / num_views) - math.pi / 2
    return torch.stack([yaw, pitch], dim=1)


def _bit_reversed_fraction(k: torch.Tensor) -> torch.Tensor:
    """Van der Corput sequence in base 2: the binary digits of k mirrored behind the point, float64."""
    fraction = torch.zeros(k.shape, dtype=torch.float64)
    weight = 0.5
    while bool((k > 0).any()):
        fraction += weight * (k % 2)
        k = k // 2
        weight /= 2
    return fraction


def _pixel_scale(image_size: torch.Tensor) -> torch.Tensor:
    """Factors from normalised to pixel intrinsics, [N, 3, 1]."""
    height, width = image_size.unbind(dim=1)
    return torch.stack([width, height, torch.ones_like(width)], dim=1).unsqueeze(-1)


def _checked_image_size(image_size: torch.Tensor) -> torch.Tensor:
    if not isinstance(image_size, torch.Tensor) or image_size.ndim != 2 or image_size.shape[1] != 2:
        came = list(image_size.shape) if isinstance(image_size, torch.Tensor) else type(image_size).__name__
        raise InputError(f"Image sizes must be an integer tensor [N, 2] of (height, width), but came as {came}.")
    if len(image_size) == 0:
        raise InputError("At least one camera is needed, but none came.")
    if image_size.is_floating_point() or image_size.dtype == torch.bool:
        raise InputError(f"Image sizes must be integers, but came as {image_size.dtype}.")
    if bool((image_size < 1).any()):
        raise InputError(f"Image sizes must be at least one pixel, but one is {image_size.min().item()}.")
    return image_size.detach().to("cpu", torch.int64)


def _check_matrices(extrinsics: torch.Tensor, intrinsics: torch.Tensor, count: int) -> None:
    for name, matrix, size in (("Extrinsics", extrinsics, 4), ("Intrinsics", intrinsics, 3)):
        if not isinstance(matrix, torch.Tensor) or matrix.shape != (count, size, size):
            came = list(matrix.shape) if isinstance(matrix, torch.Tensor) else type(matrix).__name__
            raise InputError(f"{name} must be a tensor [{count}, {size}, {size}] (one per image size), not {came}.")
        if not matrix.is_floating_point():
            raise InputError(f"{name} must be floating point, but came as {matrix.dtype}.")
        if not bool(torch.isfinite(matrix).all()):
            raise InputError(f"{name} hold a value that is not finite.")
    if extrinsics.device != intrinsics.device or extrinsics.dtype != intrinsics.dtype:
        raise InputError(
            "Extrinsics and intrinsics must share device and dtype, but are "
            f"{extrinsics.device} {extrinsics.dtype} and {intrinsics.device} {intrinsics.dtype}."
        )
    extrinsics, intrinsics = extrinsics.detach(), intrinsics.detach()
    rotation = extrinsics[:, :3, :3]
    identity = torch.eye(3, dtype=rotation.dtype, device=rotation.device)
    error = (rotation @ rotation.transpose(1, 2) - identity).abs().amax(dim=(1, 2))
    worst = int(error.argmax())
    if float(error[worst]) > _ROTATION_TOLERANCE:
        raise InputError(
            f"The rotation of camera {worst} is not orthonormal (off by {float(error[worst]):.2g}); "
            "extrinsics must be rigid, so move any scale into the world."
        )
    if bool((torch.linalg.det(rotation.double()) < 0).any()):
        raise InputError("A rotation is a reflection (determinant -1); check the handedness of the camera axes.")
    if not torch.equal(extrinsics[:, 3], identity.new_tensor([0, 0, 0, 1]).expand(count, 4)):
        raise InputError("The last row of every extrinsic matrix must be (0, 0, 0, 1).")
    focal = torch.stack([intrinsics[:, 0, 0], intrinsics[:, 1, 1]])
    if bool((focal <= 0).any()):
        raise InputError(f"Focal lengths must be positive, but one is {focal.min().item():.6g} pixels.")
    zeros = torch.stack([intrinsics[:, 0, 1], intrinsics[:, 1, 0], intrinsics[:, 2, 0], intrinsics[:, 2, 1]])
    if bool((zeros != 0).any()) or bool((intrinsics[:, 2, 2] != 1).any()):
        raise InputError("Intrinsics must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels, without skew.")
