"""Measures of a reconstruction against the object it was made from."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree
from torch import Tensor


def rotation_angle_degrees(a: Tensor, b: Tensor) -> Tensor:
    """Angle between rotations [..., 3, 3], degrees."""
    trace = (a @ b.mT).diagonal(dim1=-2, dim2=-1).sum(-1)
    return torch.rad2deg(torch.arccos(((trace - 1) / 2).clamp(-1, 1)))


def relative_rotation_errors(predicted: Tensor, true: Tensor) -> Tensor:
    """Errors of the rotation between every pair of views, degrees, [N (N-1) / 2]; world-to-camera [N, 3, 3]."""
    first, second = torch.triu_indices(len(true), len(true), offset=1)
    return rotation_angle_degrees(predicted[second] @ predicted[first].mT, true[second] @ true[first].mT)


def occupancy_grid(points: Tensor, resolution: int) -> Tensor:
    """[R, R, R] bool: cells of the unit cube around the origin that hold a point of [P, 3]."""
    cell = ((points + 0.5) * resolution).long().clamp(0, resolution - 1)
    grid = torch.zeros((resolution,) * 3, dtype=torch.bool)
    grid[cell[:, 0], cell[:, 1], cell[:, 2]] = True
    return grid


def grid_iou(a: Tensor, b: Tensor) -> float:
    """Intersection over union of two boolean grids."""
    return float((a & b).sum() / (a | b).sum().clamp(min=1))


def grid_f1(a: Tensor, b: Tensor, tolerance: int = 1) -> float:
    """F1 of two boolean grids, a cell counting as found if the other grid has one within `tolerance` cells."""

    def dilate(grid: Tensor) -> Tensor:
        return F.max_pool3d(grid[None, None].float(), 2 * tolerance + 1, 1, tolerance)[0, 0] > 0

    precision = (a & dilate(b)).sum() / a.sum().clamp(min=1)
    recall = (b & dilate(a)).sum() / b.sum().clamp(min=1)
    return float(2 * precision * recall / (precision + recall).clamp(min=1e-6))


def align_similarity(
    source: np.ndarray, target: np.ndarray, iterations: int = 30, matches: int = 10_000
) -> np.ndarray:
    """Iterative closest points with Umeyama's similarity (1991), starting from where `source` [P, 3] is; it goes by the
    first `matches` of its points."""
    tree, moved = cKDTree(target), source.copy()
    for _ in range(iterations):
        some = moved[:matches]
        matched = target[tree.query(some)[1]]
        source_mean, target_mean = some.mean(0), matched.mean(0)
        a, b = some - source_mean, matched - target_mean
        u, s, vt = np.linalg.svd(b.T @ a)
        sign = np.ones(3)
        sign[-1] = np.sign(np.linalg.det(u @ vt))
        rotation = u @ np.diag(sign) @ vt
        scale = (s * sign).sum() / (a**2).sum()
        moved = scale * (moved - source_mean) @ rotation.T + target_mean
    return moved


def chamfer_and_f_score(
    a: np.ndarray, b: np.ndarray, radius: float = 0.05, queries: int = 10_000
) -> tuple[float, float]:
    """Mean of the two mean nearest distances, and the F-score within `radius`; object size 1.

    From the first `queries` of the points [P, 3] of one surface to all of the other's: distances between equally sparse
    samples of one and the same surface would not be zero.
    """
    a_to_b, b_to_a = cKDTree(b).query(a[:queries])[0], cKDTree(a).query(b[:queries])[0]
    precision, recall = (a_to_b < radius).mean(), (b_to_a < radius).mean()
    f = 2 * precision * recall / max(precision + recall, 1e-9)
    return float((a_to_b.mean() + b_to_a.mean()) / 2), float(f)
