"""Splatting by gsplat (Ye et al. 2024, arXiv:2409.06765) on a GPU.

Its "antialiased" mode is the opacity-compensated low-pass that the published renderer uses. It caps alpha at 0.999
instead of 0.99, which shows only inside nearly opaque splats.
"""

from __future__ import annotations

from typing import Any

import torch
from gsplat import rasterization
from torch import Tensor

_NEAR = 0.2  # camera z up to which centres are not drawn


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
    """See `gaussian_numba.splat`."""
    last_row = extrinsics.new_tensor([[0.0, 0.0, 0.0, 1.0]])
    image, alpha, _ = rasterization(
        means,
        quats,
        scales,
        opacities,
        colors,
        torch.cat([extrinsics, last_row])[None],
        intrinsics[None],
        width,
        height,
        near_plane=_NEAR,
        eps2d=kernel_size,
        render_mode="RGB+D",
        rasterize_mode="antialiased",
        packed=False,
    )  # [1, H, W, 4] and [1, H, W, 1]
    color = image[0, ..., :3] + (1 - alpha[0]) * background
    return color.permute(2, 0, 1), alpha[0].permute(2, 0, 1), image[0, ..., 3:].permute(2, 0, 1)


def self_test(device: Any) -> None:
    """Draw one Gaussian forwards and backwards; gsplat may compile its kernels here, which needs nvcc."""
    mean = torch.tensor([[0.0, 0.0, 2.0]], device=device, requires_grad=True)
    one = torch.ones(1, device=device)
    lens = torch.tensor([[16.0, 0, 8], [0, 16, 8], [0, 0, 1]], device=device)
    quat = torch.tensor([[1.0, 0, 0, 0]], device=device)
    rest = one.expand(1, 3) / 10, one / 2, one.expand(1, 3), torch.eye(4, device=device)[:3], lens, one.expand(3)
    splat(mean, quat, *rest, 16, 16, 0.1)[0].sum().backward()
