"""Does the asset agree with the photographs? Each view is rendered with its own camera and compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from studio.stages import PreparedView, Report
from trellis.export.gltf import TexturedMesh
from trellis.export.unlit import render_textured
from trellis.pipelines.image_files import OPAQUE
from trellis.renderers import gaussian_raster
from trellis.renderers.cameras import Cameras
from trellis.representations.gaussian import Gaussian

_SIGMA = 1.5  # pixels, the window of SSIM
_C1, _C2 = 0.01**2, 0.03**2  # its stabilisers, for a range of 1


@dataclass(frozen=True, eq=False)
class Comparison:
    """scores: for run.json, by "mesh" and "splats". render: the textured mesh as the view's camera sees it, RGBA."""

    scores: dict[str, dict[str, float | None]]
    render: Image.Image


def compare(
    asset: TexturedMesh, gaussian: Gaussian, cameras: Cameras, views: Sequence[PreparedView], report: Report
) -> list[Comparison]:
    """Compare mesh and splats with every prepared view, over black. `report` counts the views."""
    comparisons = []
    for index, view in enumerate(views):
        report(index, len(views))
        height, width = cameras.height_width(index)
        pixels = np.asarray(view.image.convert("RGBA").resize((width, height)))
        inside = pixels[..., 3] > OPAQUE
        photo = pixels[..., :3].astype(np.float32) / 255 * inside[..., None]
        color, mask = render_textured(asset, asset.texture, cameras, index)
        with torch.no_grad():
            splats = gaussian_raster.render(gaussian, cameras, index)
        splat_color = splats.color.permute(1, 2, 0).numpy().clip(0, 1)
        scores = {
            "mesh": _scores(photo, inside, color * mask[..., None], mask > 0.5),
            "splats": _scores(photo, inside, splat_color, splats.alpha[0].numpy() > 0.5),
        }
        picture = np.concatenate([color * 255 + 0.5, mask[..., None] * 255], axis=-1).astype(np.uint8)
        comparisons.append(Comparison(scores, Image.fromarray(picture)))
    return comparisons


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


def summary(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Means over the views, and the scores of each."""
    each = [comparison.scores for comparison in comparisons]
    mean: dict[str, dict[str, float | None]] = {}
    for what in ("mesh", "splats"):
        mean[what] = {}
        for name in ("psnr", "ssim", "iou"):
            values = [scores[what][name] for scores in each if scores[what][name] is not None]
            mean[what][name] = round(float(np.mean(values)), 4) if values else None
    return {"mean": mean, "views": each}


def _scores(photo: np.ndarray, inside: np.ndarray, render: np.ndarray, covered: np.ndarray) -> dict[str, float | None]:
    noise = psnr(photo, render)
    return {
        "psnr": round(noise, 3) if math.isfinite(noise) else None,  # JSON knows no infinity
        "ssim": round(ssim(photo, render), 4),
        "iou": round(iou(inside, covered), 4),
    }
