"""What is minimised, and what is reported."""

from __future__ import annotations

import torch
from torch import Tensor

from nvdiffrec.views import linear_to_srgb

_SOFT = 0.003  # a difference between texels, linear; below it the total variation is quadratic
_FULL_SCORE = 60.0  # decibels; an error below what 8-bit images hold


def log_tonemapped_l1(image: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of linear images after the curve srgb(log(1 + x)) (Munkberg et al. 2022, sec. 3).

    The logarithm keeps highlights from deciding everything, the sRGB curve gives shadows their say.
    """
    return (tone_mapped(image) - tone_mapped(target)).abs().mean()


def mask_l2(coverage: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of coverages."""
    return (coverage - target).square().mean()


def light_neutrality(environment: Tensor) -> Tensor:
    """Mean distance of an environment's channels [3, H, W] to their mean (Munkberg et al. 2022, sec. 3).

    Colour that base colour and light could both explain goes to the base colour.
    """
    return (environment - environment.mean(dim=0)).abs().mean()


def total_variation(change: Tensor) -> Tensor:
    """Mean length of the differences between neighbouring texels of [C, S, S] (Rudin, Osher and Fatemi 1992).

    A step of any height costs only its height, so patterns may sharpen; noise costs at every texel.
    """
    down, right = change.diff(dim=1), change.diff(dim=2)
    return (down.square() + _SOFT**2).sqrt().mean() + (right.square() + _SOFT**2).sqrt().mean() - 2 * _SOFT


def psnr(image: Tensor, target: Tensor, region: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB of sRGB images [..., 3], over all pixels or those of `region` [...]."""
    error = (image.clamp(0, 1) - target).square()
    error = error.mean() if region is None else error[region].mean()
    return min(_FULL_SCORE, float(-10 * torch.log10(error.clamp(min=1e-12))))


def silhouette_iou(coverage: Tensor, target: Tensor) -> float:
    """Intersection over union of two coverages at one half."""
    a, b = coverage > 0.5, target > 0.5
    return float((a & b).sum()) / max(1.0, float((a | b).sum()))


def on_white(image: Tensor) -> Tensor:
    """sRGB picture [H, W, 3] on white from linear light multiplied by coverage, and coverage [H, W, 4]."""
    coverage = image[..., 3:].clamp(0, 1)
    straight = image[..., :3] / coverage.clamp(min=1e-3)
    return linear_to_srgb(straight).clamp(0, 1) * coverage + 1 - coverage


def tone_mapped(image: Tensor) -> Tensor:
    """The curve of `log_tonemapped_l1`, elementwise."""
    return linear_to_srgb(torch.log1p(image.clamp(min=0)))
