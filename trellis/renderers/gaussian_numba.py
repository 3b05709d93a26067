"""Splatting on the CPU with numba, the reference; tensors on another device are moved there and the images back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trellis.errors import InputError
from trellis.renderers import gaussian_projection_kernels as projection
from trellis.renderers import gaussian_raster_kernels as raster
from trellis.renderers.numba_runtime import exclusive

MAX_PAIRS = 100_000_000  # (Gaussian, tile) pairs; about 4 GB of gradients
_SHARES = 64  # the tiles are dealt into this many hands, which the threads divide among themselves
_GRADIENT_BLOCKS = 64  # partial sums of the camera's gradient


def splat(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    extrinsics: Tensor,
    intrinsics: Tensor,
    background: Tensor,
    height: int,
    width: int,
    kernel_size: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Color ``[3, H, W]``, alpha and depth ``[1, H, W]``; arguments as `gaussian_raster.render_gaussians` checked them.

    `extrinsics` is ``[3, 4]``; all tensors are float32 on one device, and gradients reach each of them.
    """
    lens = torch.stack([intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]])
    tensors = means, quats, scales, opacities, colors, extrinsics, lens, background
    local = (tensor.cpu().contiguous() for tensor in tensors)
    images = _Splat.apply(*local, height, width, kernel_size)
    return tuple(image.to(means.device) for image in images)


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
