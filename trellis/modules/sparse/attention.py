"""Attention among the voxels of a sample, or of a window of it, in batches of variable length.

Voxels that attend to each other form a *segment*. Segments of similar length are gathered into a few padded batches,
so there is no loop over windows or samples; padding is masked and never reaches a result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import prod

import torch
from torch import Tensor

from trellis import backends

from ..attention import (
    BatchedContext,
    ConstantContext,
    LayerContext,
    MultiHeadAttention,
    ProjectedContext,
    ZeroCondition,
)
from .tensor import Sites, SparseTensor, encode

Window = tuple[int, int]  # edge of the windows and shift, in voxels


@dataclass(frozen=True)
class Bucket:
    """Segments of similar length, padded to the longest."""

    segments: Tensor  # [W] int64, which segments these are
    length: int  # padded length L
    rows: Tensor  # [W * L] int64, feature rows; padding repeats rows of other segments
    mask: Tensor | None  # [W, 1, 1, L] bool, False where padding; None if there is none


class Segments:
    """A partition of the voxels into groups of mutual attention, packed one after another or padded in buckets.

    Args:
        offsets: ``[S + 1]`` int32, where each segment starts among the packed rows; a segment may be empty.
        longest: voxels of the longest segment, at most.
        order: ``[N]`` int64, the voxel of each packed row; None if that is the order of the voxels.
        inverse: ``[N]`` int64, the packed row of each voxel, if there is an `order`.
        lengths: voxels of each segment. Without them the host learns them from the device when it first needs them,
            which packed attention never does.
    """

    def __init__(
        self,
        offsets: Tensor,
        longest: int,
        order: Tensor | None = None,
        inverse: Tensor | None = None,
        lengths: Sequence[int] | None = None,
    ) -> None:
        self.offsets, self.longest, self.order, self.inverse = offsets, longest, order, inverse
        self._lengths = lengths

    @property
    def is_single(self) -> bool:
        """Whether all voxels attend to each other."""
        return len(self.offsets) == 2

    @cached_property
    def all_lengths(self) -> list[int]:
        """Voxels of each segment, the empty ones included."""
        return list(self._lengths) if self._lengths is not None else self.offsets.diff().tolist()

    @property
    def lengths(self) -> list[int]:
        """Voxels of each segment that has any."""
        return [length for length in self.all_lengths if length]

    @property
    def buckets(self) -> list[Bucket]:
        return self._padding[0]

    @cached_property
    def _padding(self) -> tuple[list[Bucket], Tensor | None]:
        """The buckets, and the place of each voxel in them one after another (None if there is one segment)."""
        buckets, slots = _build_buckets(self.all_lengths, self.order, self.offsets.device)
        if slots is not None and self.inverse is not None:
            slots = slots[self.inverse]
        return buckets, slots

    def padded(self, feats: Tensor, bucket: Bucket) -> Tensor:
        """Rows of a bucket: ``[N, ...] -> [W, L, ...]``."""
        rows = feats if self._padding[1] is None else feats.index_select(0, bucket.rows)
        return rows.unflatten(0, (-1, bucket.length))

    def packed(self, qkv: Tensor, attention: Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]) -> Tensor:
        """Attention over packed segments: ``qkv [N, 3, H, D] -> [N, H, D]``.

        `attention` maps queries, keys and values ``[N, H, D]``, `offsets` and `longest` to ``[N, H, D]``.
        """
        rows = qkv if self.order is None else qkv.index_select(0, self.order)
        out = attention(*rows.unbind(1), self.offsets, self.longest)
        return out if self.inverse is None else out.index_select(0, self.inverse)

    def collect(self, outputs: list[Tensor]) -> Tensor:
        """Bring bucket results ``[W, H, L, D]`` back to voxel order: ``[N, H, D]``."""
        rows = torch.cat([out.transpose(1, 2).flatten(0, 1) for out in outputs])
        position = self._padding[1]
        return rows if position is None else rows.index_select(0, position)


def sample_segments(sites: Sites) -> Segments:
    """Each sample attends within itself; cached on `sites`."""

    def build() -> Segments:
        ends = torch.tensor([0, *accumulate(sites.counts)], dtype=torch.int32, device=sites.coords.device)
        return Segments(ends, max(sites.counts), lengths=sites.counts)

    return sites.cached("sample_segments", build)


def window_ids(sites: Sites, size: int, shift: int = 0) -> Tensor:
    """``[N]`` int64, equal for voxels of one sample in the same window of `size`^3, coordinates moved by `shift`."""
    cells = sites.coords.clone()
    cells[:, 1:] = (cells[:, 1:] + shift).div(size, rounding_mode="floor")
    return encode(cells, _windows(sites, size, shift))


def _windows(sites: Sites, size: int, shift: int) -> list[int]:
    """Windows along each axis."""
    return [(extent - 1 + shift) // size + 1 for extent in sites.extent]


def window_segments(sites: Sites, size: int, shift: int = 0) -> Segments:
    """Each window (see `window_ids`) attends within itself; cached on `sites`."""

    def build() -> Segments:
        ids, order = window_ids(sites, size, shift).sort(stable=True)
        windows = torch.arange(sites.batch_size * prod(_windows(sites, size, shift)) + 1, device=ids.device)
        offsets = torch.searchsorted(ids, windows, out_int32=True)
        inverse = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=ids.device))
        return Segments(offsets, min(size**3, len(order)), order, inverse)

    return sites.cached(("windows", size, shift), build)


def in_windows(sites: Sites, size: int, shift: int = 0) -> Sites:
    """The same voxels window after window, so that attention within windows has nothing to gather; cached on `sites`.

    ``window_segments(sites, size, shift)`` has their order and its inverse.
    """

    def build() -> Sites:
        segments = window_segments(sites, size, shift)
        ordered = sites.reordered(segments.order)
        ordered.cached(("windows", size, shift), lambda: Segments(segments.offsets, segments.longest))
        return ordered

    return sites.cached(("in windows", size, shift), build)


def places(sites: Sites, before: Window | None, after: Window | None) -> Tensor | None:
    """Where each row goes when voxels in the order of some windows get that of others; cached on `sites`.

    Args:
        sites: the voxels in their own order, which None stands for.
        before, after: arguments of `in_windows`.

    Returns:
        ``[N]`` int64, row r becomes row ``places[r]``; None if they stay.
    """
    if before == after:
        return None

    def build() -> Tensor:
        if before is None:
            return window_segments(sites, *after).inverse
        order = window_segments(sites, *before).order
        return order if after is None else window_segments(sites, *after).inverse.index_select(0, order)

    return sites.cached(("places", before, after), build)


def _build_buckets(
    lengths: Sequence[int], order: Tensor | None, device: torch.device
) -> tuple[list[Bucket], Tensor | None]:
    """Bucket consecutive runs of `lengths` rows of `order` (None: rows as they are) by length.

    Short segments are bucketed by octave, because there the number of calls is what costs; long ones by half octave,
    because there padding does.

    Returns:
        The buckets, and the place of each packed row in them, ``[N]`` int64; None if there is one segment.
    """
    total = sum(lengths)
    sizes = torch.tensor([length for length in lengths if length])
    starts = sizes.cumsum(0) - sizes
    octaves = sizes.clamp_min(16).double().log2()
    levels = torch.where(sizes <= 512, 2 * octaves.ceil(), (2 * octaves).ceil())
    number = torch.tensor(lengths).nonzero()[:, 0]
    bases = torch.empty_like(sizes)
    buckets, filled = [], 0
    for level in levels.unique().tolist():
        members = (levels == level).nonzero()[:, 0]
        bucket_sizes = sizes[members]
        length = int(bucket_sizes.max())
        equal = bool((bucket_sizes == length).all())
        if not equal:
            length = -(-length // 8) * 8  # fused kernels want an aligned mask
        bases[members] = filled + torch.arange(len(members)) * length
        filled += len(members) * length
        slots = torch.arange(length, device=device)
        # Padding reads the rows that follow: spread over the tensor, unlike one repeated row, it does not serialise
        # the accumulation of gradients (which are zero there).
        rows = (starts[members].to(device)[:, None] + slots).clamp_max(total - 1).flatten()
        mask = None if equal else (slots < bucket_sizes.to(device)[:, None])[:, None, None]
        rows = rows if order is None else order[rows]
        buckets.append(Bucket(number[members].to(device), length, rows, mask))
    if len(lengths) == 1 and order is None:
        return buckets, None
    slots = torch.arange(total, device=device) + (bases - starts).to(device).repeat_interleave(
        sizes.to(device), output_size=total
    )
    return buckets, slots


def segment_attention(qkv: Tensor, segments: Segments) -> Tensor:
    """Self-attention within each segment.

    Args:
        qkv: ``[N, 3, H, D]``.
        segments: from `sample_segments` or `window_segments`.

    Returns:
        ``[N, H, D]``.
    """
    return backends.of("attention", qkv.device).attend_segments(qkv, segments)


def sample_cross_attention(q: Tensor, context: ProjectedContext, sites: Sites) -> Tensor:
    """Attention of the voxels of each sample to that sample's context.

    Args:
        q: ``[N, H, D]``.
        context: keys and values ``[B, H, M, D]``.
        sites: the voxels of `q`, in B samples.

    Returns:
        ``[N, H, D]``.
    """
    if len(context.key) != sites.batch_size:
        raise ValueError(f"A context of {len(context.key)} samples does not fit a batch of {sites.batch_size}.")
    attend_voxels = backends.of("attention", q.device).attend_voxels
    if sites.is_even:
        queries = q.unflatten(0, (sites.batch_size, -1)).transpose(1, 2)
        return attend_voxels(queries, context.key, context.value).transpose(1, 2).flatten(0, 1)
    segments = sample_segments(sites)
    outputs = []
    for bucket in segments.buckets:
        queries = segments.padded(q, bucket).transpose(1, 2)
        keys, values = (x.index_select(0, bucket.segments) for x in (context.key, context.value))
        outputs.append(attend_voxels(queries, keys, values))
    return segments.collect(outputs)


class SparseSelfAttention(MultiHeadAttention):
    """Multi-head self-attention over whole samples or over cubic windows.

    Args:
        channels, num_heads, qkv_bias, qk_rms_norm: see `MultiHeadAttention`.
        window_size: edge of the windows in voxels, or None to attend over the whole sample.
        shift: added to each coordinate before it is divided into windows (no wrap-around).
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        window_size: int | None = None,
        shift: int = 0,
        qkv_bias: bool = True,
        qk_rms_norm: bool = False,
    ) -> None:
        super().__init__(channels, num_heads, qkv_bias=qkv_bias, qk_rms_norm=qk_rms_norm)
        self.window = None if window_size is None else (window_size, shift)
        self.qk_rms_norm = qk_rms_norm

    def forward(self, x: SparseTensor) -> SparseTensor:
        """``[N, channels] -> [N, channels]``."""
        qkv = self.to_qkv(x.feats).unflatten(1, (3, self.num_heads, self.head_dim))
        if self.window is None and x.sites.is_even:  # a dense batch: nothing to gather, nothing to pad
            q, k, v = qkv.unflatten(0, (len(x), -1)).unbind(2)
            q, k, v = (y.transpose(1, 2) for y in (self.q_rms_norm(q), self.k_rms_norm(k), v))
            heads = backends.of("attention", x.device).attend_voxels(q, k, v)
            return x.replace(self.to_out(heads.transpose(1, 2).flatten(2).flatten(0, 1)))
        if self.qk_rms_norm:
            q, k, v = qkv.unbind(1)
            qkv = torch.stack([self.q_rms_norm(q), self.k_rms_norm(k), v], dim=1)
        segments = sample_segments(x.sites) if self.window is None else window_segments(x.sites, *self.window)
        return x.replace(self.to_out(segment_attention(qkv, segments).flatten(1)))


