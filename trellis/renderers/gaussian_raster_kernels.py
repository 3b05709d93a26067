"""Numba kernels that order splats, list them per tile, and composite them front to back, with gradients.

A tile is 16 x 16 pixels, and compositing always works on whole rows of a tile: sixteen lanes with a mask vectorise,
while a loop over the few pixels that an ellipse covers in a row does not (three times slower, measured; even a test
for rows that the ellipse misses costs more than it saves). All
per-pixel arithmetic is float32. The backward pass walks the lists in the same direction and with the same arithmetic
as the forward pass, so both stop at the same splat; each (splat, tile) pair writes its own gradient row and
a second kernel adds the rows of a splat, hence no atomics and the same bits on every run.
"""

from __future__ import annotations

import numpy as np

from trellis.renderers.gaussian_projection_kernels import (
    BLUE,
    CONIC_XX,
    CONIC_XY,
    CONIC_YY,
    DEPTH,
    GREEN,
    LIMIT,
    OPACITY,
    RED,
    X,
    Y,
)
from trellis.renderers.numba_runtime import kernel, prange

TILE = 16
GRADIENT_COLUMNS = BLUE + 1
CHECK_EVERY = 8  # splats between two looks at whether a tile is already opaque

_ZERO = np.float32(0)
_ONE = np.float32(1)
_HALF = np.float32(0.5)
MAX_ALPHA = np.float32(0.99)
MIN_TRANSMITTANCE = np.float32(1e-4)

# exp(-x / 16) on [0, 0.38]: Chebyshev fit of degree 5, raised to the 16th power by squaring. The exponent of a visible
# pixel is at most ln 255 = 5.55, so no range reduction is needed; relative error below 3e-6.
_EXP = np.polynomial.chebyshev.Chebyshev.interpolate(lambda q: np.exp(-q), 5, domain=[0.0, 0.38]).convert(
    kind=np.polynomial.Polynomial
)
_E0, _E1, _E2, _E3, _E4, _E5 = (np.float32(value) for value in _EXP.coef)
_SIXTEENTH = np.float32(1 / 16)
_SIX = np.float32(6)


@kernel
def fast_exp_negative(x):
    """exp(-x) for x in [0, 6], float32; larger x count as 6, which keeps masked lanes finite."""
    q = min(x, _SIX) * _SIXTEENTH
    value = _E0 + q * (_E1 + q * (_E2 + q * (_E3 + q * (_E4 + q * _E5))))
    value *= value
    value *= value
    value *= value
    return value * value


@kernel
def depth_order(depths, bounds):
    """Indices of the drawn Gaussians, nearest first; equal depths keep their order.

    Two counting passes over 11 bits each sort the depth quantised to 22 bits of its range, far below what
    compositing can tell apart (1e-7 of the object).
    """
    count = 0
    nearest, farthest = np.inf, -np.inf
    for g in range(depths.shape[0]):
        if bounds[g, 1] >= bounds[g, 0]:
            count += 1
            nearest = min(nearest, depths[g])
            farthest = max(farthest, depths[g])
    keys = np.empty(count, dtype=np.uint32)
    order = np.empty(count, dtype=np.int32)
    scale = 4194303.0 / max(farthest - nearest, 1e-30)
    position = 0
    for g in range(depths.shape[0]):
        if bounds[g, 1] >= bounds[g, 0]:
            keys[position] = np.uint32((depths[g] - nearest) * scale)
            order[position] = g
            position += 1
    sorted_keys = np.empty_like(keys)
    sorted_order = np.empty_like(order)
    for shift in (np.uint32(0), np.uint32(11)):
        starts = np.zeros(2049, dtype=np.int64)
        for i in range(count):
            starts[((keys[i] >> shift) & np.uint32(2047)) + 1] += 1
        for digit in range(2048):
            starts[digit + 1] += starts[digit]
        for i in range(count):
            digit = (keys[i] >> shift) & np.uint32(2047)
            target = starts[digit]
            starts[digit] = target + 1
            sorted_keys[target] = keys[i]
            sorted_order[target] = order[i]
        keys, sorted_keys = sorted_keys, keys
        order, sorted_order = sorted_order, order
    return order


