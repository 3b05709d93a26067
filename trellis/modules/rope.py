"""Rotary position embedding on an image grid (Su et al., RoFormer, arXiv:2104.09864; two axes as in CroCo v2).

The first half of a head's channels turns with the row, the second half with the column. Inside a half of width d,
channel j is paired with channel j + d/2 and the pair turns by `position * base ** (-2j / d)`.
"""

from __future__ import annotations

import torch

from trellis.modules.tables import cached_table

# Cosines and signed sines, each [P, head_dim].
RotaryTable = tuple[torch.Tensor, torch.Tensor]


def grid_positions(height: int, width: int, num_special: int = 0, device: torch.device | None = None) -> torch.Tensor:
    """Integer (row, column) of every token: `num_special` rows of (0, 0), then a row-major grid that starts at (1, 1).

    Returns:
        [num_special + height * width, 2] int64. A token at (0, 0) is not rotated.
    """
    rows = torch.arange(1, height + 1, device=device)
    columns = torch.arange(1, width + 1, device=device)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).reshape(-1, 2)
    return torch.cat([grid.new_zeros(num_special, 2), grid])


def rotary_table(positions: torch.Tensor, head_dim: int, base: float = 100.0) -> RotaryTable:
    """Cosines and signed sines for `apply_rotary`.

    Args:
        positions: [P, 2] (row, column).
        head_dim: channels per attention head, a multiple of 4.

    Returns:
        Two float32 tensors [P, head_dim]. The sines of the first channel of each pair carry the minus of the rotation.
    """
    if head_dim % 4:
        raise ValueError(f"two-axis rotary embedding needs a head width divisible by 4, got {head_dim}")
    half = head_dim // 2
    exponent = torch.arange(0, half, 2, device=positions.device, dtype=torch.float32) / half
    angles = positions.float()[:, :, None] * base**-exponent  # [P, 2, head_dim / 4]
    sines = angles.sin()
    cosines = angles.cos()[:, :, None].expand(-1, -1, 2, -1)
    return cosines.reshape(len(positions), head_dim), torch.stack([-sines, sines], dim=2).flatten(1)


def apply_rotary(x: torch.Tensor, table: RotaryTable) -> torch.Tensor:
    """Rotate queries or keys [..., P, head_dim] by a `rotary_table` of the same P and head_dim."""
    cosines, sines = table
    partner = x.unflatten(-1, (2, 2, -1)).flip(-2).flatten(-3)
    return x * cosines + partner * sines


@cached_table
def grid_rotary_table(
    height: int, width: int, num_special: int, head_dim: int, base: float, device: torch.device
) -> RotaryTable:
    """The cached `rotary_table` of a token grid."""
    return rotary_table(grid_positions(height, width, num_special, device), head_dim, base)
