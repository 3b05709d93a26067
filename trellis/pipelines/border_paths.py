"""How much a colour must change on the way from the border of a picture to each of its pixels.

Both measures are least costs over all paths from the seeds, approximated by a few raster sweeps in turns of direction
(as Zhang et al., "Minimum Barrier Salient Object Detection at 80 FPS", 2015).
"""

from __future__ import annotations

import numpy as np

from trellis.renderers.numba_runtime import exclusive, kernel

_SWEEPS = 6  # further ones hardly change the result


def barrier(channels: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """The minimum barrier distance (Strand et al., 2013): the largest less the smallest value on a path.

    A wall or a table that holds seeds stays near zero however finely it is patterned, and so does clutter that the
    frame cuts off; an object with an outline of its own rises above it.

    channels: float32 [H, W, C], H and W at least 1. seeds: bool [H, W].

    Returns float32 [H, W], the Euclidean norm over the channels; infinite if there is no seed.
    """
    padded, start = _padded(channels, seeds)
    with exclusive():
        distances = [_barrier(np.ascontiguousarray(padded[..., c]), start.copy()) for c in range(padded.shape[2])]
    return np.sqrt(np.square(distances).sum(axis=0))[1:-1, 1:-1]


def largest_step(channels: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """The largest step between neighbours on a path: small where a soft shadow or a gradient leads, large past an edge.

    Arguments as for `barrier`. Returns float32 [H, W], the norm over the channels of that step; infinite without seeds.
    """
    padded, start = _padded(channels, seeds)
    with exclusive():
        return _largest_step(padded, start)[1:-1, 1:-1]


def _padded(channels: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Channels [H + 2, W + 2, C] and starting costs [H + 2, W + 2], zero at the seeds; no path uses the frame added."""
    padded = np.pad(channels, ((1, 1), (1, 1), (0, 0)), mode="edge").astype(np.float32)
    return padded, np.where(np.pad(seeds, 1), np.float32(0), np.float32(np.inf))


@kernel
def _barrier(values, cost):
    height, width = values.shape
    highest, lowest = values.copy(), values.copy()
    for sweep in range(_SWEEPS):
        step = 1 if sweep % 2 == 0 else -1
        for a in range(1, height - 1):
            i = a if step == 1 else height - 1 - a
            for b in range(1, width - 1):
                j = b if step == 1 else width - 1 - b
                for side in range(2):
                    y, x = (i - step, j) if side == 0 else (i, j - step)
                    if cost[y, x] == np.inf:
                        continue
                    high = max(highest[y, x], values[i, j])
                    low = min(lowest[y, x], values[i, j])
                    if high - low < cost[i, j]:
                        cost[i, j] = high - low
                        highest[i, j] = high
                        lowest[i, j] = low
    return cost


@kernel
def _largest_step(values, cost):
    height, width, channels = values.shape
    for sweep in range(_SWEEPS):
        step = 1 if sweep % 2 == 0 else -1
        for a in range(1, height - 1):
            i = a if step == 1 else height - 1 - a
            for b in range(1, width - 1):
                j = b if step == 1 else width - 1 - b
                for side in range(2):
                    y, x = (i - step, j) if side == 0 else (i, j - step)
                    if cost[y, x] >= cost[i, j]:
                        continue
                    square = np.float32(0)
                    for c in range(channels):
                        square += (values[i, j, c] - values[y, x, c]) ** 2
                    cost[i, j] = min(cost[i, j], max(cost[y, x], np.sqrt(square)))
    return cost
