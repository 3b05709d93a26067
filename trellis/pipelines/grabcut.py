"""Cutting an object out of a photograph without any learned weights.

GrabCut (Rother, Kolmogorov & Blake 2004) refines a first guess. The guess joins two views of what the background is:
colours that the border of the picture shows, and whatever can be reached from that border without a change of colour.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from trellis.errors import InputError

_SIDE = 400  # pixels; the cut costs about half a second there, and four times that at twice the side
_PATH_SIDE = 200  # pixels; at this size carpets and grass have averaged out
_LIGHTNESS = 0.6  # weight of lightness beside colour on paths from the border: shadows are mostly lightness
_SOFT_STEP = 0.85  # Lab units between neighbours at that size; shadows and gradients stay below, outlines rise above
_MIN_CONTRAST = 6.0  # CIE Lab units between object and background; noise and vignetting stay below
_MIN_AREA = 0.002  # of the image
_ITERATIONS = 4


def grabcut_mask(image: Image.Image) -> np.ndarray:
    """Mask of the object, uint8 {0, 255}, at most 400 pixels on the longer side.

    Of several things in the picture the one that is large and near the middle is the object. The same picture always
    gives the same mask. Raises InputError if nothing stands out from the background.
    """
    import cv2

    image = image.convert("RGB")
    scale = _SIDE / max(image.size)
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in image.size)
        image = image.resize(size, Image.Resampling.BOX)
    rgb = np.ascontiguousarray(image)
    lab = cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    lab = cv2.GaussianBlur(lab, (0, 0), 1.0)

    distance = np.minimum(_surface_distance(lab), _cluster_distance(lab))
    # The object may run out of the picture; where it does, the border is no background. Opening removes the thin line
    # of mixed colours where a table meets a wall.
    unlike = _opened(distance > max(_MIN_CONTRAST, _otsu(distance)))
    leaves = _main_parts(unlike, share=1.0) & _border(unlike.shape, width=2)
    # The geometric mean: clutter along the border has other colours but no barrier, a textured floor the reverse.
    barrier, step = _border_paths(lab, leaves)
    contrast = np.sqrt(distance * barrier)
    # A small glossy patch should not raise the threshold above the rest of the object.
    threshold = max(_MIN_CONTRAST, _otsu(np.minimum(contrast, np.percentile(contrast, 98))))
    likely = contrast > threshold / 2
    sharp = likely & (step > _SOFT_STEP)
    if sharp.sum() > likely.sum() / 2:  # else the object itself is out of focus
        likely = sharp
    likely = _main_parts(likely)
    certain = likely & (contrast > 2 * threshold)
    if (likely & (contrast > threshold)).mean() < _MIN_AREA:
        raise no_object()

    labels = np.where(likely, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[certain] = cv2.GC_FGD
    labels[_border(labels.shape, width=2) & (distance < threshold / 2)] = cv2.GC_BGD
    if likely.all():
        raise no_object()  # GrabCut needs both kinds of pixels
    cv2.setRNGSeed(0)  # the colour mixtures start from random centres
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(np.ascontiguousarray(rgb[..., ::-1]), labels, None, *models, _ITERATIONS, cv2.GC_INIT_WITH_MASK)

    mask = _without_lines_from_the_frame(np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)))
    mask = _without_pinholes(_main_parts(mask))
    if mask.mean() < _MIN_AREA:
        raise no_object()
    return mask.astype(np.uint8) * 255


def no_object() -> InputError:
    """What to raise, and so what to tell a person, when a photograph shows no object."""
    return InputError(
        "No object stands out from the background; use a plainer backdrop, or an image whose background is transparent."
    )


def _surface_distance(lab: np.ndarray) -> np.ndarray:
    """Distance [H, W] from a quadratic surface of colour fitted to the border, outliers dropped twice.

    This is a plain backdrop, lit unevenly.
    """
    height, width = lab.shape[:2]
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=-1)
    edge = _wide_border((height, width))
    rows, colours = terms[edge], lab[edge].astype(np.float64)
    keep = np.ones(len(rows), dtype=bool)
    for _ in range(3):
        surface = np.linalg.lstsq(rows[keep], colours[keep], rcond=None)[0]
        residual = np.linalg.norm(rows @ surface - colours, axis=-1)
        keep = residual <= max(2 * float(np.median(residual)), 1.0)
    return np.linalg.norm(terms @ surface - lab, axis=-1).astype(np.float32)


def _cluster_distance(lab: np.ndarray, clusters: int = 3) -> np.ndarray:
    """Distance [H, W] from the nearest of a few colours that each hold a tenth of the border: a table before a wall."""
    import cv2

    edge = lab[_wide_border(lab.shape[:2])]
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    cv2.setRNGSeed(0)
    _, owner, centres = cv2.kmeans(edge, clusters, None, stop, 2, cv2.KMEANS_PP_CENTERS)
    share = np.bincount(owner.ravel(), minlength=clusters) / len(edge)
    return np.min([np.linalg.norm(lab - centre, axis=-1) for centre in centres[share >= 0.1]], axis=0)


def _border_paths(lab: np.ndarray, blocked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`barrier` and `largest_step` [H, W] of a smaller copy, from the border except where it is `blocked`."""
    import cv2

    from trellis.pipelines.border_paths import barrier, largest_step

    height, width = lab.shape[:2]
    scale = min(1.0, _PATH_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.GaussianBlur(cv2.resize(lab, size, interpolation=cv2.INTER_AREA), (0, 0), 1.0)
    small[..., 0] *= _LIGHTNESS
    frame = _border(small.shape[:2], width=1)
    free = frame & (cv2.resize(blocked.astype(np.float32), size, interpolation=cv2.INTER_AREA) == 0)
    seeds = free if free.any() else frame
    costs = np.stack([barrier(small, seeds), largest_step(small, seeds)], axis=-1)
    costs = cv2.resize(costs, (width, height), interpolation=cv2.INTER_LINEAR)
    return costs[..., 0], costs[..., 1]


def _otsu(values: np.ndarray) -> float:
    """Otsu's threshold: the cut that separates the two halves' means best (Otsu, 1979). Equal values: about theirs."""
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[1:] + edges[:-1]) / 2
    below, mass = np.cumsum(counts), np.cumsum(counts * centres)
    above = below[-1] - below
    split = (below > 0) & (above > 0)
    if not split.any():
        return float(values.flat[0])
    between = below * above * np.square(mass / np.maximum(below, 1) - (mass[-1] - mass) / np.maximum(above, 1))
    return float(centres[int(np.argmax(np.where(split, between, -1)))])


