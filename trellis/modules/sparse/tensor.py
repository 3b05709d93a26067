"""A batch of sparse voxel grids, and what follows from the coordinates alone."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Sites:
    """The active voxels of a batch, with a cache for every table that depends on their coordinates only.

    Neighbour tables, attention windows and coarser or finer grids are the same for each layer and each sampling step,
    so they are built once per coordinate set and shared by all tensors that live on it.

    Args:
        coords: ``[N, 4]`` integers (batch, x, y, z), not negative, rows sorted by batch index.
        batch_size: number of samples; by default the last batch index plus one.
    """

    def __init__(self, coords: Tensor, batch_size: int | None = None) -> None:
        if coords.ndim != 2 or coords.shape[1] != 4 or coords.is_floating_point():
            raise ValueError(f"coords must be integers of shape [N, 4], got {coords.dtype} {tuple(coords.shape)}")
        if len(coords) == 0:
            raise ValueError("a sparse tensor needs at least one voxel")
        self.coords = coords
        self._cache: dict = {}
        # One transfer for all that the host has to know about the coordinates.
        lowest, highest = coords.aminmax(dim=0)
        unsorted = (coords[1:, 0] < coords[:-1, 0]).any()
        summary = torch.cat([lowest.amin()[None], unsorted[None].to(coords.dtype), highest]).tolist()
        if summary[0] < 0:
            raise ValueError("coords must not be negative")
        if summary[1]:
            raise ValueError("coords must be sorted by batch index")
        self.batch_size = summary[2] + 1 if batch_size is None else batch_size
        if summary[2] >= self.batch_size:
            raise ValueError(f"batch index {summary[2]} is out of range for a batch of {self.batch_size}")
        self.extent = (summary[3] + 1, summary[4] + 1, summary[5] + 1)

    @classmethod
    def even(cls, coords: Tensor, batch_size: int, extent: tuple[int, int, int]) -> Sites:
        """Samples with equally many voxels in a grid of known `extent`: nothing is checked and nothing waits for the
        device, so that this can be recorded in a CUDA graph.
        """
        sites = cls.__new__(cls)
        sites.coords, sites.batch_size, sites.extent = coords, batch_size, extent
        sites._cache = {"counts": [len(coords) // batch_size] * batch_size}
        return sites

    def reordered(self, order: Tensor) -> Sites:
        """The same voxels with row ``order[r]`` as row r, where `order` keeps the samples one after another.

        Nothing waits for the device.
        """
        sites = Sites.__new__(Sites)
        sites.coords, sites.batch_size, sites.extent = self.coords.index_select(0, order), self.batch_size, self.extent
        sites._cache = {"counts": self.counts}
        return sites

    def __len__(self) -> int:
        return len(self.coords)

    def cached(self, key: object, build: Callable[[], T]) -> T:
        """Return the value stored under `key`, built on first use."""
        if key not in self._cache:
            self._cache[key] = build()
        return self._cache[key]

    @property
    def batch_index(self) -> Tensor:
        """``[N]`` int64, the sample of each voxel."""
        return self.cached("batch_index", lambda: self.coords[:, 0].long())

    @property
    def counts(self) -> list[int]:
        """Voxels of each sample."""
        if self.batch_size == 1:
            return [len(self)]
        return self.cached("counts", lambda: torch.bincount(self.batch_index, minlength=self.batch_size).tolist())

    @property
    def is_even(self) -> bool:
        """Whether all samples have the same number of voxels, so that features are a dense batch ``[B, n, ...]``."""
        return len(set(self.counts)) == 1

    @property
    def layout(self) -> list[slice]:
        """The rows of each sample."""
        ends = list(accumulate(self.counts))
        return [slice(end - count, end) for end, count in zip(ends, self.counts, strict=True)]

    def part(self, start: int, stop: int) -> Sites:
        """The samples from `start` to `stop` as a batch of their own."""

        def build() -> Sites:
            coords = self.coords[self.rows(start, stop)].clone()
            coords[:, 0] -= start
            return Sites(coords, stop - start)

        return self.cached(("part", start, stop), build)

    def rows(self, start: int, stop: int) -> slice:
        """The rows of the samples from `start` to `stop`."""
        first = sum(self.counts[:start])
        return slice(first, first + sum(self.counts[start:stop]))


def encode(coords: Tensor, extent: Sequence[int]) -> Tensor:
    """Row-major cell number ``[N]`` int64 of `coords` ``[N, 4]`` in a batch of grids of `extent` cells."""
    batch, x, y, z = coords.long().unbind(1)
    return ((batch * extent[0] + x) * extent[1] + y) * extent[2] + z


class _RowsPerSample(torch.autograd.Function):
    """Copies row b of a ``[B, C]`` tensor to every voxel of sample b.

    The gradient is a matrix product with the one-hot sample matrix: it accumulates in float32 also for half precision
    inputs and has no atomics, unlike the gradient of an indexing operation.
    """

    @staticmethod
    def forward(ctx, values: Tensor, index: Tensor) -> Tensor:
        ctx.batch_size = len(values)
        ctx.save_for_backward(index)
        return values.index_select(0, index)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        samples = torch.arange(ctx.batch_size, device=index.device)
        one_hot = (samples[:, None] == index).to(grad.dtype)
        return (one_hot @ grad.flatten(1)).reshape(ctx.batch_size, *grad.shape[1:]), None


def rows_per_sample(values: Tensor, sites: Sites) -> Tensor:
    """Spread ``[B, ...]`` to voxels: ``[N, ...]``, or the broadcastable ``[1, ...]`` for a single sample."""
    if len(values) != sites.batch_size:
        raise ValueError(f"expected one row for each of {sites.batch_size} samples, got {len(values)}")
    return values if sites.batch_size == 1 else _RowsPerSample.apply(values, sites.batch_index)


def beside_rows(feats: Tensor, values: Sequence[Tensor], sites: Sites) -> tuple[Tensor, list[Tensor]]:
    """``feats [N, C]`` and per-sample ``values [B, C]`` in shapes that broadcast together, if possible as views.

    Returns:
        ``[B, n, C]`` and ``[B, 1, C]`` each where all samples have n voxels, else ``[N, C]`` and ``[N, C]`` each.
    """
    if sites.is_even:
        return feats.unflatten(0, (sites.batch_size, -1)), [value.unsqueeze(1) for value in values]
    return feats, [rows_per_sample(value, sites) for value in values]


class SparseTensor:
    """Features on the active voxels of a batch of grids.

    Args:
        feats: ``[N, ...]``, one row for each voxel.
        coords: ``[N, 4]`` int32 (batch, x, y, z); see `Sites`.
        batch_size: number of samples; by default the last batch index plus one.
        sites: an existing coordinate set to share, with its cache, instead of `coords`.

    Arithmetic works with numbers, with tensors that broadcast to ``[batch, channels]``, and with sparse tensors on the
    same voxels.
    """

    def __init__(
        self,
        feats: Tensor,
        coords: Tensor | None = None,
        batch_size: int | None = None,
        *,
        sites: Sites | None = None,
    ) -> None:
        if (coords is None) == (sites is None):
            raise ValueError("give either coords or sites")
        self.sites = Sites(coords, batch_size) if sites is None else sites
        if len(feats) != len(self.sites):
            raise ValueError(f"{len(feats)} feature rows do not fit {len(self.sites)} voxels")
        self.feats = feats

    @property
    def coords(self) -> Tensor:
        return self.sites.coords

    @property
    def layout(self) -> list[slice]:
        return self.sites.layout

    @property
    def shape(self) -> torch.Size:
        """``[batch, channels, ...]``."""
        return torch.Size([self.sites.batch_size, *self.feats.shape[1:]])

    @property
    def dtype(self) -> torch.dtype:
        return self.feats.dtype

    @property
    def device(self) -> torch.device:
        return self.feats.device

    def __len__(self) -> int:
        return self.sites.batch_size

    def __repr__(self) -> str:
        return f"SparseTensor(shape={tuple(self.shape)}, voxels={len(self.feats)}, {self.dtype}, {self.device})"

    def replace(self, feats: Tensor) -> SparseTensor:
        """The same voxels, and their cached tables, with other features."""
        return SparseTensor(feats, sites=self.sites)

    def type(self, dtype: torch.dtype) -> SparseTensor:
        return self if dtype == self.dtype else self.replace(self.feats.to(dtype))

    def to(self, target: torch.device | str | torch.dtype) -> SparseTensor:
        """Move to a device, or convert the features to a dtype."""
        if isinstance(target, torch.dtype):
            return self.type(target)
        feats = self.feats.to(target)
        if feats.device == self.device:
            return self
        return SparseTensor(feats, self.coords.to(target), self.sites.batch_size)

    def detach(self) -> SparseTensor:
        return self.replace(self.feats.detach())

    def __getitem__(self, sample: int) -> SparseTensor:
        """One sample as a batch of one."""
        return self.part(range(len(self))[sample])

    def part(self, start: int, stop: int | None = None) -> SparseTensor:
        """The samples from `start` to `stop` (by default one) as a batch of their own."""
        stop = start + 1 if stop is None else stop
        return SparseTensor(self.feats[self.sites.rows(start, stop)], sites=self.sites.part(start, stop))

    def __iter__(self) -> Iterator[SparseTensor]:
        return (self[sample] for sample in range(len(self)))

    @staticmethod
    def cat(tensors: Sequence[SparseTensor]) -> SparseTensor:
        """Join batches into one longer batch."""
        offsets = [0, *accumulate(len(x) for x in tensors)]
        shift = torch.tensor([1, 0, 0, 0], dtype=tensors[0].coords.dtype, device=tensors[0].device)
        coords = torch.cat([x.coords + shift * offset for x, offset in zip(tensors, offsets, strict=False)])
        return SparseTensor(torch.cat([x.feats for x in tensors]), coords, offsets[-1])

    def std(self) -> Tensor:
        """Population standard deviation of each sample over its voxels and channels, ``[B, 1]``."""
        return torch.stack([self.feats[rows].float().std(correction=0) for rows in self.layout])[:, None]

    def _combine(self, other: SparseTensor | Tensor | float, operation: Callable, swap: bool = False) -> SparseTensor:
        if isinstance(other, SparseTensor):
            if len(other.feats) != len(self.feats):
                raise ValueError("sparse tensors on different voxels cannot be combined")
            other = other.feats
        elif isinstance(other, Tensor) and other.ndim > 0:
            other = rows_per_sample(other.expand(self.shape), self.sites)
        return self.replace(operation(other, self.feats) if swap else operation(self.feats, other))

    def __neg__(self) -> SparseTensor:
        return self.replace(-self.feats)

    def __add__(self, other) -> SparseTensor:
        return self._combine(other, operator.add)

    def __sub__(self, other) -> SparseTensor:
        return self._combine(other, operator.sub)

    def __rsub__(self, other) -> SparseTensor:
        return self._combine(other, operator.sub, swap=True)

    def __mul__(self, other) -> SparseTensor:
        return self._combine(other, operator.mul)

    def __truediv__(self, other) -> SparseTensor:
        return self._combine(other, operator.truediv)

    def __rtruediv__(self, other) -> SparseTensor:
        return self._combine(other, operator.truediv, swap=True)

    __radd__ = __add__
    __rmul__ = __mul__
