"""Does the asset agree with the photographs? Each view is rendered with its own camera and compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from studio.stages import PreparedView, Report
from trellis.export.gltf import TexturedMesh
from trellis.export.unlit import render_textured
from trellis.pipelines.image_files import OPAQUE
from trellis.renderers import gaussian_raster
from trellis.renderers.cameras import Cameras
from trellis.representations.gaussian import Gaussian
from trellis.utils.image_metrics import iou, psnr, ssim


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
