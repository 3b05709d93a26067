"""The pre-norm transformer block of DINOv2 and VGGT (Dosovitskiy et al., arXiv:2010.11929)."""

from __future__ import annotations

import torch
from torch import nn

from trellis import backends
from trellis.modules.attention import attend
from trellis.modules.rope import RotaryTable, apply_rotary


class Mlp(nn.Module):
    """Linear, exact (erf) GELU, linear."""

    def __init__(self, dim: int, hidden_dim: int, out_dim: int | None = None):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim if out_dim is None else out_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch (Touvron et al., arXiv:2103.17239).

    Under autocast the product with the float32 factor returns the branch, and so the residual stream, to float32.
    """

    def __init__(self, dim: int, init_value: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), float(init_value)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


class Attention(nn.Module):
    """Multi-head self-attention, optionally with normalised and rotated queries and keys."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True, qk_norm: bool = False, norm_eps: float = 1e-5):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"the width {dim} does not divide into {num_heads} attention heads")
        self.num_heads = num_heads
        head_dim = dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm = nn.LayerNorm(head_dim, eps=norm_eps) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head_dim, eps=norm_eps) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, rotary: RotaryTable | None = None) -> torch.Tensor:
        """x [B, N, C]; `rotary` a table of P positions, which hold for each run of P tokens. Returns [B, N, C]."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, heads, N, head_dim] each
        q, k = self._prepared(q, self.q_norm, rotary), self._prepared(k, self.k_norm, rotary)
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))

    @staticmethod
    def _prepared(x: torch.Tensor, norm: nn.Module, rotary: RotaryTable | None) -> torch.Tensor:
        """Normalised and rotated queries or keys [B, heads, N, head_dim], in their own dtype also under autocast."""
        if isinstance(norm, nn.LayerNorm) and rotary is not None:
            norms = backends.of("norms", x.device)
            return norms.norm_and_rotate(x, norm.weight, norm.bias, norm.eps, rotary)
        y = norm(x)
        if rotary is not None:
            y = apply_rotary(y.unflatten(2, (-1, len(rotary[0]))), rotary).flatten(2, 3)
        return y.to(x.dtype)


class Block(nn.Module):
    """x + scale * attention(norm(x)), then x + scale * mlp(norm(x)); `init_values` None leaves the scales out."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        init_values: float | None = None,
        norm_eps: float = 1e-5,
    ):
        super().__init__()

        def scale() -> nn.Module:
            return nn.Identity() if init_values is None else LayerScale(dim, init_values)

        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads, qkv_bias, qk_norm, norm_eps)
        self.ls1 = scale()
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.ls2 = scale()

    def forward(self, x: torch.Tensor, rotary: RotaryTable | None = None) -> torch.Tensor:
        """x [B, N, C] -> [B, N, C]."""
        x = x + self.ls1(self.attn(self.norm1(x), rotary))
        return x + self.ls2(self.mlp(self.norm2(x)))


def init_linear_layers(module: nn.Module) -> None:
    """Start every linear layer inside `module` from a truncated normal of deviation 0.02 and a zero bias."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
