"""Telling the object from its background when a photograph brings no alpha.

Two methods, picked by `segmenter("auto")`: rembg's U2-Net (Qin et al., 2020) if the package and its weights are already
on this machine, else GrabCut (Rother, Kolmogorov & Blake, "GrabCut", 2004) started from the colours along the border.
Nothing is downloaded here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from trellis.errors import InputError

Segmenter = Callable[[Image.Image], np.ndarray]
METHODS = ("auto", "rembg", "grabcut")

_GRABCUT_SIDE = 400  # pixels; the cut costs about half a second there, and four times that at twice the side
_MIN_CONTRAST = 10.0  # CIE Lab units between object and background; noise and vignetting stay below
_MIN_AREA = 0.002  # of the image


def segmenter(method: str = "auto") -> Segmenter:
    """A function from an RGB image to a mask, uint8 [H', W'] with 255 on the object (of any size, the caller resizes).

    method: "rembg", "grabcut", or "auto" for the first of them that works here. Raises InputError for another name, or
    if rembg is asked for by name and is not there. The function itself raises InputError if it sees no object.
    """
    if method not in METHODS:
        raise InputError(f"Unknown background removal {method!r}; choose one of {', '.join(METHODS)}.")
    if method == "grabcut" or (method == "auto" and not rembg_available()):
        return grabcut_mask
    if not rembg_available():
        raise InputError(
            f"Background removal by rembg needs the package rembg and its weights at {_u2net_path()}; "
            "install both or choose grabcut."
        )
    return rembg_mask


def rembg_available() -> bool:
    """Whether rembg can run without fetching anything."""
    return find_spec("rembg") is not None and _u2net_path().is_file()


def rembg_mask(image: Image.Image) -> np.ndarray:
    """Mask by U2-Net; soft, uint8 [H, W]."""
    mask = np.asarray(_rembg()(image.convert("RGB")))
    if not (mask > 128).any():
        raise _no_object()
    return mask


def grabcut_mask(image: Image.Image) -> np.ndarray:
    """Mask by GrabCut, uint8 {0, 255}, at most 400 pixels on the longer side.

    The colour along the border is described twice, as a smooth surface over the picture (a plain backdrop, lit
    unevenly) and as a few clusters (a table before a wall). What neither explains starts as the object, and the cut
    refines its outline.
    """
    import cv2

    image = image.convert("RGB")
    scale = _GRABCUT_SIDE / max(image.size)
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in image.size)
        image = image.resize(size, Image.Resampling.BOX)
    rgb = np.ascontiguousarray(image)
    lab = cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    lab = cv2.GaussianBlur(lab, (0, 0), 1.0)
    distance = np.minimum(_surface_distance(lab), _cluster_distance(lab))

    threshold = max(_MIN_CONTRAST, _otsu(distance))
    if (distance > threshold).mean() < _MIN_AREA:
        raise _no_object()
    labels = np.where(distance > threshold, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    edge = _border(labels.shape, width=2)
    labels[edge & (distance < threshold / 2)] = cv2.GC_BGD  # only there: the object itself may run out of the picture
    labels[distance > 3 * threshold] = cv2.GC_FGD
    cv2.setRNGSeed(0)  # the colour mixtures start from random centres
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(np.ascontiguousarray(rgb[..., ::-1]), labels, None, *models, 4, cv2.GC_INIT_WITH_MASK)

    mask = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    mask = _drop_small_parts(mask)
    mask = 1 - _drop_small_parts(1 - mask, relative_to=mask.size, share=0.001)  # pinholes close, a handle's hole stays
    if mask.mean() < _MIN_AREA:
        raise _no_object()
    return mask * 255


def _surface_distance(lab: np.ndarray) -> np.ndarray:
    """Distance [H, W] from a quadratic surface of colour fitted to the border, outliers dropped twice."""
    height, width = lab.shape[:2]
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=-1)
    edge = _border((height, width), width=max(2, min(height, width) // 32))
    rows, colours = terms[edge], lab[edge].astype(np.float64)
    keep = np.ones(len(rows), dtype=bool)
    for _ in range(3):
        surface = np.linalg.lstsq(rows[keep], colours[keep], rcond=None)[0]
        residual = np.linalg.norm(rows @ surface - colours, axis=-1)
        keep = residual <= max(2 * float(np.median(residual)), 1.0)
    return np.linalg.norm(terms @ surface - lab, axis=-1).astype(np.float32)


def _cluster_distance(lab: np.ndarray, clusters: int = 3) -> np.ndarray:
    """Distance [H, W] from the nearest of a few colours that each hold a tenth of the border at least."""
    import cv2

    edge = lab[_border(lab.shape[:2], width=max(2, min(lab.shape[:2]) // 32))]
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    cv2.setRNGSeed(0)
    _, owner, centres = cv2.kmeans(edge, clusters, None, stop, 2, cv2.KMEANS_PP_CENTERS)
    share = np.bincount(owner.ravel(), minlength=clusters) / len(edge)
    return np.min([np.linalg.norm(lab - centre, axis=-1) for centre in centres[share >= 0.1]], axis=0)


def _otsu(values: np.ndarray) -> float:
    """Otsu's threshold: the cut that separates the two halves' means best (Otsu, 1979)."""
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[1:] + edges[:-1]) / 2
    below, mass = np.cumsum(counts), np.cumsum(counts * centres)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (mass / below - (mass[-1] - mass) / above) ** 2
    return float(centres[int(np.nanargmax(between))])


def _border(shape: tuple[int, int], width: int) -> np.ndarray:
    edge = np.ones(shape, dtype=bool)
    edge[width:-width, width:-width] = False
    return edge


def _drop_small_parts(mask: np.ndarray, relative_to: int | None = None, share: float = 0.1) -> np.ndarray:
    """Clear connected parts smaller than `share` of the largest one, or of `relative_to` pixels."""
    import cv2

    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0
    keep = areas >= share * (relative_to or areas.max(initial=1))
    keep[0] = False
    return keep[labels].astype(np.uint8) if count > 1 else mask


def _no_object() -> InputError:
    return InputError(
        "No object stands out from the background; use a plainer backdrop, or an image whose background is transparent."
    )


def _u2net_path() -> Path:
    """Where rembg keeps its default weights."""
    home = os.environ.get("U2NET_HOME") or os.path.join(os.environ.get("XDG_DATA_HOME", "~"), ".u2net")
    return Path(home).expanduser() / "u2net.onnx"


@cache
def _rembg() -> Callable[[Image.Image], Image.Image]:
    from rembg import new_session, remove

    session = new_session("u2net")
    return lambda image: remove(image, session=session, only_mask=True)
