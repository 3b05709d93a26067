"""Small inputs for kernels of the networks, and how a kernel is compared with its reference."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from trellis.modules.sparse import SparseTensor


def voxels(counts: list[int], channels: int, device: str, resolution: int = 8) -> SparseTensor:
    generator = torch.Generator().manual_seed(3)
    coords = []
    for sample, count in enumerate(counts):
        cells = torch.randperm(resolution**3, generator=generator)[:count].sort().values
        xyz = torch.stack([cells // resolution**2, cells // resolution % resolution, cells % resolution], dim=1)
        coords.append(F.pad(xyz, (1, 0), value=sample))
    feats = torch.randn(sum(counts), channels, generator=generator)
    return SparseTensor(feats.to(device), torch.cat(coords).int().to(device))


def kernel_of(width_out: int, width_in: int, device: str) -> torch.Tensor:
    weight = torch.randn(width_out, 27, width_in, generator=torch.Generator().manual_seed(4)) / width_in
    return weight.to(device)


def assert_same_gradients(actual: torch.Tensor, expected: torch.Tensor, inputs: list[torch.Tensor]) -> None:
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)
    probe = torch.randn(expected.shape, generator=torch.Generator().manual_seed(5)).to(expected)
    pairs = (torch.autograd.grad((out * probe).sum(), inputs) for out in (actual, expected))
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-4)
