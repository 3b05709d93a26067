"""Normalisations that take several passes in plain torch: the reference. Statistics are always float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .rope import RotaryTable, apply_rotary
from .sparse.tensor import Sites, rows_per_sample


def rms_norm_heads(x: Tensor, gamma: Tensor) -> Tensor:
    """``x / |x| * gamma * sqrt(D)`` over the last axis: ``x [..., H, D]``, ``gamma [H, D]``; dtype kept."""
    return (F.normalize(x.float(), dim=-1) * gamma * math.sqrt(x.shape[-1])).to(x.dtype)


def row_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm over the last axis: ``x [..., C]``, `weight` and `bias` ``[C]``; dtype kept."""
    return F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), eps).to(x.dtype)


def add_branch(x: Tensor, branch: Tensor, gate: Tensor | None = None, place: Tensor | None = None) -> Tensor:
    """``x + branch``, or ``x + gate * branch``: the residual sum.

    Args:
        x, branch: ``[B, n, C]`` or ``[N, C]``.
        gate: ``[B, 1, C]`` or ``[N, C]``.
        place: ``[N]`` int64 for ``x [N, C]``, a permutation: row r of the sum becomes row ``place[r]`` of the result.
    """
    out = x + branch if gate is None else torch.addcmul(x, gate, branch)
    return out if place is None else torch.empty_like(out).index_copy(0, place, out)


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """``norm(x) * (1 + scale) + shift``, adaptive layer norm: `scale` and `shift` are shaped like a gate."""
    return torch.addcmul(shift, _plain_norm(x, eps), 1 + scale)


def add_and_modulated_norm(
    x: Tensor, branches: Sequence[Tensor], gate: Tensor | None, scale: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """`add_branch`, and the `modulated_norm` of the sum.

    Args:
        branches: what is added, in parts along the first axis; a part may be one row expanded to many.
        x, gate, scale, shift, eps: as above.
    """
    x = add_branch(x, _joined(branches), gate)
    return x, modulated_norm(x, scale, shift, eps)


def add_and_norm(
    x: Tensor,
    branches: Sequence[Tensor],
    gate: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    norm: Callable[[Tensor, Tensor, Tensor, float], Tensor] = row_norm,
) -> tuple[Tensor, Tensor]:
    """`add_branch`, and the `row_norm` of the sum; without `weight` and `bias` the norm has neither."""
    x = add_branch(x, _joined(branches), gate)
    return x, _plain_norm(x, eps) if weight is None else norm(x, weight, bias, eps)


def _plain_norm(x: Tensor, eps: float) -> Tensor:
    """Torch's own kernel keeps float32 statistics of half-precision input."""
    return F.layer_norm(x, x.shape[-1:], None, None, eps).to(x.dtype)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def norm_and_rotate(x: Tensor, weight: Tensor, bias: Tensor, eps: float, table: RotaryTable) -> Tensor:
    """Layer norm over the width of a head, then rotation; dtype kept.

    Args:
        x: ``[B, H, N, D]``, queries or keys.
        weight, bias: ``[D]``.
        eps: of the norm.
        table: of P positions, which hold for each run of P tokens; P divides N.
    """
    y = F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), eps)
    return apply_rotary(y.unflatten(2, (-1, len(table[0]))), table).flatten(2, 3).to(x.dtype)


def group_norm(
    feats: Tensor, sites: Sites, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, silu: bool
) -> Tensor:
    """Group norm over all voxels of each sample, then SiLU if wanted: ``feats [N, C] -> [N, C]``, dtype kept.

    `weight` and `bias` are ``[C]`` or None.
    """
    x = feats.float().unflatten(1, (groups, -1))  # [N, G, C / G]
    counts = sites.cached("counts_tensor", lambda: torch.tensor(sites.counts, device=feats.device).clamp_min(1))
    sizes = counts[:, None] * x.shape[2]  # [B, 1]
    mean = _sum_per_sample(x.sum(2), sites) / sizes  # [B, G]
    x = x - rows_per_sample(mean, sites)[..., None]
    variance = _sum_per_sample(x.square().sum(2), sites) / sizes
    out = (x * rows_per_sample((variance + eps).rsqrt(), sites)[..., None]).flatten(1)
    if weight is not None:
        out = out * weight.float() + bias.float()
    out = out.to(feats.dtype)
    return F.silu(out) if silu else out


def _sum_per_sample(values: Tensor, sites: Sites) -> Tensor:
    """``[N, G] -> [B, G]``. Samples are laid out as padded rows: a plain sum is exact and runs in parallel."""
    if sites.batch_size == 1:
        return values.sum(0, keepdim=True)

    def build() -> Tensor:
        counts = torch.tensor(sites.counts, device=values.device)
        slots = torch.arange(max(sites.counts), device=values.device)
        rows = slots + (counts.cumsum(0) - counts)[:, None]
        return torch.where(slots < counts[:, None], rows, len(sites))

    padded_rows = sites.cached("padded_rows", build)
    padded = torch.cat([values, values.new_zeros(1, values.shape[1])])
    return padded.index_select(0, padded_rows.flatten()).view(*padded_rows.shape, -1).sum(1)
