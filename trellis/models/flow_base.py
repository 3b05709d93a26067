"""What the two velocity networks have in common: how their weights start and how they take a condition."""

from __future__ import annotations

from torch import nn

from ..modules.attention import CondCache, Condition, precompute_condition
from ..modules.embedding import TimestepEmbedder
from ..modules.precision import MixedPrecisionModel
from ..modules.transformer import init_linear_layers, zero_init


class FlowTransformer(MixedPrecisionModel):
    """A diffusion transformer with adaptive layer norm (Peebles and Xie 2023, arXiv:2212.09748).

    Subclasses set the attributes below, each block with a `cross_attn` and, unless `share_mod`, an `adaLN_modulation`.
    """

    t_embedder: TimestepEmbedder
    blocks: nn.ModuleList
    out_layer: nn.Linear
    share_mod: bool

    def initialize_weights(self) -> None:
        """Start with blocks that pass their input on (but for the cross-attention) and a velocity of zero."""
        init_linear_layers(self)
        nn.init.normal_(self.t_embedder.mlp[0].weight, std=0.02)
        nn.init.normal_(self.t_embedder.mlp[2].weight, std=0.02)
        for owner in [self] if self.share_mod else self.blocks:
            zero_init(owner.adaLN_modulation[1])
        zero_init(self.out_layer)

    def precompute_condition(self, cond: Condition) -> CondCache:
        """Everything the blocks need of a condition, computed once; `forward` takes it in place of `cond`.

        Args:
            cond: tokens `[B, L, cond_channels]`, `ZeroCondition(B)`, or a list of these, one for each view.
        """
        return precompute_condition([block.cross_attn for block in self.blocks], cond, self.dtype)
