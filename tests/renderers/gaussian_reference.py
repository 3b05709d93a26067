"""A dense, readable splatting model in torch: every Gaussian at every pixel. For tests only; any floating dtype."""

from __future__ import annotations

import torch

from trellis.representations.gaussian import quaternion_to_matrix


def splat(means, quats, scales, opacities, colors, extrinsics, intrinsics, height, width, background, kernel_size=0.1):
    """Images (color [3, H, W], alpha [1, H, W], depth [1, H, W]) of G Gaussians; arguments as the renderer's."""
    focal_x, focal_y = intrinsics[0, 0], intrinsics[1, 1]
    centre_x, centre_y = intrinsics[0, 2], intrinsics[1, 2]
    rotation = extrinsics[:3, :3]
    x, y, z = (means @ rotation.T + extrinsics[:3, 3]).unbind(1)  # [G] each
    visible = torch.nonzero(z > 0.2)[:, 0]
    visible = visible[torch.argsort(z[visible], stable=True)]
    x, y, z = x[visible], y[visible], z[visible]
    opacities, colors = opacities[visible], colors[visible]

    # The perspective map's Jacobian, taken at a slope no farther out than 15 % of the image beyond its border.
    slope_x = torch.clamp(x / z, -(centre_x + 0.15 * width) / focal_x, (width - centre_x + 0.15 * width) / focal_x)
    slope_y = torch.clamp(y / z, -(centre_y + 0.15 * height) / focal_y, (height - centre_y + 0.15 * height) / focal_y)
    zero = torch.zeros_like(z)
    jacobian = torch.stack(
        [
            torch.stack([focal_x / z, zero, -focal_x * slope_x / z], dim=1),
            torch.stack([zero, focal_y / z, -focal_y * slope_y / z], dim=1),
        ],
        dim=1,
    )  # [G, 2, 3]
    unit = quats[visible] / quats[visible].norm(dim=1, keepdim=True)
    factor = jacobian @ rotation @ (quaternion_to_matrix(unit) * scales[visible][:, None, :])
    sharp = factor @ factor.transpose(1, 2)  # [G, 2, 2]
    wide = sharp + kernel_size * torch.eye(2, dtype=sharp.dtype)
    det_sharp, det_wide = torch.linalg.det(sharp), torch.linalg.det(wide)
    drawn = (det_sharp > 1e-6) & (det_wide > 1e-6)
    ratio = torch.where(drawn, det_sharp, 1.0) / (torch.where(drawn, det_wide, 1.0) + 1e-6)
    opacities = torch.where(drawn, opacities * torch.sqrt(ratio + 1e-6), 0.0)
    conic = torch.linalg.inv(torch.where(drawn[:, None, None], wide, torch.eye(2, dtype=wide.dtype)))

    rows = torch.arange(height, dtype=means.dtype) + 0.5
    columns = torch.arange(width, dtype=means.dtype) + 0.5
    dx = columns[None, None, :] - (focal_x * x / z + centre_x)[:, None, None]
    dy = rows[None, :, None] - (focal_y * y / z + centre_y)[:, None, None]
    a, b, c = (conic[:, i, j, None, None] for i, j in ((0, 0), (0, 1), (1, 1)))
    alphas = opacities[:, None, None] * torch.exp(-0.5 * (a * dx**2 + c * dy**2) - b * dx * dy)
    alphas = torch.where(alphas < 1 / 255, 0.0, alphas.clamp(max=0.99))  # [G, H, W]

    through = torch.ones(height, width, dtype=means.dtype)
    is_open = torch.ones(height, width, dtype=torch.bool)
    color = torch.zeros(3, height, width, dtype=means.dtype)
    depth = torch.zeros(height, width, dtype=means.dtype)
    for g in range(len(z)):
        passed = through * (1 - alphas[g])
        is_open = is_open & (passed >= 1e-4)
        weight = torch.where(is_open, through * alphas[g], 0.0)
        color = color + weight * colors[g][:, None, None]
        depth = depth + weight * z[g]
        through = torch.where(is_open, passed, through)
    color = color + through * background[:, None, None]
    return color, (1 - through)[None], depth[None]
