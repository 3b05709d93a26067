"""Multi-head attention, and what a condition leaves behind in it.

In cross-attention the keys and values depend on the condition alone, so a sampler that evaluates a network many times
under one condition needs them once. On a condition of zeros less remains: all keys are equal, every softmax weight is
the same, and the output is one constant vector per layer, whatever the query. A layer therefore takes its context in
any of these forms, which give the same result:

* a tensor `[B, L, C]`: projected on the spot;
* `ProjectedContext`: keys and values, from `MultiHeadAttention.project_context`;
* `ConstantContext`: the constant vector, from `MultiHeadAttention.zero_context`;
* `BatchedContext`: several of these stacked along the batch, so that guided and unguided branches share one pass.

`precompute_condition` gathers them for a whole network in a `CondCache`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trellis import backends

from .norm import MultiHeadRMSNorm


@dataclass(frozen=True, eq=False)
class ZeroCondition:
    """Stands for a condition whose tokens are all exactly zero, of any length, for `batch` samples."""

    batch: int


@dataclass(frozen=True, eq=False)
class ProjectedContext:
    """Keys and values of one context in one layer."""

    key: Tensor  # [B, heads, L, head_dim]
    value: Tensor  # [B, heads, L, head_dim]


@dataclass(frozen=True, eq=False)
class ConstantContext:
    """The output of one layer under a condition of zeros; it holds for every query of every sample."""

    output: Tensor  # [channels]


@dataclass(frozen=True, eq=False)
class BatchedContext:
    """Contexts stacked along the batch: `parts[i]` serves the next `sizes[i]` samples."""

    parts: tuple[ProjectedContext | ConstantContext, ...]
    sizes: tuple[int, ...]


LayerContext = ProjectedContext | ConstantContext | BatchedContext


@dataclass(frozen=True, eq=False)
class CondCache:
    """A condition as every cross-attention layer of one network sees it.

    Valid for the network, weights and dtype it was made with.
    """

    layers: tuple[tuple[LayerContext, ...], ...]  # [layer][element of the condition list]
    batch: int


Condition = Tensor | ZeroCondition | Sequence[Tensor | ZeroCondition] | CondCache


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of ``q [B, H, L, D]`` to ``k, v [B, H, M, D]`` by the chosen backend."""
    return backends.of("attention", q.device).attend(q, k, v)


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention of tokens to themselves or to a context.

    Rows of the fused projections are q, k, v (or k, v) blocks, each head-major.

    Args:
        channels: width of queries and output.
        num_heads: must divide `channels`.
        ctx_channels: width of the context; None for self-attention.
        qkv_bias: whether the q, k, v projections have biases.
        qk_rms_norm: RMS-normalise queries and keys per head.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        ctx_channels: int | None = None,
        qkv_bias: bool = True,
        qk_rms_norm: bool = False,
    ) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"{num_heads} heads do not divide {channels} channels.")
        self.num_heads = num_heads
        self.head_dim = channels // num_heads
        self.is_cross = ctx_channels is not None
        if self.is_cross:
            self.to_q = nn.Linear(channels, channels, bias=qkv_bias)
            self.to_kv = nn.Linear(ctx_channels, 2 * channels, bias=qkv_bias)
        else:
            self.to_qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.q_rms_norm = MultiHeadRMSNorm(self.head_dim, num_heads) if qk_rms_norm else nn.Identity()
        self.k_rms_norm = MultiHeadRMSNorm(self.head_dim, num_heads) if qk_rms_norm else nn.Identity()
        self.to_out = nn.Linear(channels, channels)

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        """`[B, L, n * channels] -> n x [B, L, heads, head_dim]`."""
        return x.unflatten(-1, (-1, self.num_heads, self.head_dim)).unbind(-3)

    def project_context(self, context: Tensor) -> ProjectedContext:
        """Keys and values of `context [B, L, ctx_channels]`."""
        k, v = self._split(self.to_kv(context))
        return ProjectedContext(self.k_rms_norm(k).transpose(1, 2), v.transpose(1, 2))

    def zero_context(self) -> ConstantContext:
        """The output of this layer for a context of zeros: every value is the bias, so its average is too."""
        bias = self.to_kv.bias
        value = self.to_out.weight.new_zeros(self.to_out.in_features) if bias is None else bias.chunk(2)[1]
        return ConstantContext(self.to_out(value))

    def precompute(self, condition: Tensor | ZeroCondition) -> ProjectedContext | ConstantContext:
        """What this layer needs of one condition."""
        return self.zero_context() if isinstance(condition, ZeroCondition) else self.project_context(condition)

    def project_query(self, x: Tensor) -> Tensor:
        """`x [B, L, channels] -> [B, heads, L, head_dim]` (cross-attention)."""
        (q,) = self._split(self.to_q(x))
        return self.q_rms_norm(q).transpose(1, 2)

    def merge(self, heads: Tensor) -> Tensor:
        """`[B, heads, L, head_dim] -> [B, L, channels]`, through the output projection."""
        return self.to_out(heads.transpose(1, 2).flatten(-2))

    def parts(self, x: Tensor, context: Tensor | ZeroCondition | LayerContext) -> list[Tensor]:
        """The output of `forward` in parts along the batch, one for each of stacked contexts, each as it comes: the
        constant one of a zero condition takes no memory until it is added.
        """
        if not isinstance(context, BatchedContext):
            return [self(x, context)]
        rows = x.split(context.sizes)
        return [self(part, ctx) for part, ctx in zip(rows, context.parts, strict=True)]

    def forward(self, x: Tensor, context: Tensor | ZeroCondition | LayerContext | None = None) -> Tensor:
        """Attend from `x [B, L, channels]` to itself (`context` None) or to a context in any of its forms."""
        if not self.is_cross:
            q, k, v = self._split(self.to_qkv(x))
            q, k, v = (y.transpose(1, 2) for y in (self.q_rms_norm(q), self.k_rms_norm(k), v))
            return self.merge(attend(q, k, v))
        if isinstance(context, Tensor | ZeroCondition):
            context = self.precompute(context)
        if isinstance(context, BatchedContext):
            return torch.cat(self.parts(x, context))
        if isinstance(context, ConstantContext):
            return context.output.expand(x.shape)
        if not isinstance(context, ProjectedContext):
            raise TypeError(f"Cross-attention needs a context, got {type(context).__name__}.")
        return self.merge(attend(self.project_query(x), context.key, context.value))