@kernel
def row_offsets(bounds):
    """Offsets [G + 1] of each Gaussian's rows when its (Gaussian, tile) pairs are numbered Gaussian by Gaussian."""
    offsets = np.empty(bounds.shape[0] + 1, dtype=np.int64)
    offsets[0] = 0
    for g in range(bounds.shape[0]):
        offsets[g + 1] = offsets[g]
        if bounds[g, 1] >= bounds[g, 0]:
            columns = bounds[g, 1] // TILE - bounds[g, 0] // TILE + 1
            offsets[g + 1] += columns * (bounds[g, 3] // TILE - bounds[g, 2] // TILE + 1)
    return offsets


@kernel
def tile_lists(order, bounds, height, width, pairs):
    """Counting sort of the pairs by tile, each tile's Gaussians nearest first.

    Returns:
        members: int32 [pairs] Gaussian indices; starts: int64 [tiles + 1] where each tile's list begins.
    """
    columns, rows = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    # Entry t + 2 counts tile t; after the sums, entry t + 1 is where tile t begins and is advanced while filling.
    starts = np.zeros(columns * rows + 2, dtype=np.int64)
    spans = np.empty((order.shape[0], 4), dtype=np.int32)  # in depth order, so that the second pass reads in sequence
    for i in range(order.shape[0]):
        g = order[i]
        for side in range(4):
            spans[i, side] = bounds[g, side] // TILE
        for ty in range(spans[i, 2], spans[i, 3] + 1):
            for tx in range(spans[i, 0], spans[i, 1] + 1):
                starts[ty * columns + tx + 2] += 1
    for tile in range(columns * rows):
        starts[tile + 2] += starts[tile + 1]
    members = np.empty(pairs, dtype=np.int32)
    for i in range(order.shape[0]):
        g = order[i]
        for ty in range(spans[i, 2], spans[i, 3] + 1):
            for tx in range(spans[i, 0], spans[i, 1] + 1):
                tile = ty * columns + tx + 1
                members[starts[tile]] = g
                starts[tile] += 1
    return members, starts[:-1]


@kernel(fastmath=True)
def _blend_splat(state, splat, top, left, first, last):
    """Blend one splat into rows first..last of a tile.

    `state` [TILE, 6 TILE] float32 holds, row by row, sixteen lanes each of: the transmittance while the pixel is open
    and 0 once it is closed; the transmittance behind everything blended; red; green; blue; depth.
    """
    xx, xy, yy = splat[CONIC_XX], splat[CONIC_XY], splat[CONIC_YY]
    opacity, limit = splat[OPACITY], splat[LIMIT]
    red, green, blue, depth = splat[RED], splat[GREEN], splat[BLUE], splat[DEPTH]
    offset = np.float32(left) - splat[X]
    half_xx = _HALF * xx
    for y in range(first, last + 1):
        dy = np.float32(y) - splat[Y]
        across, down = xy * dy, _HALF * yy * dy * dy
        row = state[y - top]
        for lane in range(TILE):
            dx = offset + np.float32(lane)
            power = dx * (half_xx * dx + across) + down
            alpha = min(opacity * fast_exp_negative(power), MAX_ALPHA)
            alpha = alpha if power <= limit else _ZERO
            through, behind = row[lane], row[TILE + lane]
            weight = through * alpha
            passed = through - weight
            is_open = passed >= MIN_TRANSMITTANCE
            weight = weight if is_open else _ZERO
            row[lane] = passed if is_open else _ZERO
            row[TILE + lane] = passed if is_open else behind
            row[2 * TILE + lane] += weight * red
            row[3 * TILE + lane] += weight * green
            row[4 * TILE + lane] += weight * blue
            row[5 * TILE + lane] += weight * depth


@kernel
def _all_closed(state):
    """Whether no pixel of the tile lets light through any more."""
    for row in range(TILE):
        for lane in range(TILE):
            if state[row, lane] > _ZERO:
                return False
    return True


@kernel(parallel=True)
def composite_forward(splats, bounds, members, starts, background, color, alpha, depth, shares):
    """Blend the tile lists into `color` [3, H, W], `alpha` [H, W] and `depth` [H, W] (alpha-weighted camera z)."""
    height, width = alpha.shape
    columns = (width + TILE - 1) // TILE
    tiles = starts.shape[0] - 1
    by_length = np.argsort(starts[:-1] - starts[1:])  # longest first, dealt out in turn: even shares
    for share in prange(shares):
        state = np.empty((TILE, 6 * TILE), dtype=np.float32)
        for turn in range(share, tiles, shares):
            tile = by_length[turn]
            top, left = tile // columns * TILE, tile % columns * TILE
            state[:, : 2 * TILE] = _ONE
            state[:, 2 * TILE :] = _ZERO
            for index in range(starts[tile], starts[tile + 1]):
                if (index - starts[tile]) % CHECK_EVERY == CHECK_EVERY - 1 and _all_closed(state):
                    break
                g = members[index]
                _blend_splat(state, splats[g], top, left, max(bounds[g, 2], top), min(bounds[g, 3], top + TILE - 1))
            for y in range(top, min(top + TILE, height)):
                row = state[y - top]
                for x in range(left, min(left + TILE, width)):
                    lane = x - left
                    behind = row[TILE + lane]
                    color[0, y, x] = row[2 * TILE + lane] + behind * background[0]
                    color[1, y, x] = row[3 * TILE + lane] + behind * background[1]
                    color[2, y, x] = row[4 * TILE + lane] + behind * background[2]
                    alpha[y, x] = _ONE - behind
                    depth[y, x] = row[5 * TILE + lane]


@kernel(fastmath=True)
def _unblend_splat(state, sums, splat, top, left, first, last, row_gradients):
    """Gradients of one splat in one tile, written to `row_gradients` [10] in the order of the splat columns.

    `state` [TILE, 6 TILE] holds, row by row, sixteen lanes each of: the transmittance (0 once closed); what the loss
    still gains behind this point, sum_j w_j v_j with v the gradient of the loss by a unit of weight; and the image
    gradients of red, green, blue, depth. `sums` [7 TILE] is scratch.
    """
    xx, xy, yy = splat[CONIC_XX], splat[CONIC_XY], splat[CONIC_YY]
    opacity, limit = splat[OPACITY], splat[LIMIT]
    red, green, blue, depth = splat[RED], splat[GREEN], splat[BLUE], splat[DEPTH]
    offset = np.float32(left) - splat[X]
    half_xx = _HALF * xx
    sums[:] = _ZERO
    for y in range(first, last + 1):
        dy = np.float32(y) - splat[Y]
        across, down = xy * dy, _HALF * yy * dy * dy
        row = state[y - top]
        for lane in range(TILE):
            # As in _blend_splat, operation for operation.
            dx = offset + np.float32(lane)
            power = dx * (half_xx * dx + across) + down
            uncapped = opacity * fast_exp_negative(power)
            alpha = min(uncapped, MAX_ALPHA)
            alpha = alpha if power <= limit else _ZERO
            through, rest = row[lane], row[TILE + lane]
            weight = through * alpha
            passed = through - weight
            is_open = passed >= MIN_TRANSMITTANCE
            weight = weight if is_open else _ZERO
            row[lane] = passed if is_open else _ZERO

            grad_red, grad_green = row[2 * TILE + lane], row[3 * TILE + lane]
            grad_blue, grad_depth = row[4 * TILE + lane], row[5 * TILE + lane]
            value = grad_red * red + grad_green * green + grad_blue * blue + grad_depth * depth
            rest = rest - weight * value
            row[TILE + lane] = rest
            # More alpha here means more of this splat and less of everything behind it.
            # (np.divide, because the operator's test for zero would keep the loop from being vectorised.)
            slope = weight * value - np.divide(alpha * rest, _ONE - alpha)
            slope = slope if is_open and uncapped < MAX_ALPHA else _ZERO
            sums[lane] += weight * grad_red
            sums[TILE + lane] += weight * grad_green
            sums[2 * TILE + lane] += weight * grad_blue
            sums[3 * TILE + lane] += weight * grad_depth
            sums[4 * TILE + lane] += slope
            sums[5 * TILE + lane] += slope * dy
            sums[6 * TILE + lane] += slope * dy * dy
    # slope = dL/dalpha * alpha = -dL/dpower; its moments over the pixels give the position and the conic.
    s, sx, sy, sxx, sxy, syy = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
    grad_red, grad_green, grad_blue, grad_depth = _ZERO, _ZERO, _ZERO, _ZERO
    for lane in range(TILE):
        dx = offset + np.float32(lane)
        grad_red += sums[lane]
        grad_green += sums[TILE + lane]
        grad_blue += sums[2 * TILE + lane]
        grad_depth += sums[3 * TILE + lane]
        s += sums[4 * TILE + lane]
        sx += sums[4 * TILE + lane] * dx
        sxx += sums[4 * TILE + lane] * dx * dx
        sy += sums[5 * TILE + lane]
        sxy += sums[5 * TILE + lane] * dx
        syy += sums[6 * TILE + lane]
    row_gradients[X] = xx * sx + xy * sy
    row_gradients[Y] = xy * sx + yy * sy
    row_gradients[CONIC_XX] = -_HALF * sxx
    row_gradients[CONIC_XY] = -sxy
    row_gradients[CONIC_YY] = -_HALF * syy
    row_gradients[OPACITY] = s / opacity
    row_gradients[DEPTH] = grad_depth
    row_gradients[RED], row_gradients[GREEN], row_gradients[BLUE] = grad_red, grad_green, grad_blue


@kernel(parallel=True)
def composite_backward(
    splats, bounds, members, starts, offsets, color, alpha, depth, grad_color, grad_alpha, grad_depth,
    pair_gradients, shares,
):  # fmt: skip
    """Fill `pair_gradients` [pairs, 10], zero on entry, from the images and their gradients.

    Row `offsets[g] + k` belongs to the k-th tile, in reading order, of Gaussian g.
    """
    height, width = alpha.shape
    columns = (width + TILE - 1) // TILE
    tiles = starts.shape[0] - 1
    by_length = np.argsort(starts[:-1] - starts[1:])
    for share in prange(shares):
        state = np.empty((TILE, 6 * TILE), dtype=np.float32)
        sums = np.empty(7 * TILE, dtype=np.float32)
        for turn in range(share, tiles, shares):
            tile = by_length[turn]
            top, left = tile // columns * TILE, tile % columns * TILE
            state[:] = _ZERO  # lanes beyond the image stay closed
            for y in range(top, min(top + TILE, height)):
                row = state[y - top]
                for x in range(left, min(left + TILE, width)):
                    lane = x - left
                    red, green, blue = grad_color[0, y, x], grad_color[1, y, x], grad_color[2, y, x]
                    row[lane] = _ONE
                    row[TILE + lane] = (
                        red * color[0, y, x] + green * color[1, y, x] + blue * color[2, y, x]
                        + grad_depth[y, x] * depth[y, x] - grad_alpha[y, x] * (_ONE - alpha[y, x])
                    )  # fmt: skip
                    row[2 * TILE + lane], row[3 * TILE + lane], row[4 * TILE + lane] = red, green, blue
                    row[5 * TILE + lane] = grad_depth[y, x]
            for index in range(starts[tile], starts[tile + 1]):
                if (index - starts[tile]) % CHECK_EVERY == CHECK_EVERY - 1 and _all_closed(state):
                    break
                g = members[index]
                first_column, last_column = bounds[g, 0] // TILE, bounds[g, 1] // TILE
                pair = offsets[g] + (tile // columns - bounds[g, 2] // TILE) * (last_column - first_column + 1)
                pair += tile % columns - first_column
                first, last = max(bounds[g, 2], top), min(bounds[g, 3], top + TILE - 1)
                _unblend_splat(state, sums, splats[g], top, left, first, last, pair_gradients[pair])


@kernel(parallel=True)
def sum_pairs(pair_gradients, offsets, grad_splats):
    """Add each Gaussian's rows of `pair_gradients` [pairs, 10] into `grad_splats` [G, 10]."""
    for g in prange(grad_splats.shape[0]):
        for column in range(GRADIENT_COLUMNS):
            total = 0.0
            for pair in range(offsets[g], offsets[g + 1]):
                total += pair_gradients[pair, column]
            grad_splats[g, column] = total
