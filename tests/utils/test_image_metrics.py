"""How alike two images are, against what can be computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trellis.utils.image_metrics import iou, psnr, ssim


def test_psnr_is_the_logarithm_of_the_mean_squared_error():
    black = np.zeros((4, 5, 3))
    assert psnr(black, black + 0.1) == pytest.approx(20)
    assert psnr(black, black) == math.inf


def test_ssim_of_two_flat_images_is_what_their_means_say():
    a, b = (np.full((32, 32, 3), value) for value in (0.2, 0.7))
    assert ssim(a, b) == pytest.approx((2 * 0.2 * 0.7 + 1e-4) / (0.2**2 + 0.7**2 + 1e-4))
    assert ssim(a, a) == pytest.approx(1)


def test_ssim_falls_with_structure_that_is_not_shared_and_hardly_with_brightness():
    rng = np.random.default_rng(0)
    image = np.kron(rng.random((16, 16, 3)), np.ones((4, 4, 1)))
    brighter, noisy = image * 0.9 + 0.05, image + rng.normal(size=image.shape) * 0.1
    other = np.kron(rng.random((16, 16, 3)), np.ones((4, 4, 1)))
    assert 1 > ssim(image, brighter) > ssim(image, noisy) > ssim(image, other)


def test_iou_of_masks():
    a, b = np.zeros((2, 4), bool), np.zeros((2, 4), bool)
    assert iou(a, b) == 1
    a[:, :3], b[:, 1:] = True, True
    assert iou(a, b) == 0.5