def _border(shape: tuple[int, int], width: int) -> np.ndarray:
    edge = np.ones(shape, dtype=bool)
    edge[width:-width, width:-width] = False
    return edge


def _wide_border(shape: tuple[int, int]) -> np.ndarray:
    return _border(shape, width=max(2, min(shape) // 32))


def _main_parts(mask: np.ndarray, share: float = 0.1) -> np.ndarray:
    """Keep the connected parts [H, W] that matter at least `share` as much as the one that matters most.

    A part matters by its area, weighted by nearness to the middle of the picture, and less if the frame cuts it off.
    """
    import cv2

    count, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    if count == 1:
        return mask
    height, width = mask.shape
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
    middle = np.exp(-2 * (x * x + y * y))
    matter = np.bincount(parts.ravel(), weights=middle.ravel(), minlength=count)
    along = np.bincount(parts[_border(mask.shape, width=1)], minlength=count)
    matter[along > 0.2 * np.sqrt(stats[:, cv2.CC_STAT_AREA])] *= 0.3
    matter[0] = 0  # what the mask leaves out
    return mask & (matter >= share * matter.max())[parts]


def _opened(mask: np.ndarray) -> np.ndarray:
    """The mask [H, W] without what is thinner than three pixels."""
    import cv2

    return cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)) > 0


def _without_lines_from_the_frame(mask: np.ndarray) -> np.ndarray:
    """Clear thin lines that end at the frame: where a table meets a wall, and they would widen the object's box."""
    import cv2

    thin = mask & ~_opened(mask)
    _, parts = cv2.connectedComponents(thin.astype(np.uint8), connectivity=8)
    ends = np.unique(parts[_border(mask.shape, width=1) & thin])
    return mask & ~np.isin(parts, ends[ends > 0])


def _without_pinholes(mask: np.ndarray, share: float = 0.001) -> np.ndarray:
    """Close holes below `share` of the picture; that in a handle stays."""
    import cv2

    count, parts, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] < share * mask.size
    small[0] = False  # the mask itself
    return mask | small[parts] if count > 1 else mask
