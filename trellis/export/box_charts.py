"""Texture coordinates in linear time for any mesh: charts that are flat projections along the axes, packed in rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from trellis.export.surface import Surface
from trellis.export.topology import EdgeTable, pieces
from trellis.renderers.numba_runtime import exclusive, kernel

_SMOOTHING = 4  # rounds in which a face joins the direction of most of its neighbours
_MAX_SPLITS = 40
_GRID_CELLS = 3.0  # per typical face side, in the test for overlap


@dataclass(frozen=True, eq=False)
class Charts:
    """labels: [F] chart of each face. corners: [F, 3, 2] float64 uv of each corner in [0, 1]. number: of charts."""

    labels: np.ndarray
    corners: np.ndarray
    number: int


def box_charts(surface: Surface, texture_size: int, padding: int) -> Charts:
    """Cut into pieces that face one of six directions, flatten them along it, and pack their rectangles.

    A piece that would overlap itself is halved along the direction of view until it does not (a single face never
    does). Nothing is stretched by more than the angle to the axis, and texels are of one size on all charts.
    """
    edges = EdgeTable.welded(surface)
    axis, sign = _directions(surface, edges)
    planar = _flattened(surface, axis, sign)
    labels = _connected(edges, axis * 2 + (sign > 0))
    middle = surface.corner_positions().mean(axis=1)
    depth = middle[np.arange(len(axis)), axis]
    for _ in range(_MAX_SPLITS):
        crowded = _overlapping(planar, labels)
        if not crowded.any():
            break
        labels = _connected(edges, _halved(labels, depth, crowded))
    else:
        labels = np.where(crowded[labels], labels.max() + 1 + np.arange(len(labels)), labels)
    labels = np.unique(labels, return_inverse=True)[1]
    corners = _packed(planar, labels, texture_size, padding)
    return Charts(labels, corners, int(labels.max()) + 1)


def _directions(surface: Surface, edges: EdgeTable) -> tuple[np.ndarray, np.ndarray]:
    """Axis [F] in 0..2 and sign [F] that each face looks along, after a few rounds of majority among neighbours."""
    normals = surface.face_vectors()
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)
    links = edges.adjacency().astype(np.float32)
    score = np.concatenate([normals, -normals], axis=1)
    choice = score.argmax(axis=1)
    for _ in range(_SMOOTHING):
        votes = links @ np.eye(6, dtype=np.float32)[choice]
        # A face that leans away from a direction by more than 60 degrees may not take it.
        choice = np.where(score > 0.5, score + 0.5 * votes, -1).argmax(axis=1)
    return choice % 3, np.where(choice < 3, 1, -1)


def _flattened(surface: Surface, axis: np.ndarray, sign: np.ndarray) -> np.ndarray:
    """[F, 3, 2] positions in the plane across `axis`, not mirrored seen from outside."""
    corners = surface.corner_positions()
    rows = np.arange(len(axis))
    u = corners[rows, :, (axis + 1) % 3] * sign[:, None]
    v = corners[rows, :, (axis + 2) % 3]
    return np.stack([u, v], axis=2)


def _connected(edges: EdgeTable, group: np.ndarray) -> np.ndarray:
    """Labels [F] of the connected pieces of faces of the same group [F]."""
    same = group[edges.pairs[:, 0]] == group[edges.pairs[:, 1]]
    return pieces(replace(edges, pairs=edges.pairs[same], flipped=edges.flipped[same]))[1]


def _halved(labels: np.ndarray, depth: np.ndarray, crowded: np.ndarray) -> np.ndarray:
    """Groups [F]: those of `labels`, with each crowded one cut at its median depth."""
    order = np.lexsort((depth, labels))
    counts = np.bincount(labels)
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(len(labels)) - np.repeat(np.r_[0, np.cumsum(counts)[:-1]], counts)
    return 2 * labels + (crowded[labels] & (rank >= counts[labels] // 2))


def _overlapping(planar: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[charts] bool: whether two faces of a chart cover the same point of a grid finer than the faces."""
    number = int(labels.max()) + 1
    turned = _signed_areas(planar) <= 0  # folded over, or on edge: nothing to paint on
    many = np.bincount(labels, minlength=number) > 1
    crowded = np.zeros(number, dtype=bool)
    crowded[labels[turned]] = True
    low, high = _bounds(planar, labels, number)
    sides = np.sqrt(np.abs(_signed_areas(planar)))
    cell = np.maximum(np.median(sides) / _GRID_CELLS, (high - low).max() / 4096)
    shape = np.ceil((high - low) / cell).astype(np.int64) + 1
    order = np.argsort(labels, kind="stable")
    starts = np.r_[0, np.cumsum(np.bincount(labels, minlength=number))]
    with exclusive():
        _mark_overlaps(planar, order, starts, low, cell, shape, crowded)
    return crowded & many