class SparseCrossAttention(MultiHeadAttention):
    """Multi-head attention from voxels to context tokens.

    Several contexts (one for each view) are attended one by one with the same queries, and the results are averaged.

    Args:
        channels, ctx_channels, num_heads, qkv_bias, qk_rms_norm: see `MultiHeadAttention`.
    """

    def __init__(
        self, channels: int, ctx_channels: int, num_heads: int, qkv_bias: bool = True, qk_rms_norm: bool = False
    ) -> None:
        super().__init__(channels, num_heads, ctx_channels, qkv_bias, qk_rms_norm)

    def parts(self, x: SparseTensor, contexts: Sequence[Tensor | ZeroCondition | LayerContext]) -> list[Tensor]:
        """The features of `forward` in parts along the voxels, one for each of stacked contexts, each as it comes."""
        if not isinstance(contexts[0], BatchedContext):
            return [self(x, contexts).feats]
        return [self(part, parts).feats for part, parts in _split_batch(x, contexts)]

    def forward(self, x: SparseTensor, contexts: Sequence[Tensor | ZeroCondition | LayerContext]) -> SparseTensor:
        """Average of the attention to each context.

        Args:
            x: ``[N, channels]`` in B samples.
            contexts: each ``[B, M, ctx_channels]`` (M may differ), zeros, or prepared by `precompute_condition`.
        """
        if isinstance(contexts[0], BatchedContext):
            return x.replace(torch.cat(self.parts(x, contexts)))
        contexts = [self.precompute(c) if isinstance(c, Tensor | ZeroCondition) else c for c in contexts]
        constants = [c.output for c in contexts if isinstance(c, ConstantContext)]
        projected = [c for c in contexts if isinstance(c, ProjectedContext)]
        total = sum(constants)
        if projected:
            (q,) = self._split(self.to_q(x.feats))
            q = self.q_rms_norm(q)
            heads = sum(sample_cross_attention(q, c, x.sites) for c in projected) / len(projected)
            total = total + len(projected) * self.to_out(heads.flatten(1))  # averaging commutes with the projection
        return x.replace((total / len(contexts)).expand(len(x.feats), -1))


def _split_batch(
    x: SparseTensor, contexts: Sequence[BatchedContext]
) -> Iterator[tuple[SparseTensor, list[ProjectedContext | ConstantContext]]]:
    """Yield the samples that each part of stacked contexts serves, with that part of every context."""
    start = 0
    for index, size in enumerate(contexts[0].sizes):
        yield x.part(start, start + size), [context.parts[index] for context in contexts]
        start += size