def precompute_condition(
    layers: Sequence[MultiHeadAttention], condition: Condition, dtype: torch.dtype
) -> CondCache:
    """Project a condition for all cross-attention layers of a network.

    Args:
        layers: the cross-attention layers in order.
        condition: tokens `[B, L, C]`, a `ZeroCondition`, a list of these (one per view), or a `CondCache`,
            returned as is.
        dtype: precision of the layers; tokens are cast to it.

    Raises:
        ValueError: the list is empty, its elements disagree on the batch size, or a cache has another depth.
    """
    if isinstance(condition, CondCache):
        if len(condition.layers) != len(layers):
            raise ValueError(f"A condition cached for {len(condition.layers)} layers met a network of {len(layers)}.")
        return condition
    elements = condition_elements(condition, dtype)
    batch = {e.batch if isinstance(e, ZeroCondition) else e.shape[0] for e in elements}
    if len(batch) != 1:
        raise ValueError(f"The elements of a condition list must share one batch size, got {sorted(batch)}.")
    return CondCache(tuple(tuple(layer.precompute(e) for e in elements) for layer in layers), batch.pop())


def condition_elements(
    condition: Tensor | ZeroCondition | Sequence[Tensor | ZeroCondition], dtype: torch.dtype
) -> list[Tensor | ZeroCondition]:
    """A condition as a list, tokens cast to `dtype`; an empty list is a `ValueError`."""
    elements = [condition] if isinstance(condition, Tensor | ZeroCondition) else list(condition)
    if not elements:
        raise ValueError("The condition list is empty: give one element per view.")
    return [e if isinstance(e, ZeroCondition) else e.to(dtype) for e in elements]


def stack_conditions(caches: Sequence[CondCache]) -> CondCache:
    """Stack caches of one network along the batch, to evaluate several conditions in one pass.

    A cache of one zero condition stands beside a list of any length: the average of equal constants is that constant.

    Raises:
        ValueError: the caches differ in depth or in the number of list elements.
    """
    sizes = tuple(cache.batch for cache in caches)
    if len({len(cache.layers) for cache in caches}) != 1:
        raise ValueError("Only conditions cached for the same network can be stacked.")
    layers = []
    for contexts in zip(*(cache.layers for cache in caches), strict=True):
        count = max(map(len, contexts))
        columns = [c * count if len(c) == 1 and isinstance(c[0], ConstantContext) else c for c in contexts]
        if {len(c) for c in columns} != {count}:
            raise ValueError(f"Conditions of {[len(c) for c in contexts]} views cannot share one batch.")
        layers.append(tuple(BatchedContext(parts, sizes) for parts in zip(*columns, strict=True)))
    return CondCache(tuple(layers), sum(sizes))
