"""Differentiable splatting of 3D Gaussians.

The image model is that of the published renderer (Kerbl et al. 2023 with the Mip-Splatting low-pass of Yu et al.
2024): EWA projection, `kernel_size` pixels^2 added to the screen covariance with the opacity lowered in proportion,
alpha capped at 0.99 and dropped below 1/255, front-to-back blending in order of the centres' depth until less than
1e-4 of the light would pass, centres at depth 0.2 or nearer not drawn.

Gradients are exact for that model with the discrete decisions (order, caps, cut-offs) held fixed; those of the numba
backend are bit-identical from run to run.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from trellis import backends
from trellis.errors import InputError
from trellis.renderers.cameras import Cameras
from trellis.representations.gaussian import Gaussian

KERNEL_SIZE = 0.1  # pixels^2
MAX_IMAGE_SIDE = 16_384


class GaussianImage(NamedTuple):
    """A splatted view.

    Attributes:
        color: [3, H, W], background blended in; not clamped.
        alpha: [1, H, W] in [0, 1].
        depth: [1, H, W] camera z weighted by alpha. Divide by `alpha` for a distance.
    """

    color: torch.Tensor
    alpha: torch.Tensor
    depth: torch.Tensor


def render_gaussians(
    means: torch.Tensor,
    quats: torch.Tensor,
    scales: torch.Tensor,
    opacities: torch.Tensor,
    colors: torch.Tensor,
    extrinsics: torch.Tensor,
    intrinsics: torch.Tensor,
    height: int,
    width: int,
    background: torch.Tensor | None = None,
    kernel_size: float = KERNEL_SIZE,
) -> GaussianImage:
    """Splat G Gaussians into one view. Differentiable in every tensor.

    Args:
        means: [G, 3] centres in the world.
        quats: [G, 4] rotations, w first, any length but 0.
        scales: [G, 3] standard deviations along the local axes, world units, not negative.
        opacities: [G] in [0, 1].
        colors: [G, 3] RGB.
        extrinsics: [4, 4] or [3, 4] world to camera, OpenCV axes.
        intrinsics: [3, 3] in pixels, no skew; pixel (i, j) has its centre at (j + 0.5, i + 0.5).
        height, width: image size in pixels.
        background: [3] RGB behind everything, default black.
        kernel_size: variance of the screen-space low-pass, pixels^2.

    Returns:
        float32 images on the device of `means`. The backend (`trellis.backends`) of a GPU may differ from the model
        above in the last digits, and in the cap of alpha.

    Raises:
        InputError: a shape or value that cannot be drawn, or a scene that needs more memory than is sensible.
    """
    height, width = _checked_size(height, width)
    if not (np.isfinite(kernel_size) and kernel_size >= 0):
        raise InputError(f"The kernel size must be a finite variance in pixels^2, not {kernel_size}.")
    background = means.new_zeros(3) if background is None else background
    _check_shapes(means, quats, scales, opacities, colors, extrinsics, intrinsics, background)
    inputs = {
        "means": means,
        "quats": quats,
        "scales": scales,
        "opacities": opacities,
        "colors": colors,
        "extrinsics": extrinsics[:3],
        "intrinsics": intrinsics,
        "background": background,
    }
    inputs = {name: tensor.to(means.device, torch.float32) for name, tensor in inputs.items()}
    _check_values(inputs)
    splat = backends.of("gaussian_splatting", means.device).splat
    return GaussianImage(*splat(**inputs, height=height, width=width, kernel_size=float(kernel_size)))


def render(
    gaussian: Gaussian,
    cameras: Cameras,
    index: int = 0,
    background: torch.Tensor | None = None,
    supersample: int = 1,
    kernel_size: float = KERNEL_SIZE,
) -> GaussianImage:
    """Splat a Gaussian set into camera `index`, at the camera's own image size.

    Args:
        gaussian: the set; gradients reach its fields.
        cameras: views of the object frame.
        index: which of them.
        background: [3] RGB, default black.
        supersample: render this many times larger and reduce with an antialiased bilinear filter; the published
            previews use 4. The low-pass acts on the large image.
        kernel_size: see `render_gaussians`.
    """
    if not (isinstance(supersample, int) and supersample >= 1):
        raise InputError(f"Supersampling must be a whole number of at least 1, not {supersample}.")
    height, width = cameras.height_width(index)
    camera = cameras[index]
    if supersample > 1:
        camera = camera.scaled(height * supersample, width * supersample)
    image = render_gaussians(
        gaussian.get_xyz,
        gaussian.get_rotation,
        gaussian.get_scaling,
        gaussian.get_opacity[:, 0],
        gaussian.raw_color.clamp_min(0),
        camera.extrinsics[0],
        camera.intrinsics[0],
        *camera.height_width(0),
        background=background,
        kernel_size=kernel_size,
    )
    if supersample == 1:
        return image
    stacked = torch.cat(image)[None]
    reduced = F.interpolate(stacked, (height, width), mode="bilinear", align_corners=False, antialias=True)[0]
    return GaussianImage(*reduced.split([3, 1, 1]))


def warm_up() -> None:
    """Compile the kernels, or load them from the cache, by drawing one Gaussian forward and backward."""
    mean = torch.tensor([[0.0, 0.0, 2.0]], requires_grad=True)
    image = render_gaussians(
        mean,
        torch.tensor([[1.0, 0.0, 0.0, 0.0]]),
        torch.full((1, 3), 0.1),
        torch.tensor([0.5]),
        torch.ones(1, 3),
        torch.eye(4),
        torch.tensor([[32.0, 0, 16], [0, 32, 16], [0, 0, 1]]),
        32,
        32,
    )
    image.color.sum().backward()


def _checked_size(height: int, width: int) -> tuple[int, int]:
    if not (1 <= height <= MAX_IMAGE_SIDE and 1 <= width <= MAX_IMAGE_SIDE):
        raise InputError(f"An image of {height} x {width} cannot be drawn; sides range from 1 to {MAX_IMAGE_SIDE}.")
    return int(height), int(width)


def _check_shapes(means, quats, scales, opacities, colors, extrinsics, intrinsics, background) -> None:
    count = len(means)
    expected = {
        "means": (means, [(count, 3)]),
        "quats": (quats, [(count, 4)]),
        "scales": (scales, [(count, 3)]),
        "opacities": (opacities, [(count,)]),
        "colors": (colors, [(count, 3)]),
        "extrinsics": (extrinsics, [(4, 4), (3, 4)]),
        "intrinsics": (intrinsics, [(3, 3)]),
        "background": (background, [(3,)]),
    }
    for name, (tensor, shapes) in expected.items():
        if tuple(tensor.shape) not in shapes:
            wanted = " or ".join(str(list(shape)) for shape in shapes)
            raise InputError(f"The Gaussians' {name} must have the shape {wanted}, not {list(tensor.shape)}.")


def _check_values(inputs: dict[str, torch.Tensor]) -> None:
    """Refuse what the kernels cannot draw, naming the first bad entry. `inputs` are float32 tensors."""
    inputs = {name: tensor.detach() for name, tensor in inputs.items()}
    # One entry that is not finite makes the sum so. Looked at first: a sum is fast, and a device is waited for once.
    if not torch.stack([tensor.sum() for tensor in inputs.values()]).sum().isfinite():
        for name, tensor in inputs.items():
            if not bool(torch.isfinite(tensor).all()):
                position = torch.nonzero(~torch.isfinite(tensor))[0].tolist()
                raise InputError(f"{name}{position} is {tensor[tuple(position)].item()}; a scene must be finite.")
    intrinsics = inputs["intrinsics"]
    if intrinsics[0, 0] <= 0 or intrinsics[1, 1] <= 0:
        raise InputError("The focal lengths in the intrinsics must be positive, in pixels.")
    if intrinsics[0, 1] != 0:
        raise InputError(f"Skew is not supported, but the intrinsics have {intrinsics[0, 1].item():.4g} pixels of it.")
    quats = inputs["quats"]
    suspects = torch.nonzero(quats[:, 0] == 0)[:, 0]  # few; to compare all of all is slow
    zero = suspects[(quats[suspects] == 0).all(dim=1)]
    if len(zero):
        raise InputError(f"quats[{int(zero[0])}] is zero, which is no rotation.")
    opacities = inputs["opacities"]
    if len(opacities) and (opacities.min() < 0 or opacities.max() > 1):
        low, high = opacities.min().item(), opacities.max().item()
        raise InputError(f"Opacities must lie in [0, 1], but range from {low:.4g} to {high:.4g}.")
    scales = inputs["scales"]
    if len(scales) and scales.min() < 0:
        raise InputError(f"Scales must not be negative, but the smallest is {scales.min().item():.4g}.")
