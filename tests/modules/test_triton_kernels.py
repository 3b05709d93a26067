"""Triton kernels of the networks against the references, in value and gradient."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import assert_same_gradients, kernel_of, voxels
from kernel_devices import KERNEL_DEVICES, needs_triton

from trellis.modules import norms_torch
from trellis.modules.rope import grid_rotary_table
from trellis.modules.sparse import conv_torch

pytestmark = [needs_triton, pytest.mark.parametrize("device", KERNEL_DEVICES)]


def test_half_precision_convolution_rounds_only_its_operands(device):
    from trellis.modules.sparse import conv_triton

    x = voxels([120], 32, device)
    feats, weight = x.feats.half(), kernel_of(48, 32, device).half()
    out = conv_triton.convolve(feats, weight, x.sites)
    assert out.dtype == torch.float16
    expected = conv_torch.convolve(feats.float(), weight.float(), x.sites)
    torch.testing.assert_close(out.float(), expected, atol=2e-3, rtol=2e-3)


@torch.no_grad()
def test_head_norm_reads_projections_in_place(device):
    from trellis.modules import norms_triton

    qkv = torch.randn(2, 7, 3, 4, 32, generator=torch.Generator().manual_seed(0)).to(device)
    qkv[0, 0] = 0  # a row of zeros stays one
    gamma = torch.linspace(0.5, 2, 128, device=device).view(4, 32)
    for x in (qkv[:, :, 1], qkv[0, :, 0], qkv[:, :, 0].half()):
        expected = norms_torch.rms_norm_heads(x, gamma)
        torch.testing.assert_close(norms_triton.rms_norm_heads(x, gamma), expected, atol=2e-6, rtol=1e-3)


@torch.no_grad()
def test_norm_and_rotation(device):
    from trellis.modules import norms_triton

    generator = torch.Generator().manual_seed(0)
    table = grid_rotary_table(2, 3, 1, 32, 100.0, torch.device(device))
    qkv = torch.randn(2, 14, 3, 4, 32, generator=generator).to(device)  # two views of seven tokens
    weight, bias = torch.randn(2, 32, generator=generator).to(device)
    for x in qkv.permute(2, 0, 3, 1, 4)[:2]:
        expected = norms_torch.norm_and_rotate(x, weight, bias, 1e-5, table)
        out = norms_triton.norm_and_rotate(x, weight, bias, 1e-5, table)
        torch.testing.assert_close(out, expected, atol=2e-5, rtol=1e-4)


def test_gradients_of_norms_of_heads(device, monkeypatch):
    from trellis.modules import head_norms_triton

    monkeypatch.setattr(head_norms_triton, "_BLOCKS", 2)  # several partial sums, the last one short
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, 98, 3, 4, 32, generator=generator).to(device).requires_grad_()
    gamma = torch.linspace(0.5, 2, 128, device=device).view(4, 32).requires_grad_()
    outs = (m.rms_norm_heads(qkv[:, :, 1], gamma) for m in (head_norms_triton, norms_torch))
    assert_same_gradients(*outs, [qkv, gamma])
    table = grid_rotary_table(2, 3, 1, 32, 100.0, torch.device(device))
    weight, bias = (torch.randn(32, generator=generator).to(device).requires_grad_() for _ in range(2))
    keys = qkv.permute(2, 0, 3, 1, 4)[1]
    outs = (m.norm_and_rotate(keys, weight, bias, 1e-5, table) for m in (head_norms_triton, norms_torch))
    assert_same_gradients(*outs, [qkv, weight, bias])


def test_norm_of_short_rows(device, monkeypatch):
    from trellis.modules import row_norm_triton

    monkeypatch.setattr(row_norm_triton, "_BLOCKS", 2)
    generator = torch.Generator().manual_seed(0)
    x = (2 + torch.randn(3, 24, 5, 6, 7, generator=generator)).to(device).requires_grad_()
    weight, bias = (torch.randn(24, generator=generator).to(device).requires_grad_() for _ in range(2))
    outs = (m.row_norm(x.movedim(1, -1), weight, bias, 1e-5) for m in (row_norm_triton, norms_torch))
    assert_same_gradients(*outs, [x, weight, bias])


@torch.no_grad()
@pytest.mark.parametrize("silu", [False, True])
def test_group_norm(device, silu, monkeypatch):
    from trellis.modules import norms_triton

    monkeypatch.setattr(norms_triton, "_CHUNK", 64)  # several partial sums, the last one short
    x = voxels([150, 70], 24, device)
    feats = 5 + 3 * x.feats  # a mean well off zero
    weight, bias = torch.linspace(-1, 2, 48, device=device).view(2, 24)
    for affine in ((weight, bias), (None, None)):
        expected = norms_torch.group_norm(feats, x.sites, 4, *affine, 1e-5, silu)
        out = norms_triton.group_norm(feats, x.sites, 4, *affine, 1e-5, silu)
        torch.testing.assert_close(out, expected, atol=2e-5, rtol=1e-4)


def test_norms_leave_gradients_to_the_reference(device):
    from trellis.modules import norms_triton

    x = voxels([30], 24, device)
    weight, bias = (torch.ones(24, device=device).requires_grad_() for _ in range(2))
    inputs = [x.feats.requires_grad_(), weight, bias]
    outs = (m.group_norm(x.feats, x.sites, 4, weight, bias, 1e-5, True) for m in (norms_triton, norms_torch))
    assert_same_gradients(*outs, inputs)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(3, 5, 24), (7, 24)])
def test_residual_sums_and_norms_in_one_pass(device, dtype, shape):
    from trellis.modules import norms_triton

    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> torch.Tensor:
        return (2 + torch.randn(*size, generator=generator)).to(device, dtype)

    x, branch = draw(*shape), draw(*shape)
    # The chunks of one modulation: [B, 1, C] for [B, n, C], or a row for each voxel.
    rows = draw(shape[0], 6 * shape[-1])
    gate, scale, shift = (rows if len(shape) == 2 else rows[:, None]).chunk(6, dim=-1)[:3]
    parts = [branch[:1], draw(shape[-1]).expand(shape[0] - 1, *shape[1:])]  # the second is one row for all
    weight, bias = torch.linspace(-1, 2, 48, device=device).view(2, 24)
    calls = {
        "add_branch": [(x, branch), (x, branch, gate)],
        "modulated_norm": [(x, scale, shift, 1e-6)],
        "add_and_modulated_norm": [(x, [branch], gate, scale, shift, 1e-6), (x, parts, None, scale, shift, 1e-6),
                                   (x, parts, gate, scale, shift, 1e-6)],
        "add_and_norm": [(x, [branch], gate, weight, bias, 1e-6), (x, parts, None, None, None, 1e-6)],
    }  # fmt: skip
    tolerance = {"atol": 2e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 4e-3}
    for name, cases in calls.items():
        for case in cases:
            actual, expected = (getattr(module, name)(*case) for module in (norms_triton, norms_torch))
            torch.testing.assert_close(actual, expected, **tolerance)
    if len(shape) == 2:
        place = torch.randperm(len(x), generator=generator).to(device)
        moved = norms_triton.add_branch(x, branch, None, place)
        assert torch.equal(moved[place], norms_triton.add_branch(x, branch))
        assert torch.equal(moved, norms_torch.add_branch(x, branch, None, place))


def test_residual_sums_and_norms_pass_gradients_on(device):
    from trellis.modules import norms_triton

    generator = torch.Generator().manual_seed(0)
    x, branch = torch.randn(2, 2, 5, 24, generator=generator).to(device).requires_grad_().unbind()
    gate, scale, shift = torch.randn(3, 2, 1, 24, generator=generator).to(device).requires_grad_().unbind()
    weight, bias = (torch.randn(24, generator=generator).to(device).requires_grad_() for _ in range(2))
    inputs = [x, branch, gate, scale, shift, weight, bias]

    def block(norms) -> torch.Tensor:
        y, h = norms.add_and_norm(x, [branch], gate, weight, bias, 1e-6)
        y, h = norms.add_and_modulated_norm(y, [h[:1], h[1:]], None, scale, shift, 1e-6)
        return norms.add_branch(norms.modulated_norm(y, scale, shift, 1e-6), h, gate)

    assert_same_gradients(block(norms_triton), block(norms_torch), inputs)
