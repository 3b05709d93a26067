"""Norms keep float32 statistics and the caller's dtype."""

import pytest
import torch

from trellis.modules.norm import ChannelLayerNorm32, GroupNorm32, LayerNorm32, MultiHeadRMSNorm


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (LayerNorm32(64), (2, 3, 64)),
        (LayerNorm32(64, elementwise_affine=False), (2, 3, 64)),
        (GroupNorm32(4, 64), (2, 64, 3, 3, 3)),
        (ChannelLayerNorm32(64), (2, 64, 3, 3, 3)),
        (MultiHeadRMSNorm(16, 4), (2, 3, 4, 16)),
    ],
)
def test_half_precision_input_is_normalised_in_float32(norm, shape):
    x = (torch.randn(shape) * 300 + 400).half()  # squares overflow float16
    out = norm(x)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out, norm(x.float()).half())


def test_channel_layer_norm_treats_each_voxel_alone():
    x = torch.randn(2, 5, 3, 3, 3)
    out = ChannelLayerNorm32(5)(x)
    torch.testing.assert_close(out[1, :, 2, 0, 1], torch.nn.functional.layer_norm(x[1, :, 2, 0, 1], (5,)))


def test_rms_norm_has_unit_mean_square():
    out = MultiHeadRMSNorm(16, 4)(torch.randn(2, 3, 4, 16) * 7)
    torch.testing.assert_close(out.square().mean(-1), torch.ones(2, 3, 4))
