"""Differentiable splatting of 3D Gaussians on the CPU.

The image model is that of the published renderer (Kerbl et al. 2023 with the Mip-Splatting low-pass of Yu et al.
2024): EWA projection, `kernel_size` pixels^2 added to the screen covariance with the opacity lowered in proportion,
alpha capped at 0.99 and dropped below 1/255, front-to-back blending in order of the centres' depth until less than
1e-4 of the light would pass, centres at depth 0.2 or nearer not drawn.

Gradients are exact for that model with the discrete decisions (order, caps, cut-offs) held fixed, and bit-identical
from run to run.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from trellis.errors import InputError
from trellis.renderers import gaussian_projection_kernels as projection
from trellis.renderers import gaussian_raster_kernels as raster
from trellis.renderers.cameras import Cameras
from trellis.renderers.numba_runtime import exclusive
from trellis.representations.gaussian import Gaussian

KERNEL_SIZE = 0.1  # pixels^2
MAX_IMAGE_SIDE = 16_384
MAX_PAIRS = 100_000_000  # (Gaussian, tile) pairs; about 4 GB of gradients
_SHARES = 64  # the tiles are dealt into this many hands, which the threads divide among themselves
_GRADIENT_BLOCKS = 64  # partial sums of the camera's gradient


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
        float32 images on the device of `means` (the work is done on the CPU wherever the tensors live).

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
    inputs = {name: tensor.to("cpu", torch.float32).contiguous() for name, tensor in inputs.items()}
    _check_values(inputs)
    intrinsics = inputs.pop("intrinsics")
    lens = torch.stack([intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]])
    background = inputs.pop("background")
    color, alpha, depth = _Splat.apply(*inputs.values(), lens, background, height, width, float(kernel_size))
    return GaussianImage(*(image.to(means.device) for image in (color, alpha, depth)))


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


class _Splat(torch.autograd.Function):
    """The kernels as one differentiable operation on contiguous float32 CPU tensors."""

    @staticmethod
    def forward(ctx, means, quats, scales, opacities, colors, pose, lens, background, height, width, kernel_size):
        gaussians = [tensor.detach().numpy() for tensor in (means, quats, scales, opacities, colors)]
        count = len(means)
        splats = np.zeros((count, projection.SPLAT_COLUMNS), dtype=np.float32)
        bounds = np.empty((count, 4), dtype=np.int32)
        color = torch.empty(3, height, width)
        alpha = torch.empty(1, height, width)
        depth = torch.empty(1, height, width)
        with exclusive():
            view = (pose.detach().numpy(), lens.detach().numpy(), height, width, kernel_size)
            projection.project_forward(*gaussians, *view, splats, bounds)
            offsets = raster.row_offsets(bounds)
            pairs = int(offsets[-1])
            if pairs > MAX_PAIRS:
                raise InputError(
                    f"The Gaussians cover {pairs} image tiles in total, more than the {MAX_PAIRS} that are drawn at "
                    "once; check their scales, or render a smaller image."
                )
            order = raster.depth_order(splats[:, projection.DEPTH], bounds)
            members, starts = raster.tile_lists(order, bounds, height, width, pairs)
            raster.composite_forward(
                splats,
                bounds,
                members,
                starts,
                background.detach().numpy(),
                color.numpy(),
                alpha[0].numpy(),
                depth[0].numpy(),
                _SHARES,
            )
        ctx.save_for_backward(means, quats, scales, opacities, colors, pose, lens, background, color, alpha, depth)
        ctx.lists = (splats, bounds, members, starts, offsets)
        ctx.kernel_size = kernel_size
        return color, alpha, depth

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_color, grad_alpha, grad_depth):
        means, quats, scales, opacities, colors, pose, lens, background, *images = ctx.saved_tensors
        color, alpha, depth = images
        splats, bounds, members, starts, offsets = ctx.lists
        height, width = alpha.shape[1:]
        grad_color, grad_alpha, grad_depth = (grad.contiguous() for grad in (grad_color, grad_alpha, grad_depth))
        pair_gradients = np.zeros((int(offsets[-1]), raster.GRADIENT_COLUMNS), dtype=np.float32)
        grad_splats = np.empty((len(means), raster.GRADIENT_COLUMNS), dtype=np.float32)
        grads = [torch.zeros_like(tensor) for tensor in (means, quats, scales, opacities, colors)]
        grad_camera = np.zeros((_GRADIENT_BLOCKS, 16))
        with exclusive():
            raster.composite_backward(
                splats,
                bounds,
                members,
                starts,
                offsets,
                color.numpy(),
                alpha[0].numpy(),
                depth[0].numpy(),
                grad_color.numpy(),
                grad_alpha[0].numpy(),
                grad_depth[0].numpy(),
                pair_gradients,
                _SHARES,
            )
            raster.sum_pairs(pair_gradients, offsets, grad_splats)
            projection.project_backward(
                *(tensor.detach().numpy() for tensor in (means, quats, scales, opacities, pose, lens)),
                height,
                width,
                ctx.kernel_size,
                bounds,
                grad_splats,
                *(grad.numpy() for grad in grads),
                grad_camera,
            )
        camera = torch.from_numpy(grad_camera.sum(axis=0)).float()
        grad_background = (grad_color * (1 - alpha)).sum(dim=(1, 2)) if ctx.needs_input_grad[7] else None
        return *grads, camera[:12].reshape(3, 4), camera[12:], grad_background, None, None, None


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
    """Refuse what the kernels cannot draw, naming the first bad entry. `inputs` are float32 CPU tensors."""
    inputs = {name: tensor.detach() for name, tensor in inputs.items()}
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
    if len(quats) and bool((quats == 0).all(dim=1).any()):
        index = int(torch.nonzero((quats == 0).all(dim=1))[0])
        raise InputError(f"quats[{index}] is zero, which is no rotation.")
    opacities = inputs["opacities"]
    if len(opacities) and (opacities.min() < 0 or opacities.max() > 1):
        low, high = opacities.min().item(), opacities.max().item()
        raise InputError(f"Opacities must lie in [0, 1], but range from {low:.4g} to {high:.4g}.")
    scales = inputs["scales"]
    if len(scales) and scales.min() < 0:
        raise InputError(f"Scales must not be negative, but the smallest is {scales.min().item():.4g}.")
