"""Sparse tensor primitives against recorded values, dense torch operations and themselves."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from golden_io import assert_close, load_golden
from torch import Tensor

from trellis.modules.sparse import (
    SparseConv3d,
    SparseGroupNorm32,
    SparseTensor,
    conv_torch,
    downsample,
    neighbours,
    subdivide,
    upsample,
)
from trellis.modules.sparse.attention import (
    SparseCrossAttention,
    in_windows,
    places,
    sample_segments,
    segment_attention,
    window_ids,
    window_segments,
)
from trellis.modules.sparse.spatial import coarsen, subdivided


@pytest.fixture(scope="module")
def golden():
    return load_golden("sparse_ops")


@pytest.fixture
def x(golden) -> SparseTensor:
    return SparseTensor(golden.inputs["feats"], golden.inputs["coords"])


def random_tensor(counts: list[int], channels: int, resolution: int = 8, seed: int = 0) -> SparseTensor:
    generator = torch.Generator().manual_seed(seed)
    coords = []
    for sample, count in enumerate(counts):
        cells = torch.randperm(resolution**3, generator=generator)[:count]
        xyz = torch.stack([cells // resolution**2, cells // resolution % resolution, cells % resolution], dim=1)
        coords.append(F.pad(xyz, (1, 0), value=sample))
    feats = torch.randn(sum(counts), channels, generator=generator)
    return SparseTensor(feats, torch.cat(coords).int())


def test_downsample_and_upsample(golden, x):
    down = downsample(x, 2)
    assert torch.equal(down.coords, golden.outputs["down_coords"])
    assert_close(down.feats, golden.outputs["down_feats"])
    up = upsample(down * 2, x.sites, 2)
    assert torch.equal(up.coords, x.coords)
    assert_close(up.feats, golden.outputs["up_feats_of_2x"])


def test_subdivide(golden, x):
    fine = subdivide(x)
    assert torch.equal(fine.coords, golden.outputs["sub_coords"])
    assert torch.equal(fine.feats, golden.outputs["sub_feats"])


def test_convolution(golden, x):
    layer = SparseConv3d(5, 7)
    layer.load_state_dict(golden.weights)
    assert_close(layer(x).feats, golden.outputs["conv_feats"])


def test_neighbour_search_equals_lookup(x, monkeypatch):
    table = neighbours.neighbour_table(x.sites)
    monkeypatch.setattr(neighbours, "_MAX_LOOKUP_CELLS", 0)
    assert torch.equal(neighbours.neighbour_table(SparseTensor(x.feats, x.coords).sites), table)


def test_convolution_gradients_equal_dense(monkeypatch):
    monkeypatch.setitem(conv_torch._GATHER_BYTES, "cpu", 27 * 4 * 8 * 10)  # several chunks
    x = random_tensor([40, 25], 4)
    x.feats = x.feats.double().requires_grad_()
    layer = SparseConv3d(4, 6).double()
    probe = torch.randn(65, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    actual = torch.autograd.grad((layer(x).feats * probe).sum(), [x.feats, layer.conv.weight, layer.conv.bias])

    index = tuple(x.coords.long().t())
    dense = torch.zeros(2, 8, 8, 8, 4, dtype=torch.float64).index_put(index, x.feats)
    out = F.conv3d(dense.movedim(-1, 1), layer.conv.weight.movedim(-1, 1), layer.conv.bias, padding=1)
    expected = torch.autograd.grad(
        (out.movedim(1, -1)[index] * probe).sum(), [x.feats, layer.conv.weight, layer.conv.bias]
    )
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b.to(a.dtype))


@pytest.mark.parametrize("refine", ["subdivided", "coarsened"])
def test_convolution_of_copies_equals_copying_first(refine):
    x = random_tensor([40, 25], 4)
    if refine == "subdivided":
        fine, cells = subdivided(x.sites)
    else:
        fine = x.sites
        coarse, cells = coarsen(fine)
        x = SparseTensor(torch.randn(len(coarse), 4), sites=coarse)
    x.feats.requires_grad_()
    layer = SparseConv3d(4, 6)
    inputs = [x.feats, layer.conv.weight, layer.conv.bias]
    direct = layer(SparseTensor(x.feats[cells.cell], sites=fine)).feats
    copied = layer.forward_copied(x, fine, cells).feats
    assert_close(copied, direct)
    probe = torch.randn(direct.shape, generator=torch.Generator().manual_seed(1))
    expected, actual = (torch.autograd.grad((out * probe).sum(), inputs) for out in (direct, copied))
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("shift", [0, 2])
def test_windows(golden, x, shift):
    ids = window_ids(x.sites, 4, shift)
    expected = golden.outputs[f"win_id_shift{shift}"]
    assert torch.equal(ids[:, None] == ids, expected[:, None] == expected)
    out = segment_attention(golden.outputs["win_qkv"], window_segments(x.sites, 4, shift))
    assert_close(out, golden.outputs[f"win_attn_shift{shift}"])


def attention_by_loop(qkv: Tensor, groups: Tensor) -> Tensor:
    out = torch.empty_like(qkv[:, 0])
    for group in groups.unique():
        q, k, v = qkv[groups == group].permute(1, 2, 0, 3)
        out[groups == group] = F.scaled_dot_product_attention(q, k, v).transpose(0, 1)
    return out


@pytest.mark.parametrize("counts", [[50], [30, 30], [100, 3, 70, 33]])
def test_attention_equals_a_loop_over_segments(counts):
    x = random_tensor(counts, 3 * 2 * 4)
    qkv = x.feats.view(-1, 3, 2, 4).requires_grad_()
    for segments, groups in [
        (sample_segments(x.sites), x.coords[:, 0]),
        (window_segments(x.sites, 3, 1), window_ids(x.sites, 3, 1)),
    ]:
        out, expected = segment_attention(qkv, segments), attention_by_loop(qkv, groups)
        assert_close(out, expected)
        probe = torch.linspace(-1, 1, out.numel()).view_as(out)
        actual_grad, expected_grad = (torch.autograd.grad((y * probe).sum(), qkv)[0] for y in (out, expected))
        assert_close(actual_grad, expected_grad)


def test_attention_needs_no_gathering_where_voxels_lie_in_windows():
    x = random_tensor([100, 3, 70], 3 * 2 * 4)
    qkv = x.feats.view(-1, 3, 2, 4)
    expected = attention_by_loop(qkv, window_ids(x.sites, 3, 1))
    ordered, order = in_windows(x.sites, 3, 1), window_segments(x.sites, 3, 1).order
    assert torch.equal(ordered.coords, x.coords[order]) and ordered.counts == x.sites.counts
    segments = window_segments(ordered, 3, 1)
    assert segments.order is None and segments.inverse is None
    assert_close(segment_attention(qkv[order], segments), expected[order])


@pytest.mark.parametrize("before", [None, (3, 0), (3, 1)])
@pytest.mark.parametrize("after", [None, (3, 0), (3, 1)])
def test_rows_move_between_the_orders_of_windows(before, after):
    x = random_tensor([60, 7], 1)
    old, new = (x.sites if window is None else in_windows(x.sites, *window) for window in (before, after))
    place = places(x.sites, before, after)
    moved = old.coords if place is None else torch.empty_like(old.coords).index_copy(0, place, old.coords)
    assert torch.equal(moved, new.coords)


def test_samples_without_voxels_are_harmless():
    full = random_tensor([30, 12], 12)
    coords = full.coords * torch.tensor([2, 1, 1, 1], dtype=torch.int32)  # batch indices 0 and 2
    x = SparseTensor(full.feats.clone().requires_grad_(), coords, batch_size=4)
    assert x.sites.counts == [30, 0, 12, 0]
    qkv = x.feats.view(-1, 3, 2, 2)
    assert_close(segment_attention(qkv, sample_segments(x.sites)), attention_by_loop(qkv, x.coords[:, 0]))
    normed = SparseGroupNorm32(3, 12)(x)
    assert_close(normed.feats, SparseGroupNorm32(3, 12)(full).feats)
    (segment_attention(qkv, sample_segments(x.sites)).sum() + normed.feats.square().sum()).backward()
    assert x.feats.grad.isfinite().all()


def test_cross_attention_is_per_sample_and_averages_views():
    x = random_tensor([40, 9, 20], 16)
    layer = SparseCrossAttention(16, 10, 2, qk_rms_norm=True)
    context = [torch.randn(3, 5, 10), torch.randn(3, 7, 10)]
    out = layer(x, context)
    for sample, rows in enumerate(x.layout):
        alone = [layer(x[sample], [view[sample : sample + 1]]).feats for view in context]
        assert_close(out.feats[rows], sum(alone) / 2)


def test_group_norm_is_per_sample():
    x = random_tensor([60, 7, 31], 12)
    layer = SparseGroupNorm32(4, 12)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    out = layer(x)
    for rows in x.layout:
        expected = F.group_norm(x.feats[rows].t()[None], 4, layer.weight, layer.bias)[0].t()
        assert_close(out.feats[rows], expected)


def test_tensors_on_the_same_voxels_share_tables(x):
    doubled = x * 2
    assert doubled.sites is x.sites
    assert window_segments(doubled.sites, 4) is window_segments(x.sites, 4)
    assert downsample(doubled).sites is downsample(x).sites


def test_arithmetic_and_statistics(golden, x):
    assert_close(x.std(), golden.outputs["std"])
    per_sample = torch.tensor([[1.0], [10.0]])
    expected = x.feats * per_sample[x.coords[:, 0].long()] + 1
    assert_close((per_sample * x + 1).feats, expected)
    assert_close((1 - x / torch.full((5,), 2.0)).feats, 1 - x.feats / 2)
    assert_close((x - x).feats, torch.zeros_like(x.feats))


def test_gradient_of_per_sample_values():
    x = random_tensor([20, 5], 3)
    values = torch.randn(2, 3, requires_grad=True)
    (x * values).feats.sum().backward()
    assert_close(values.grad, torch.stack([x.feats[rows].sum(0) for rows in x.layout]))


def test_samples_split_and_join(x):
    joined = SparseTensor.cat(list(x))
    assert torch.equal(joined.coords, x.coords)
    assert torch.equal(joined.feats, x.feats)


@pytest.mark.parametrize(
    ("coords", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.int32), "shape"),
        (torch.zeros(2, 4), "integers"),
        (torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0]]), "sorted"),
        (torch.tensor([[0, 0, 0, 0], [0, 0, -1, 0]]), "negative"),
        (torch.zeros(0, 4, dtype=torch.int32), "at least one"),
    ],
)
def test_bad_coordinates_are_refused(coords, message):
    with pytest.raises(ValueError, match=message):
        SparseTensor(torch.zeros(len(coords), 1), coords)
