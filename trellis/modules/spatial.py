"""Rearrangements between voxel grids, patches and channels."""

from __future__ import annotations

from torch import Tensor


def _check_divisible(shape: tuple[int, ...], patch_size: int) -> None:
    if any(size % patch_size for size in shape):
        raise ValueError(f"A grid of {list(shape)} voxels cannot be cut into patches of {patch_size}.")


def patchify(x: Tensor, patch_size: int) -> Tensor:
    """`[B, C, X, Y, Z] -> [B, C * p^3, X/p, Y/p, Z/p]`; a channel splits as (c, dx, dy, dz)."""
    p = patch_size
    _check_divisible(tuple(x.shape[2:]), p)
    x = x.unflatten(4, (-1, p)).unflatten(3, (-1, p)).unflatten(2, (-1, p))  # [B, C, X', p, Y', p, Z', p]
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def unpatchify(x: Tensor, patch_size: int) -> Tensor:
    """`[B, C * p^3, X, Y, Z] -> [B, C, X * p, Y * p, Z * p]`, the inverse of `patchify`."""
    p = patch_size
    if x.shape[1] % p**3:
        raise ValueError(f"{x.shape[1]} channels do not hold patches of {p}^3 voxels.")
    x = x.unflatten(1, (-1, p, p, p)).permute(0, 1, 5, 2, 6, 3, 7, 4)  # [B, C, X, p, Y, p, Z, p]
    return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def pixel_shuffle_3d(x: Tensor, scale_factor: int) -> Tensor:
    """Trade channels for resolution, after Shi et al. 2016: `[B, C * s^3, X, Y, Z] -> [B, C, X * s, Y * s, Z * s]`."""
    return unpatchify(x, scale_factor)
