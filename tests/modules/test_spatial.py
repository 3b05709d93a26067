"""Patches and shuffles: exact rearrangements in the stated order."""

import pytest
import torch

from trellis.modules.spatial import patchify, pixel_shuffle_3d, unpatchify


def test_patchify_lists_channels_then_offsets():
    x = torch.arange(2 * 3 * 4 * 4 * 4).reshape(2, 3, 4, 4, 4)
    patches = patchify(x, 2)
    assert patches.shape == (2, 24, 2, 2, 2)
    for c, dx, dy, dz in [(0, 0, 0, 1), (1, 0, 1, 0), (2, 1, 0, 1)]:
        channel = c * 8 + dx * 4 + dy * 2 + dz
        assert torch.equal(patches[:, channel], x[:, c, dx::2, dy::2, dz::2])


@pytest.mark.parametrize("patch_size", [1, 2, 3])
def test_unpatchify_inverts_patchify(patch_size):
    x = torch.randn(2, 3, 6, 12, 6)
    assert torch.equal(unpatchify(patchify(x, patch_size), patch_size), x)


def test_pixel_shuffle_spreads_channels_over_offsets():
    x = torch.randn(1, 16, 3, 3, 3)
    y = pixel_shuffle_3d(x, 2)
    assert y.shape == (1, 2, 6, 6, 6)
    assert torch.equal(y[:, 1, 1::2, 0::2, 1::2], x[:, 8 + 5])


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="patches of 2"):
        patchify(torch.zeros(1, 1, 4, 3, 4), 2)
    with pytest.raises(ValueError, match="12 channels"):
        unpatchify(torch.zeros(1, 12, 2, 2, 2), 2)
