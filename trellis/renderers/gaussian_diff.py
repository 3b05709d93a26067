"""Splatting by diff-gaussian-rasterization in its Mip-Splatting form, which the published checkpoints were made with.

It draws three colours and nothing else, so alpha and depth are a second pass. It has no gradient for the camera. Its
licence allows research and evaluation only, hence it is used by name alone.
"""

from __future__ import annotations

import torch
from diff_gaussian_rasterization import GaussianRasterizationSettings, GaussianRasterizer
from torch import Tensor

from trellis.errors import InputError

_NEAR, _FAR = 0.01, 100.0  # of the projection; what is drawn is decided by depth alone


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
    """See `gaussian_numba.splat`.

    Raises:
        InputError: a gradient for the camera is wanted.
    """
    if torch.is_grad_enabled() and (extrinsics.requires_grad or intrinsics.requires_grad):
        raise InputError("diff-gaussian-rasterization has no gradient for cameras; choose gsplat or numba for that.")
    view = torch.cat([extrinsics, extrinsics.new_tensor([[0.0, 0.0, 0.0, 1.0]])])
    rasterizer_of = _rasterizers(view, intrinsics, height, width, kernel_size)
    normalised = torch.nn.functional.normalize(quats, dim=1)

    def draw(values: Tensor, behind: Tensor) -> Tensor:
        image, _ = rasterizer_of(behind)(
            means3D=means,
            means2D=torch.zeros_like(means, requires_grad=True),
            shs=None,
            colors_precomp=values,
            opacities=opacities[:, None],
            scales=scales,
            rotations=normalised,
            cov3D_precomp=None,
        )
        return image

    ones = torch.ones_like(opacities)
    depth = (means @ view[2, :3] + view[2, 3])[:, None]
    extra = draw(torch.cat([ones[:, None], depth, torch.zeros_like(depth)], dim=1), torch.zeros_like(background))
    return draw(colors, background), extra[:1], extra[1:2]


def _rasterizers(view: Tensor, intrinsics: Tensor, height: int, width: int, kernel_size: float):
    """Background -> rasterizer for one camera. Matrices are transposed, as the package reads them by columns."""
    fx, fy, cx, cy = (float(intrinsics[i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    projection = view.new_tensor(
        [
            [2 * fx / width, 0, 2 * cx / width - 1, 0],
            [0, 2 * fy / height, 2 * cy / height - 1, 0],
            [0, 0, _FAR / (_FAR - _NEAR), -_FAR * _NEAR / (_FAR - _NEAR)],
            [0, 0, 1, 0],
        ]
    )

    def rasterizer(background: Tensor) -> GaussianRasterizer:
        return GaussianRasterizer(
            GaussianRasterizationSettings(
                image_height=height,
                image_width=width,
                tanfovx=width / (2 * fx),
                tanfovy=height / (2 * fy),
                kernel_size=kernel_size,
                subpixel_offset=torch.zeros(height, width, 2, device=view.device),
                bg=background,
                scale_modifier=1.0,
                viewmatrix=view.T.contiguous(),
                projmatrix=(projection @ view).T.contiguous(),
                sh_degree=0,
                campos=-view[:3, :3].T @ view[:3, 3],
                prefiltered=False,
                debug=False,
            )
        )

    return rasterizer