@kernel
def _mark_overlaps(planar, order, starts, low, cell, shape, crowded):
    for chart in range(len(starts) - 1):
        if crowded[chart] or starts[chart + 1] - starts[chart] < 2:
            continue
        taken = np.zeros((shape[chart, 0], shape[chart, 1]), dtype=np.bool_)
        for i in range(starts[chart], starts[chart + 1]):
            corners = (planar[order[i]] - low[chart]) / cell
            ax, ay = corners[0, 0], corners[0, 1]
            bx, by = corners[1, 0] - ax, corners[1, 1] - ay
            cx, cy = corners[2, 0] - ax, corners[2, 1] - ay
            area = bx * cy - by * cx
            if area <= 0:
                continue
            first_x, last_x = int(np.ceil(corners[:, 0].min() - 0.5)), int(np.floor(corners[:, 0].max() - 0.5))
            first_y, last_y = int(np.ceil(corners[:, 1].min() - 0.5)), int(np.floor(corners[:, 1].max() - 0.5))
            for gx in range(max(first_x, 0), last_x + 1):
                for gy in range(max(first_y, 0), last_y + 1):
                    x, y = gx + 0.5 - ax, gy + 0.5 - ay
                    v, w = (x * cy - y * cx) / area, (y * bx - x * by) / area
                    if v > 1e-6 and w > 1e-6 and v + w < 1 - 1e-6:
                        if taken[gx, gy]:
                            crowded[chart] = True
                        taken[gx, gy] = True


def _packed(planar: np.ndarray, labels: np.ndarray, size: int, padding: int) -> np.ndarray:
    """[F, 3, 2] uv: each chart's rectangle on a shelf, as large as the square allows, `padding` texels apart."""
    number = int(labels.max()) + 1
    low, high = _bounds(planar, labels, number)
    extent = high - low
    wide = extent[:, 1] > extent[:, 0]  # lie down, so that shelves are low
    sides = np.where(wide[:, None], extent[:, ::-1], extent)
    order = np.lexsort((-sides[:, 0], -sides[:, 1]))
    smallest, largest = 0.0, 2 * size / max(np.sqrt(np.prod(sides, axis=1).sum()), float(sides.max()), 1e-30)
    places = None
    for _ in range(24):
        scale = (smallest + largest) / 2
        trial = _shelves(np.ceil(sides[order] * scale) + padding + 1, size - padding)
        if trial is None:
            largest = scale
        else:
            smallest, places = scale, trial
    if places is None:  # more charts than texels: overlap cannot be avoided, but the export still succeeds
        places, smallest = np.random.default_rng(0).random((number, 2)) * (size - 4) + 2, 0.0
    origin = np.empty((number, 2))
    origin[order] = places + padding
    # Turned by a quarter, not mirrored: (x, y) -> (y, width - x).
    offset = planar - low[labels][:, None, :]
    turned = np.stack([offset[..., 1], extent[labels][:, None, 0] - offset[..., 0]], axis=2)
    texels = np.where(wide[labels][:, None, None], turned, offset) * smallest + 0.5
    return (texels + origin[labels][:, None, :]) / size


def _shelves(sides: np.ndarray, size: float) -> np.ndarray | None:
    """Lower left corners [N, 2] of rectangles [N, 2] sorted by falling height, in rows; None if they do not fit."""
    places = np.empty_like(sides)
    x = y = height = 0.0
    for i, (width, tall) in enumerate(sides.tolist()):
        if x + width > size:
            x, y, height = 0.0, y + height, 0.0
        if width > size or y + tall > size:
            return None
        places[i] = x, y
        x, height = x + width, max(height, tall)
    return places


def _bounds(planar: np.ndarray, labels: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.full((number, 2), np.inf), np.full((number, 2), -np.inf)
    np.minimum.at(low, labels, planar.min(axis=1))
    np.maximum.at(high, labels, planar.max(axis=1))
    return low, high


def _signed_areas(planar: np.ndarray) -> np.ndarray:
    a, b, c = np.moveaxis(planar, 1, 0)
    return (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
