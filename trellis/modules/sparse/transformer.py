"""Transformer and residual blocks on sparse tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trellis import backends

from ..attention import LayerContext, ZeroCondition
from ..norm import LayerNorm32
from ..transformer import NORM_EPS, FeedForwardNet, make_modulation, zero_init
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
        self.mlp = FeedForwardNet(channels, mlp_ratio)

    def _forward(self, x: SparseTensor, sites: Sites | None, place: Tensor | None) -> SparseTensor:
        norms = backends.of("norms", x.device)
        h = self.attn(x.replace(self.norm1(x.feats))).feats
        feats, h = norms.add_and_norm(x.feats, [h], None, None, None, NORM_EPS)
        return SparseTensor(norms.add_branch(feats, self.mlp(h), None, place), sites=sites or x.sites)

    def forward(self, x: SparseTensor, sites: Sites | None = None, place: Tensor | None = None) -> SparseTensor:
        """``[N, channels] -> [N, channels]``.

        sites, place: the voxels in the order of the result, and the row of the result that each row becomes, if it
            shall have another order than `x`.
        """
        if self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(self._forward, x, sites, place, use_reentrant=False)
        return self._forward(x, sites, place)


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
        self.norm2 = LayerNorm32(channels, eps=NORM_EPS, elementwise_affine=True)
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
        norms, affine = backends.of("norms", x.device), (self.norm2.weight, self.norm2.bias)
        h = norms.modulated_norm(rows, scale1, shift1, NORM_EPS).view(x.feats.shape)
        h = self.self_attn(x.replace(h)).feats.view(rows.shape)
        rows, h = norms.add_and_norm(rows, [h], gate1, *affine, NORM_EPS)
        parts = self.cross_attn.parts(x.replace(h.view(x.feats.shape)), contexts)
        if rows.ndim == 3:  # parts hold whole samples
            parts = [part.unflatten(0, (-1, rows.shape[1])) for part in parts]
        rows, h = norms.add_and_modulated_norm(rows, parts, None, scale2, shift2, NORM_EPS)
        return x.replace(norms.add_branch(rows, self.mlp(h), gate2).view(x.feats.shape))

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
        rows, (scale, shift) = beside_rows(h.feats, self.emb_layers(emb).chunk(2, dim=1), h.sites)
        rows = F.silu(backends.of("norms", x.device).modulated_norm(rows, scale, shift, NORM_EPS))
        return self.conv2(h.replace(rows.view(h.feats.shape))) + skip
