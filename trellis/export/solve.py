"""The texture that explains all pictures best, as one linear system instead of thousands of optimiser steps.

A pixel shows the bilinear mixture of four texels. Minimising the weighted squared difference over all pixels gives
normal equations in which a texel meets only its eight neighbours: a 3 x 3 stencil per texel, of which symmetry stores
five numbers. Pictures are added one by one, and some dozens of conjugate-gradient steps solve the system.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from trellis import backends
from trellis.export.unwrap import Atlas
from trellis.export.views import Hit
from trellis.renderers.numba_runtime import exclusive, kernel, prange

_ANCHOR = 0.5  # of the usual weight of a texel: pull towards the start, which holds back the noise of the pictures
_MIN_TRUST = 0.2  # pixels that show mostly something else teach nothing
_MIN_COSINE = 0.2
_ROOM = np.float32(0.75)  # of the range of colours around a texel, by which the answer may leave that range
_CONVERGED = 1e-4  # of the first residual's length


class TextureSystem:
    """Normal equations of a square texture of `size` texels on an atlas.

    Pictures are entered on `device`, or on the CPU if surfaces are rasterised there; the system is solved on the CPU,
    and takes no further pictures then.
    """

    def __init__(self, atlas: Atlas, size: int, device: torch.device | str = "cpu") -> None:
        device = backends.place("mesh_rasterisation", device)
        places = np.stack([atlas.uvs[:, 0] * size, (1 - atlas.uvs[:, 1]) * size], axis=1).astype(np.float32)
        arrays = atlas.faces, atlas.vertices, places, atlas.surface.face_normals()
        self._surface = [torch.from_numpy(array).to(device) for array in arrays]
        # Of a texel: its links to itself and to those right, below left, below and below right of it, and the sums of
        # its colour. Side by side, because a pixel scatters into all of them.
        self._sums = torch.zeros(size, size, 8, device=device)

    @property
    def _entries(self) -> np.ndarray:
        self._sums = self._sums.cpu()
        return self._sums.numpy()

    def add(self, color: torch.Tensor, trusted: torch.Tensor, hit: Hit, center: torch.Tensor) -> None:
        """Enter one picture.

        Args:
            color: [H, W, 3] float32.
            trusted: [H, W] float32, how far each pixel shows the surface.
            hit: what the camera sees of the atlas.
            center: [3] of the camera.
            All on the device of the system.
        """
        tensors = hit.face_ids, hit.barycentrics, *self._surface, center, color.contiguous(), trusted, self._sums
        if color.device.type != "cpu":
            accumulate_in_torch(*tensors)
            return
        with exclusive():
            _accumulate(*(tensor.numpy() for tensor in tensors))

    @property
    def touched(self) -> np.ndarray:
        """[S, S] bool: texels that some pixel shows."""
        return self._entries[..., 0] > 0

    def gradient(self, texture: np.ndarray) -> np.ndarray:
        """Of half the weighted squared difference between a texture [S, S, 3] and the pictures, [S, S, 3]."""
        result, unused = np.zeros_like(texture), np.zeros(len(texture))
        with exclusive():
            _apply(self._entries, np.float32(0), texture, result, unused)
        result -= self._entries[..., 5:]
        return result

    def solve(self, start: np.ndarray, steps: int, on_step: Callable[[int], None] | None = None) -> np.ndarray:
        """The texture [S, S, 3] float32 in [0, 1] after at most `steps` conjugate-gradient steps from `start`.

        Texels that no pixel shows keep their colour. `on_step` is called with the number of steps done, and may raise
        to stop.
        """
        entries = self._entries
        diagonal = entries[..., 0].copy()  # alone, because two of the three loops read nothing else of the entries
        touched = diagonal[diagonal > 0]
        if steps == 0 or len(touched) == 0:
            return start
        anchor = np.float32(_ANCHOR * np.median(touched))
        residual = self.gradient(start)
        np.negative(residual, out=residual)
        change, image, direction = np.zeros_like(start), np.zeros_like(start), np.zeros_like(start)
        partial = np.zeros(len(start))
        with exclusive():
            _advance(diagonal, anchor, np.float32(0), direction, image, change, residual, partial)
            energy = first = partial.sum()
            _turn(diagonal, anchor, np.float32(0), residual, direction)
            for step in range(steps):
                if energy <= _CONVERGED**2 * first:
                    break
                _apply(entries, anchor, direction, image, partial)
                length = np.float32(energy / partial.sum())
                _advance(diagonal, anchor, length, direction, image, change, residual, partial)
                before, energy = energy, partial.sum()
                _turn(diagonal, anchor, np.float32(energy / before), residual, direction)
                if on_step is not None:
                    on_step(step + 1)
            result = np.empty_like(start)
            _add_within_room(start, change, result)
        return result


def accumulate_in_torch(
    face_ids: torch.Tensor,
    barycentrics: torch.Tensor,
    faces: torch.Tensor,
    vertices: torch.Tensor,
    places: torch.Tensor,
    normals: torch.Tensor,
    center: torch.Tensor,
    color: torch.Tensor,
    trusted: torch.Tensor,
    entries: torch.Tensor,
) -> None:
    """`TextureSystem.add` on any device, without waiting for it; on a GPU sums come in no fixed order."""
    size = len(entries)
    ids, trusted = face_ids.reshape(-1), trusted.reshape(-1)
    face = ids.clamp_min(0).long()
    corners = faces[face].long()
    to_camera = center - vertices[corners[:, 0]]
    cosine = (to_camera * normals[face]).sum(1) / to_camera.norm(dim=1)
    used = (ids >= 0) & (trusted > _MIN_TRUST) & (cosine >= _MIN_COSINE)
    weight = torch.where(used, trusted * cosine * cosine, 0)
    x, y = ((barycentrics.reshape(-1, 3, 1) * places[corners]).sum(1) - 0.5).unbind(1)
    left, top = x.floor().clamp(0, size - 2), y.floor().clamp(0, size - 2)
    right, low = (x - left).clamp(0, 1), (y - top).clamp(0, 1)
    w00, w01, w10, w11 = (1 - low) * (1 - right), (1 - low) * right, low * (1 - right), low * right
    none = torch.zeros_like(weight)
    value = (weight[:, None] * color.reshape(-1, 3)).T
    # Pixels that are not used add nothing, each somewhere else: additions to one place wait for each other.
    spare = torch.arange(len(ids), device=ids.device) % (size * (size - 1) - 1)
    corner = torch.where(used, (top * size + left).long(), spare)
    rows = entries.view(-1, entries.shape[2])
    for offset, own, links in (
        (0, w00, (w00, w01, none, w10, w11)),
        (1, w01, (w01, none, w10, w11, none)),
        (size, w10, (w10, w11, none, none, none)),
        (size + 1, w11, (w11, none, none, none, none)),
    ):
        added = torch.stack([*(weight * own * link for link in links), *(own * channel for channel in value)], dim=1)
        rows.index_add_(0, corner + offset, added)


@kernel
def _accumulate(face_ids, barycentrics, faces, vertices, places, normals, center, color, trusted, entries):
    size = entries.shape[0]
    for row in range(face_ids.shape[0]):
        for column in range(face_ids.shape[1]):
            face = face_ids[row, column]
            if face < 0 or trusted[row, column] <= _MIN_TRUST:
                continue
            a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
            tx, ty, tz = center[0] - vertices[a, 0], center[1] - vertices[a, 1], center[2] - vertices[a, 2]
            n = normals[face]
            cosine = (tx * n[0] + ty * n[1] + tz * n[2]) / np.sqrt(tx * tx + ty * ty + tz * tz)
            if cosine < _MIN_COSINE:
                continue
            weight = trusted[row, column] * cosine * cosine
            u, v, w = barycentrics[row, column, 0], barycentrics[row, column, 1], barycentrics[row, column, 2]
            x = u * places[a, 0] + v * places[b, 0] + w * places[c, 0] - np.float32(0.5)
            y = u * places[a, 1] + v * places[b, 1] + w * places[c, 1] - np.float32(0.5)
            left = min(max(int(np.floor(x)), 0), size - 2)
            top = min(max(int(np.floor(y)), 0), size - 2)
            right = min(max(x - left, np.float32(0)), np.float32(1))
            low = min(max(y - top, np.float32(0)), np.float32(1))
            w00, w01 = (1 - low) * (1 - right), (1 - low) * right
            w10, w11 = low * (1 - right), low * right
            here, right_of, below = entries[top, left], entries[top, left + 1], entries[top + 1, left]
            diagonal = entries[top + 1, left + 1]
            here[0] += weight * w00 * w00
            here[1] += weight * w00 * w01
            here[3] += weight * w00 * w10
            here[4] += weight * w00 * w11
            right_of[0] += weight * w01 * w01
            right_of[2] += weight * w01 * w10
            right_of[3] += weight * w01 * w11
            below[0] += weight * w10 * w10
            below[1] += weight * w10 * w11
            diagonal[0] += weight * w11 * w11
            for k in range(3):
                value = weight * color[row, column, k]
                here[5 + k] += w00 * value
                right_of[5 + k] += w01 * value
                below[5 + k] += w10 * value
                diagonal[5 + k] += w11 * value


@kernel(parallel=True)
def _apply(entries, anchor, texture, result, dots):
    """`result` = (links + anchor) texture at touched texels, and by row the inner product of the two."""
    size, zero = entries.shape[0], np.float32(0)
    for row in prange(size):
        dot = 0.0
        for column in range(size):
            links = entries[row, column]
            if links[0] <= 0:
                continue
            left, right = max(column - 1, 0), min(column + 1, size - 1)
            # A texel's own links that would lead out of the image are zero.
            above, below = max(row - 1, 0), min(row + 1, size - 1)
            from_left = entries[row, left, 1] if column > 0 else zero
            from_above = entries[above, column, 3] if row > 0 else zero
            from_right_above = entries[above, right, 2] if row > 0 and column < size - 1 else zero
            from_left_above = entries[above, left, 4] if row > 0 and column > 0 else zero
            for k in range(3):
                value = (
                    (links[0] + anchor) * texture[row, column, k]
                    + links[1] * texture[row, right, k]
                    + links[2] * texture[below, left, k]
                    + links[3] * texture[below, column, k]
                    + links[4] * texture[below, right, k]
                    + from_left * texture[row, left, k]
                    + from_above * texture[above, column, k]
                    + from_right_above * texture[above, right, k]
                    + from_left_above * texture[above, left, k]
                )
                result[row, column, k] = value
                dot += value * texture[row, column, k]
        dots[row] = dot


@kernel(parallel=True)
def _advance(diagonal, anchor, length, direction, image, change, residual, energies):
    """A step along `direction`, and by row the energy of the residual, scaled by the diagonal, that is left."""
    size = len(diagonal)
    for row in prange(size):
        energy = 0.0
        for column in range(size):
            own = diagonal[row, column]
            if own <= 0:
                continue
            for k in range(3):
                change[row, column, k] += length * direction[row, column, k]
                residual[row, column, k] -= length * image[row, column, k]
                energy += residual[row, column, k] ** 2 / (own + anchor)
        energies[row] = energy


@kernel(parallel=True)
def _turn(diagonal, anchor, keep, residual, direction):
    """The next direction: the scaled residual, plus `keep` of the last direction."""
    size = len(diagonal)
    for row in prange(size):
        for column in range(size):
            own = diagonal[row, column]
            if own > 0:
                for k in range(3):
                    step = residual[row, column, k] / (own + anchor)
                    direction[row, column, k] = step + keep * direction[row, column, k]


@kernel(parallel=True)
def _add_within_room(start, change, result):
    """`start` + `change`, leaving the range of the colours around a texel by no more than the room, within [0, 1].

    Pixels that show the other side of an edge make waves beside it; where the start is flat, the answer stays so.
    """
    size = start.shape[0]
    for row in prange(size):
        for column in range(size):
            for k in range(3):
                value = start[row, column, k]
                if change[row, column, k] != 0:
                    low = high = value
                    for r in range(max(row - 1, 0), min(row + 2, size)):
                        for c in range(max(column - 1, 0), min(column + 2, size)):
                            low, high = min(low, start[r, c, k]), max(high, start[r, c, k])
                    room = _ROOM * (high - low)
                    value = min(max(value + change[row, column, k], low - room), high + room)
                result[row, column, k] = min(max(value, np.float32(0)), np.float32(1))
