"""The texture that explains all pictures best, as one linear system instead of thousands of optimiser steps.

A pixel shows the bilinear mixture of four texels. Minimising the weighted squared difference over all pixels gives
normal equations in which a texel meets only its eight neighbours: a 3 x 3 stencil per texel, of which symmetry stores
five numbers. Pictures are added one by one, and some dozens of conjugate-gradient steps solve the system.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from trellis.export.unwrap import Atlas
from trellis.export.views import Hit
from trellis.renderers.numba_runtime import exclusive, kernel, prange

_ANCHOR = 0.15  # of the usual weight of a texel: pull towards the start, where pictures say little
_MIN_TRUST = 0.2  # pixels that show mostly something else teach nothing
_MIN_COSINE = 0.2
_ROOM = 0.75  # of the range of colours around a texel, by which the answer may leave that range
_CONVERGED = 1e-4  # of the first residual's length


class TextureSystem:
    """Normal equations of a square texture of `size` texels on an atlas."""

    def __init__(self, atlas: Atlas, size: int) -> None:
        self._faces, self._vertices = atlas.faces, atlas.vertices
        self._places = np.stack([atlas.uvs[:, 0] * size, (1 - atlas.uvs[:, 1]) * size], axis=1).astype(np.float32)
        self._normals = atlas.surface.face_normals()
        # Links of a texel to itself, and to those right, below left, below and below right of it.
        self._links = np.zeros((size, size, 5), dtype=np.float32)
        self._sums = np.zeros((size, size, 3), dtype=np.float32)

    def add(self, color: np.ndarray, trusted: np.ndarray, hit: Hit, center: np.ndarray) -> None:
        """Enter one picture.

        Args:
            color: [H, W, 3] float32.
            trusted: [H, W] float32, how far each pixel shows the surface.
            hit: what the camera sees of the atlas.
            center: [3] of the camera.
        """
        with exclusive():
            _accumulate(
                hit.face_ids, hit.barycentrics, self._faces, self._vertices, self._places, self._normals,
                center.astype(np.float32), np.ascontiguousarray(color), trusted.astype(np.float32),
                self._links, self._sums,
            )  # fmt: skip

    @property
    def touched(self) -> np.ndarray:
        """[S, S] bool: texels that some pixel shows."""
        return self._links[..., 0] > 0

    def gradient(self, texture: np.ndarray) -> np.ndarray:
        """Of half the weighted squared difference between a texture [S, S, 3] and the pictures, [S, S, 3]."""
        return _applied(self._links, texture) - self._sums

    def solve(self, start: np.ndarray, steps: int, on_step: Callable[[int], None] | None = None) -> np.ndarray:
        """The texture [S, S, 3] float32 in [0, 1] after at most `steps` conjugate-gradient steps from `start`.

        Texels that no pixel shows keep their colour. `on_step` is called with the number of steps done.
        """
        touched = self.touched
        if steps == 0 or not touched.any():
            return start
        diagonal = self._links[..., 0]
        anchor = np.float32(_ANCHOR * np.median(diagonal[touched]))
        links = self._links.copy()
        links[..., 0] += anchor
        scale = 1 / links[..., :1]
        residual = -self.gradient(start)
        change = np.zeros_like(start)
        direction = scaled = scale * residual
        energy = first = float(np.vdot(residual, scaled))
        for step in range(steps):
            if energy <= _CONVERGED**2 * first:
                break
            image = _applied(links, direction)
            length = np.float32(energy / float(np.vdot(direction, image)))
            change += length * direction
            residual -= length * image
            scaled = scale * residual
            before, energy = energy, float(np.vdot(residual, scaled))
            direction = scaled + np.float32(energy / before) * direction
            if on_step is not None:
                on_step(step + 1)
        # Pixels that show the other side of an edge make waves beside it; where the start is flat, the answer stays so.
        low, high = ndimage.minimum_filter(start, (3, 3, 1)), ndimage.maximum_filter(start, (3, 3, 1))
        room = _ROOM * (high - low)
        return (start + change).clip(low - room, high + room).clip(0, 1)


def _applied(links: np.ndarray, texture: np.ndarray) -> np.ndarray:
    result = np.empty_like(texture)
    with exclusive():
        _apply(links, texture, result)
    return result


@kernel
def _accumulate(face_ids, barycentrics, faces, vertices, places, normals, center, color, trusted, links, sums):
    size = links.shape[0]
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
            links[top, left, 0] += weight * w00 * w00
            links[top, left + 1, 0] += weight * w01 * w01
            links[top + 1, left, 0] += weight * w10 * w10
            links[top + 1, left + 1, 0] += weight * w11 * w11
            links[top, left, 1] += weight * w00 * w01
            links[top + 1, left, 1] += weight * w10 * w11
            links[top, left + 1, 2] += weight * w01 * w10
            links[top, left, 3] += weight * w00 * w10
            links[top, left + 1, 3] += weight * w01 * w11
            links[top, left, 4] += weight * w00 * w11
            for k in range(3):
                value = weight * color[row, column, k]
                sums[top, left, k] += w00 * value
                sums[top, left + 1, k] += w01 * value
                sums[top + 1, left, k] += w10 * value
                sums[top + 1, left + 1, k] += w11 * value


@kernel(parallel=True)
def _apply(links, texture, result):
    size = links.shape[0]
    for row in prange(size):
        for column in range(size):
            for k in range(3):
                result[row, column, k] = links[row, column, 0] * texture[row, column, k]
            if column + 1 < size:
                for k in range(3):
                    result[row, column, k] += links[row, column, 1] * texture[row, column + 1, k]
            if column > 0:
                for k in range(3):
                    result[row, column, k] += links[row, column - 1, 1] * texture[row, column - 1, k]
            if row + 1 < size:
                for k in range(3):
                    result[row, column, k] += links[row, column, 3] * texture[row + 1, column, k]
                if column > 0:
                    for k in range(3):
                        result[row, column, k] += links[row, column, 2] * texture[row + 1, column - 1, k]
                if column + 1 < size:
                    for k in range(3):
                        result[row, column, k] += links[row, column, 4] * texture[row + 1, column + 1, k]
            if row > 0:
                for k in range(3):
                    result[row, column, k] += links[row - 1, column, 3] * texture[row - 1, column, k]
                if column + 1 < size:
                    for k in range(3):
                        result[row, column, k] += links[row - 1, column + 1, 2] * texture[row - 1, column + 1, k]
                if column > 0:
                    for k in range(3):
                        result[row, column, k] += links[row - 1, column - 1, 4] * texture[row - 1, column - 1, k]
