"""How alike two images are."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

_SIGMA = 1.5  # pixels, the window of SSIM
_C1, _C2 = 0.01**2, 0.03**2  # its stabilisers, for a range of 1


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two images in [0, 1]; infinite if they are equal."""
    error = float(np.mean((np.asarray(a, np.float64) - b) ** 2))
    return math.inf if error == 0 else -10 * math.log10(error)


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity of two images [H, W, C] in [0, 1], mean over pixels and channels.

    Wang, Bovik, Sheikh & Simoncelli, "Image quality assessment", 2004: Gaussian windows of 11 pixels, sigma 1.5. As
    there, five pixels along the border, where windows are incomplete, do not count (unless there are no others).
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)

    def mean(x: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(x, (_SIGMA, _SIGMA, 0), truncate=3.5)

    mean_a, mean_b = mean(a), mean(b)
    variance_a, variance_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    similarity = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    similarity /= (mean_a**2 + mean_b**2 + _C1) * (variance_a + variance_b + _C2)
    inner = similarity[5:-5, 5:-5]
    return float((inner if inner.size else similarity).mean())


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks; 1 if both are empty."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0
