"""Transformer blocks over dense tokens `[B, L, C]`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trellis import backends

from .attention import LayerContext, MultiHeadAttention
from .norm import LayerNorm32

NORM_EPS = 1e-6


class FeedForwardNet(nn.Module):
    """Two linear layers with a tanh-approximated GELU between them.

    Args:
        channels: width of input and output.
        mlp_ratio: hidden width divided by `channels`.
    """

    def __init__(self, channels: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        hidden = int(channels * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., channels] -> [..., channels]`."""
        first, _, last = self.mlp
        return last(backends.of("feed_forward", x.device).linear_gelu(x, first.weight, first.bias))


class TransformerCrossBlock(nn.Module):
    """Pre-norm block: self-attention, cross-attention, feed-forward, each added to its input.

    Args:
        channels: width of the tokens.
        ctx_channels: width of the context.
        num_heads: attention heads, in both attentions.
        mlp_ratio: hidden width of the feed-forward part divided by `channels`.
        qk_rms_norm: normalise queries and keys of the self-attention.
        qk_rms_norm_cross: normalise queries and keys of the cross-attention.
        use_checkpoint: recompute activations in the backward pass instead of keeping them.
    """

    def __init__(
        self,
        channels: int,
        ctx_channels: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qk_rms_norm: bool = False,
        qk_rms_norm_cross: bool = False,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.use_checkpoint = use_checkpoint
        self.norm1 = LayerNorm32(channels, eps=NORM_EPS, elementwise_affine=False)
        self.norm2 = LayerNorm32(channels, eps=NORM_EPS, elementwise_affine=True)
        self.self_attn = MultiHeadAttention(channels, num_heads, qk_rms_norm=qk_rms_norm)
        self.cross_attn = MultiHeadAttention(
            channels, num_heads, ctx_channels=ctx_channels, qk_rms_norm=qk_rms_norm_cross
        )
        self.mlp = FeedForwardNet(channels, mlp_ratio)

    def _forward(self, x: Tensor, context: Tensor | LayerContext) -> Tensor:
        norms, affine = backends.of("norms", x.device), (self.norm2.weight, self.norm2.bias)
        x, h = norms.add_and_norm(x, [self.self_attn(self.norm1(x))], None, *affine, NORM_EPS)
        x, h = norms.add_and_norm(x, self.cross_attn.parts(h, context), None, None, None, NORM_EPS)
        return norms.add_branch(x, self.mlp(h))

    def forward(self, x: Tensor, context: Tensor | LayerContext) -> Tensor:
        """`x [B, L, channels]`, context `[B, M, ctx_channels]` or prepared, `-> [B, L, channels]`."""
        if self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(self._forward, x, context, use_reentrant=False)
        return self._forward(x, context)


class ModulatedTransformerCrossBlock(TransformerCrossBlock):
    """`TransformerCrossBlock` whose self-attention and feed-forward parts are shifted, scaled and gated by the time.

    This is adaptive layer norm of Peebles and Xie 2023 (arXiv:2212.09748, adaLN-Zero); the cross-attention is not
    modulated.

    Args:
        share_mod: the network has one modulation for all blocks and passes `[B, 6 * channels]` instead of the time
            embedding `[B, channels]`.
    """

    def __init__(
        self,
        channels: int,
        ctx_channels: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qk_rms_norm: bool = False,
        qk_rms_norm_cross: bool = False,
        use_checkpoint: bool = False,
        share_mod: bool = False,
    ) -> None:
        super().__init__(
            channels, ctx_channels, num_heads, mlp_ratio, qk_rms_norm, qk_rms_norm_cross, use_checkpoint
        )
        self.share_mod = share_mod
        if not share_mod:
            self.adaLN_modulation = make_modulation(channels)

    def _forward(self, x: Tensor, mod: Tensor, context: Tensor | LayerContext) -> Tensor:
        if not self.share_mod:
            mod = self.adaLN_modulation(mod)
        shift1, scale1, gate1, shift2, scale2, gate2 = mod.unsqueeze(1).chunk(6, dim=-1)  # [B, 1, channels] each
        norms, affine = backends.of("norms", x.device), (self.norm2.weight, self.norm2.bias)
        h = self.self_attn(norms.modulated_norm(x, scale1, shift1, NORM_EPS))
        x, h = norms.add_and_norm(x, [h], gate1, *affine, NORM_EPS)
        x, h = norms.add_and_modulated_norm(x, self.cross_attn.parts(h, context), None, scale2, shift2, NORM_EPS)
        return norms.add_branch(x, self.mlp(h), gate2)

    def forward(self, x: Tensor, mod: Tensor, context: Tensor | LayerContext) -> Tensor:
        """`x [B, L, channels]`, `mod [B, channels or 6 * channels]`, context `-> [B, L, channels]`."""
        if self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(self._forward, x, mod, context, use_reentrant=False)
        return self._forward(x, mod, context)


def make_modulation(channels: int) -> nn.Sequential:
    """Time embedding `[B, channels]` -> `[B, 6 * channels]`: shift, scale, gate of attention, then of feed-forward."""
    return nn.Sequential(nn.SiLU(), nn.Linear(channels, 6 * channels))


def init_linear_layers(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for every linear layer inside `module`."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def zero_init(layer: nn.Linear | nn.Conv3d) -> None:
    """Start a layer at zero, so that what follows it is the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
