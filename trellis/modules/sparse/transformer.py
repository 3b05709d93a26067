"""Transformer and residual blocks on sparse tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..attention import LayerContext, ZeroCondition
from ..norm import LayerNorm32
from ..transformer import NORM_EPS, FeedForwardNet, make_modulation, modulate, zero_init
from .attention import SparseCrossAttention, SparseSelfAttention
from .conv import SparseConv3d
from .spatial import coarsen, downsample, upsample
from .tensor import Sites, SparseTensor, beside_rows

Contexts = Sequence[Tensor | ZeroCondition | LayerContext]


class SparseTransformerBlock(nn.Module):
    """Pre-norm self-attention and feed-forward, plain residuals, norms without parameters.

    Args:
        channels, num_heads, mlp_ratio, qk_rms_norm: see `SparseSelfAttention` and `FeedForwardNet`.
        window_size: edge of the attention windows in voxels, or None for whole samples.
        shift: shift of the windows in voxels.
        use_checkpoint: recompute activations in the backward pass instead of keeping them.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        window_size: int | None = None,
        shift: int = 0,
        qk_rms_norm: bool = False,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.use_checkpoint = use_checkpoint
        self.norm1 = LayerNorm32(channels, eps=NORM_EPS, elementwise_affine=False)
        self.attn = SparseSelfAttention(channels, num_heads, window_size, shift, qk_rms_norm=qk_rms_norm)
        self.norm2 = LayerNorm32(channels, eps=NORM_EPS, elementwise_affine=False)
        self.mlp = FeedForwardNet(channels, mlp_ratio)

    def _forward(self, x: SparseTensor) -> SparseTensor:
        x = x + self.attn(x.replace(self.norm1(x.feats)))
        return x.replace(x.feats + self.mlp(self.norm2(x.feats)))

    def forward(self, x: SparseTensor) -> SparseTensor:
        """``[N, channels] -> [N, channels]``."""
        if self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(self._forward, x, use_reentrant=False)
        return self._forward(x)


class ModulatedSparseTransformerCrossBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward; the first and last are modulated by an embedding of the time.

    Adaptive layer norm with gates after Peebles and Xie 2023 (arXiv:2212.09748). The cross-attention has neither
    modulation nor gate.

    Args:
        channels, num_heads, mlp_ratio: sizes.
        ctx_channels: width of the context.
        qk_rms_norm, qk_rms_norm_cross: RMS-normalise queries and keys in self- and cross-attention.
        use_checkpoint: recompute activations in the backward pass instead of keeping them.
        share_mod: the network has one modulation for all blocks and passes ``[B, 6 * channels]`` instead of the time
            embedding ``[B, channels]``.
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
        super().__init__()
        self.use_checkpoint, self.share_mod = use_checkpoint, share_mod
        self.norm1 = LayerNorm32(channels, eps=NORM_EPS, elementwise_affine=False)
        self.norm2 = LayerNorm32(channels, eps=NORM_EPS, elementwise_affine=True)
        self.norm3 = LayerNorm32(channels, eps=NORM_EPS, elementwise_affine=False)
        self.self_attn = SparseSelfAttention(channels, num_heads, qk_rms_norm=qk_rms_norm)
        self.cross_attn = SparseCrossAttention(channels, ctx_channels, num_heads, qk_rms_norm=qk_rms_norm_cross)
        self.mlp = FeedForwardNet(channels, mlp_ratio)
        if not share_mod:
            self.adaLN_modulation = make_modulation(channels)

    def _forward(self, x: SparseTensor, mod: Tensor, contexts: Contexts) -> SparseTensor:
        if not self.share_mod:
            mod = self.adaLN_modulation(mod)
        rows, mods = beside_rows(x.feats, mod.chunk(6, dim=1), x.sites)  # rows [B, n, C], or [N, C] if samples differ
        shift1, scale1, gate1, shift2, scale2, gate2 = mods
        h = modulate(self.norm1(rows), scale1, shift1)
        h = self.self_attn(x.replace(h.view(x.feats.shape))).feats.view(rows.shape)
        rows = torch.addcmul(rows, gate1, h)
        x = x.replace(rows.view(x.feats.shape))
        x = x + self.cross_attn(x.replace(self.norm2(x.feats)), contexts)
        rows = x.feats.view(rows.shape)
        rows = torch.addcmul(rows, gate2, self.mlp(modulate(self.norm3(rows), scale2, shift2)))
        return x.replace(rows.view(x.feats.shape))

    def forward(self, x: SparseTensor, mod: Tensor, contexts: Contexts) -> SparseTensor:
        """``[N, channels] -> [N, channels]``; `mod` is ``[B, channels or 6 * channels]``, contexts are averaged."""
        if self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(self._forward, x, mod, contexts, use_reentrant=False)
        return self._forward(x, mod, contexts)


class SparseResBlock3d(nn.Module):
    """Two submanifold convolutions with a modulated norm between them, and a change of resolution before them.

    Args:
        channels: width of the input.
        emb_channels: width of the time embedding.
        out_channels: width of the output; by default that of the input.
        downsample: pool 2x2x2 cells first.
        upsample: copy each cell to its voxels first.
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        out_channels: int | None = None,
        downsample: bool = False,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        out_channels = out_channels or channels
        self.downsample, self.upsample = downsample, upsample
        self.norm1 = LayerNorm32(channels, eps=NORM_EPS, elementwise_affine=True)
        self.norm2 = LayerNorm32(out_channels, eps=NORM_EPS, elementwise_affine=False)
        self.conv1 = SparseConv3d(channels, out_channels)
        self.conv2 = SparseConv3d(out_channels, out_channels)
        zero_init(self.conv2.conv)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, 2 * out_channels))
        self.skip_connection = nn.Linear(channels, out_channels) if channels != out_channels else nn.Identity()

    def forward(self, x: SparseTensor, emb: Tensor, fine: Sites | None = None) -> SparseTensor:
        """`emb` is ``[B, emb_channels]``; `fine` are the voxels to return to when the block upsamples."""
        if self.downsample:
            x = downsample(x)
        h = x.replace(F.silu(self.norm1(x.feats)))
        skip = x.replace(self.skip_connection(x.feats))
        if self.upsample:  # the layers above act on each row alone, so copying rows can wait until here
            h, skip = self.conv1.forward_copied(h, fine, coarsen(fine)[1]), upsample(skip, fine)
        else:
            h = self.conv1(h)
        rows, (scale, shift) = beside_rows(self.norm2(h.feats), self.emb_layers(emb).chunk(2, dim=1), h.sites)
        return self.conv2(h.replace(F.silu(modulate(rows, scale, shift)).view(h.feats.shape))) + skip
